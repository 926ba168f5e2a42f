"""A store as a source: its facts, what is read of it, mirror images, and its order."""

import dataclasses
import pickle

from helpers import store_files
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data import latents, pipeline, sources
from diversedit_jax.data.store import layout, writer
from diversedit_jax.experiment import data_options

EXAMPLES = 5
MOMENTS = np.stack([store_files.moments(i) for i in range(EXAMPLES)])  # [5, 2, *shape]
PIXELS = np.concatenate([store_files.pixels(i) for i in range(EXAMPLES)])
VAE = {
  'file': 'vae.safetensors',
  'encoder_sha256': '1' * 64,
  'scale': list(store_files.SCALE),
  'shift': list(store_files.SHIFT),
  'dtype': 'float32',
  'config': {},
}


def write(root, columns, twins=True):
  """The small store with some of its columns, with or without the twins."""
  facts = {name: store_files.PLAN.columns[name] for name in columns}
  if 'moments' in columns:
    facts['moments'] = dataclasses.replace(facts['moments'], twins=twins)
  vae = VAE if 'moments' in columns else None
  plan = dataclasses.replace(store_files.PLAN, columns=facts, vae=vae)

  def changed(result):
    if not isinstance(result, writer.Example):
      return result
    arrays = {name: result.columns[name][: 1 + facts[name].twins] for name in columns}
    return dataclasses.replace(result, columns=arrays)

  layout.write_json(root / 'plan.json', plan)
  for shard in range(plan.shards):
    writer.write_shard(root, plan, shard, map(changed, store_files.results(shard)))
  writer.finish(root, plan, store_files.LISTED, store_files.VERSIONS)
  return root


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
  """Stores by what is in them."""
  root = tmp_path_factory.mktemp('stores')
  return {
    'both': write(root / 'both', ('moments', 'pixels')),
    'moments': write(root / 'moments', ('moments',)),
    'alone': write(root / 'alone', ('moments', 'pixels'), twins=False),
    'pixels': write(root / 'pixels', ('pixels',)),
  }


@pytest.fixture(scope='module')
def opened(roots):
  return {name: sources.StoreSource(root) for name, root in roots.items()}


def test_facts(opened):
  scaling = latents.Scaling(scale=store_files.SCALE, shift=store_files.SHIFT)
  for name, space, shape, pixel_shape, mirrors in (
    ('both', 'latents', (2, 2, 2), (4, 4, 3), True),
    ('moments', 'latents', (2, 2, 2), None, True),
    ('alone', 'latents', (2, 2, 2), (4, 4, 3), False),
    ('pixels', 'pixels', (4, 4, 3), (4, 4, 3), True),
  ):
    source = opened[name]
    assert (source.name, source.space, source.num_classes) == (f'store/{name}', space, 3)
    assert (source.shape, source.pixel_shape, source.can_mirror) == (shape, pixel_shape, mirrors)
    assert source.scaling == (None if name == 'pixels' else scaling)
    np.testing.assert_array_equal(source.labels, store_files.LABELS)


@pytest.mark.parametrize(
  ('name', 'pixels', 'keys'),
  [
    ('both', True, {'moments', 'pixels'}),
    ('both', False, {'moments'}),
    ('moments', True, {'moments'}),
    ('pixels', True, {'images'}),
    ('pixels', False, {'images'}),
  ],
)
def test_what_is_gathered(roots, name, pixels, keys):
  source = sources.open_source(f'store:{roots[name]}', pixels=pixels)
  wanted = np.array([4, 0, 4, 2])
  batch = source.gather(wanted)
  assert set(batch) == keys | {'labels'}
  np.testing.assert_array_equal(batch['labels'], np.array(store_files.LABELS)[wanted])
  assert batch['labels'].dtype == np.int32
  expected = {'moments': MOMENTS[wanted, 0], 'pixels': PIXELS[wanted], 'images': PIXELS[wanted]}
  flips = np.array([True, False, True, False])
  mirrored = source.gather(wanted, flips)
  for key in keys:
    np.testing.assert_array_equal(batch[key], expected[key])
    assert batch[key].dtype == expected[key].dtype
    # Mirror images are the twins of moments, and mirrored pixels.
    twins = MOMENTS[wanted, 1] if key == 'moments' else expected[key][:, :, ::-1]
    np.testing.assert_array_equal(mirrored[key][flips], twins[flips])
    np.testing.assert_array_equal(mirrored[key][~flips], expected[key][~flips])
  assert (source.pixel_shape is None) == (not keys & {'pixels', 'images'})


