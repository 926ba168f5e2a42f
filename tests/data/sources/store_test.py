"""A store as a source: its facts, what is read of it, mirror images, and its order."""

import dataclasses
import hashlib
import pickle

from helpers import store_files
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data import latents, pipeline, sources
from diversedit_jax.data.store import layout, writer

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


def test_facts_of_latents(opened):
  scaling = latents.Scaling(scale=store_files.SCALE, shift=store_files.SHIFT)
  for name, pixel_shape, mirrors in (
    ('both', (4, 4, 3), True),
    ('moments', None, True),
    ('alone', (4, 4, 3), False),
  ):
    source = opened[name]
    assert (source.name, source.space, source.num_classes) == (f'store/{name}', 'latents', 3)
    assert (source.shape, source.pixel_shape) == ((2, 2, 2), pixel_shape)
    assert (source.scaling, source.can_mirror, len(source)) == (scaling, mirrors, EXAMPLES)
    np.testing.assert_array_equal(source.labels, store_files.LABELS)


def test_facts_of_pixels(opened):
  source = opened['pixels']
  assert (source.name, source.space, source.num_classes) == ('store/pixels', 'pixels', 3)
  assert (source.shape, source.pixel_shape) == ((4, 4, 3), (4, 4, 3))
  assert (source.scaling, source.can_mirror, len(source)) == (None, True, EXAMPLES)


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
  for key in keys:
    np.testing.assert_array_equal(batch[key], expected[key])
    assert batch[key].dtype == expected[key].dtype
  assert (source.pixel_shape is None) == (not keys & {'pixels', 'images'})


@pytest.mark.parametrize('name', ['both', 'moments', 'pixels'])
def test_mirror_images_are_twins_of_moments_and_mirrored_pixels(opened, name):
  wanted, flips = np.array([3, 1, 1]), np.array([True, False, True])
  batch = opened[name].gather(wanted, flips)
  mirrored = PIXELS[wanted]
  mirrored[flips] = mirrored[flips][:, :, ::-1]
  expected = {'moments': MOMENTS[wanted, flips.astype(int)], 'pixels': mirrored}
  expected['images'] = mirrored
  for key in set(batch) - {'labels'}:
    np.testing.assert_array_equal(batch[key], expected[key])
  unflipped = opened[name].gather(wanted, np.zeros(3, bool))
  for key, array in opened[name].gather(wanted).items():
    np.testing.assert_array_equal(unflipped[key], array)


def test_without_twins_there_are_no_mirror_images(opened):
  with pytest.raises(ValueError, match='store/alone has no latents of mirror images'):
    opened['alone'].gather(np.array([0]), np.array([False]))
  with pytest.raises(types.UserError, match='store/alone has no mirror images: .* --twins'):
    pipeline.Steps(source=opened['alone'], seed=0, batch_size=2, flip=True)


@pytest.mark.parametrize('index', [-1, EXAMPLES])
def test_indices_outside_are_refused(opened, index):
  with pytest.raises(IndexError, match='store/both has 5 examples'):
    opened['both'].gather(np.array([0, index]))


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


def test_another_encoder_is_refused(opened):
  opened['both'].check_encoder('other.safetensors', '1' * 64)
  opened['pixels'].check_encoder('other.safetensors', '2' * 64)  # Which has none.
  with pytest.raises(types.UserError) as error:
    opened['both'].check_encoder('other.safetensors', '2' * 64)
  assert str(error.value) == (
    'store/both was made with another VAE than vae.weights=other.safetensors: the encoder of '
    'vae.safetensors is 111111111111..., not 222222222222...'
  )


def test_open_source_opens_stores_by_split_and_demands_their_classes(roots, tmp_path):
  (tmp_path / 'train').symlink_to(roots['both'])
  (tmp_path / 'test').symlink_to(roots['moments'])
  spec = f'store:{tmp_path}/{{split}}'
  assert sources.open_source(spec).pixel_shape == (4, 4, 3)
  assert sources.open_source(spec, 'test', 3).pixel_shape is None
  with pytest.raises(types.UserError, match='has 3 classes, expected 1000'):
    sources.open_source(spec, num_classes=1000)
  with pytest.raises(types.UserError, match='absent is no store'):
    sources.open_source(f'store:{tmp_path}/absent')


@pytest.mark.parametrize('name', ['both', 'pixels'])
@pytest.mark.parametrize('processes', [1, 2, 4])
def test_processes_hold_the_rows_of_the_same_batches(roots, opened, name, processes):
  """Batches of 4 cross the epochs of 5 examples; three epochs are read."""
  whole = pipeline.Steps(source=opened[name], seed=1, batch_size=4, flip=True)
  parts = [
    # Each process has opened the store for itself.
    pipeline.Steps(
      source=sources.StoreSource(roots[name]), seed=1, batch_size=4, flip=True, rows=rows
    )
    for rows in np.arange(4).reshape(processes, -1)
  ]
  for step in range(15 // 4 + 1):
    expected, found = whole(step), [part(step) for part in parts]
    for key, array in expected.items():
      np.testing.assert_array_equal(np.concatenate([batch[key] for batch in found]), array)


def test_an_epoch_shows_each_example_once_and_each_twin_in_turn(opened):
  """The moments of a batch tell which example, mirrored or not, they are of."""
  steps = pipeline.Steps(source=opened['moments'], seed=0, batch_size=5, flip=True)
  names = {MOMENTS[i, twin].tobytes(): (i, twin) for i in range(EXAMPLES) for twin in (0, 1)}
  seen = [[names[x.tobytes()] for x in steps(epoch)['moments']] for epoch in range(20)]
  for epoch in seen:
    assert sorted(i for i, _ in epoch) == list(range(EXAMPLES))
  assert len({pair for epoch in seen for pair in epoch}) == 2 * EXAMPLES


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
    {'scale': 0.5},
    {'scale': [0.5, 0.5]},
    {'file': 'moved.safetensors'},
  ]
  digests = []
  root = write(tmp_path / 'store', ('moments',))
  manifest = layout.read_manifest(root)
  for change in changes:
    plan = dataclasses.replace(manifest.plan, vae=VAE | numbers | change)
    layout.write_json(root / 'manifest.json', dataclasses.replace(manifest, plan=plan))
    digests.append(sources.StoreSource(root).digest())
  assert len(set(digests)) == 5
  assert digests[4] == digests[5] and digests[0] == digests[6]


def test_the_digest_of_pixels_is_of_shards_and_labels(roots, opened):
  manifest = layout.read_manifest(roots['pixels'])
  lines = ''.join(f'{part}\n' for part in (*manifest.shards, manifest.labels))
  assert opened['pixels'].digest() == hashlib.sha256(lines.encode()).hexdigest()
  assert opened['pixels'].latent_facts() is None
