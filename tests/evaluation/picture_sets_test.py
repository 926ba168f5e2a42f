"""Pictures that exist already, in every form in which people have them."""

import dataclasses
import hashlib

from helpers import picture_eval
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import sharding, types
from diversedit_jax.data import images, sources
from diversedit_jax.evaluation import picture_sets, reference, samples

X = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), np.uint8)


def save(folder, names, x=X, **options):
  for name, one in zip(names, x, strict=True):
    file = folder / name
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(one).save(file, **options)
  return folder


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """The same pictures as files, folders and archives; a text for each form, as users give it."""
  root = tmp_path_factory.mktemp('made')
  np.savez(root / 'dit.npz', arr_0=X)
  np.savez(root / 'sample.npz', images=X, labels=np.arange(12) % 3)
  np.savez(root / 'first.npz', arr_0=X[:5])
  np.savez(root / 'second.npz', arr_0=X[5:])
  save(root / 'flat', [f'{i:06d}.png' for i in range(12)])
  (root / 'flat' / '.DS_Store').touch()
  save(root / 'classes', [f'class{i // 4}/{i:06d}.png' for i in range(12)])
  return root


FORMS = {
  "DiT's": ['dit.npz'],
  'of --mode=sample': ['sample.npz'],
  'parts': ['first.npz', 'second.npz'],
  'flat': ['flat'],
  'classes': ['classes'],
}


@pytest.mark.parametrize('form', FORMS)
def test_every_form_gives_the_same_pictures_in_their_order(made, form):
  found = picture_sets.open_set([made / name for name in FORMS[form]])
  assert len(found) == 12 and found.image_shape == (16, 16, 3) and not found.remarks
  assert str(made) not in found.name
  np.testing.assert_array_equal(np.concatenate(list(found.batches(5))), X)
  labels = {'of --mode=sample': np.arange(12) % 3, 'classes': np.arange(12) // 4}
  if form in labels:
    np.testing.assert_array_equal(found.labels(), labels[form])
  else:
    assert found.labels() is None or len(set(found.labels())) == 1


def odd(root):
  return save(root, ['0.png', '1.png'], [X[0], np.zeros((32, 32, 3), np.uint8)])


REFUSED = {
  'two sizes': (odd, '1.png: 32x32, expected exactly 16x16; all samples .* of one size'),
  'oblong': (lambda root: save(root, ['0.png'], [X[0, :4]]), '0.png is 16x4, expected square'),
  'nothing': (lambda root: root / 'absent', 'there is no'),
  'no pictures': (lambda root: (root / 'a.txt').touch() or root, 'holds no pictures'),
  'a folder of arrays': (
    lambda root: samples.write_npz(root / 'a.npz', X.shape, [X]) or root,
    r'holds files of arrays, as a.npz: name the file itself.*--samples=FILE',
  ),
}


@pytest.mark.parametrize('fault', REFUSED)
def test_what_is_no_set_of_samples_is_refused(tmp_path, fault):
  make, message = REFUSED[fault]
  with pytest.raises(types.UserError, match=message):
    list(picture_sets.open_set(make(tmp_path)).batches(4))


def test_compression_with_losses_is_remarked_on(tmp_path):
  save(tmp_path, [f'{i}.jpg' for i in range(12)])
  assert 'were compressed with losses' in picture_sets.open_set(tmp_path).remarks[0]


# References.


def statistics(spec, points=reference.POOL_LIMIT, **options):
  return picture_sets.open_reference(
    str(spec),
    dataclasses.replace(picture_eval.network(), points=points),
    lambda spec: sources.open_source(spec, size=16, labels='any'),
    image_size=16,
    mesh=sharding.make_mesh(),
    batch_size=4,
    **options,
  )


def test_every_form_is_a_reference(made, monkeypatch):
  monkeypatch.setattr(reference, 'POOL_LIMIT', 10)  # So that 12 pictures are too many to keep.
  paths = [made / name for name in ('dit.npz', 'sample.npz', 'flat', 'classes')]
  found = [statistics(path, points=10) for path in [*paths, f'folder:{made}/flat']]
  assert {one.n for one in found} == {12} and {len(one.pool_ND) for one in found} == {10}
  features = picture_eval.network().features(picture_eval.network().params, X)['pool']
  for one in found:
    np.testing.assert_allclose(one.mu, np.mean(np.asarray(features, np.float64), axis=0), rtol=1e-5)
    assert one.facts['image_size'] == 16
  floats = images.from_uint8(X) + np.float32(0.004)  # Which rounds up by one of the two rules.
  np.savez(made / 'floats.npz', floats)
  for rule in images.QUANTISERS:
    digest = hashlib.sha256(images.to_uint8(floats, rule)).hexdigest()
    one = statistics(made / 'floats.npz', quantiser=rule)
    assert one.facts['source_sha256'] == digest
  monkeypatch.undo()
  assert statistics(made / 'dit.npz').images_NHWC is not None  # So few pictures are kept.