def test_without_twins_there_are_no_mirror_images(opened):
  with pytest.raises(ValueError, match='store/alone has no latents of mirror images'):
    opened['alone'].gather(np.array([0]), np.array([False]))
  with pytest.raises(types.UserError, match='store/alone has no mirror images: .* --twins'):
    pipeline.Steps(source=opened['alone'], seed=0, batch_size=2, flip=True)


def test_a_store_of_a_split_is_opened_and_indices_outside_are_refused(roots, tmp_path):
  (tmp_path / 'test').symlink_to(roots['moments'])
  source = sources.open_source(f'store:{tmp_path}/{{split}}', 'test', 3)
  for index in (-1, EXAMPLES):
    with pytest.raises(IndexError, match='store/test has 5 examples'):
      source.gather(np.array([0, index]))


@pytest.mark.parametrize(
  ('pixels', 'columns'), [(False, ['moments']), (True, ['moments', 'pixels'])]
)
def test_a_copy_has_what_is_read_and_changes_nothing(roots, tmp_path, pixels, columns):
  here = sources.StoreSource(roots['alone'], pixels=pixels)
  source = sources.open_source(f'store:{roots["alone"]}', pixels=pixels, cache=str(tmp_path))
  assert not list(tmp_path.iterdir())
  source.fetch()
  copied = sorted({path.name.partition('-')[0] for path in tmp_path.rglob('*.array_record')})
  assert copied == columns and source.store._records.root.is_relative_to(tmp_path)
  assert (source.name, source.digest()) == (here.name, here.digest())
  other = pickle.loads(pickle.dumps(source))  # As worker processes get it.
  expected = here.gather(np.array([4, 1]))
  for found in (source, other):
    batch = found.gather(np.array([4, 1]))
    assert batch.keys() == expected.keys()
    for key, array in expected.items():
      np.testing.assert_array_equal(batch[key], array)


def test_a_cache_is_for_stores():
  with pytest.raises(types.UserError, match="data.cache='x' is not for digits"):
    data_options.DataOptions(cache='x').open(pixels=False)


def test_what_was_made_otherwise_is_refused(opened):
  plan = opened['both'].plan
  for source in opened.values():
    source.check_made(size=None, crop=None, orientation=None)
    source.check_made(size=4, crop=plan.crop, orientation=plan.orientation)
  for name, other in (('size', 8), ('crop', 'center'), ('orientation', 'stored')):
    found = getattr(plan, name)
    assert found != other
    message = rf'data\.{name}={other}, but store/both was made with {name} {found}'
    with pytest.raises(types.UserError, match=message):
      opened['both'].check_made(**{name: other})


def test_a_pickled_source_gathers_the_same(opened):
  for source in opened.values():
    other = pickle.loads(pickle.dumps(source))
    assert (other.name, other.shape, other.scaling) == (source.name, source.shape, source.scaling)
    for key, array in source.gather(np.array([4, 1])).items():
      np.testing.assert_array_equal(other.gather(np.array([4, 1]))[key], array)


def test_the_digest_tells_scales_shifts_and_encoders_apart(tmp_path):
  """The same moments, of which a model would see others."""
  numbers = {name: VAE[name] for name in ('scale', 'shift')}
  changes = [
    {},
    {'scale': [0.5, 1.0]},
    {'shift': [0.25, 1.0]},
    {'encoder_sha256': '2' * 64},
    {'file': 'moved.safetensors'},
  ]
  digests = []
  root = write(tmp_path / 'store', ('moments',))
  manifest = layout.read_manifest(root)
  for change in changes:
    plan = dataclasses.replace(manifest.plan, vae=VAE | numbers | change)
    layout.write_json(root / 'manifest.json', dataclasses.replace(manifest, plan=plan))
    digests.append(sources.StoreSource(root).digest())
  assert len(set(digests)) == 4 and digests[0] == digests[4]
