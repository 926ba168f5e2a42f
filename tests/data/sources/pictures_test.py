"""Pictures decoded as they are asked for: the crop of each, their order, a bad one, a store's."""

from concurrent import futures
import pickle

from helpers import small
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import types
from diversedit_jax.data import order, pictures, pipeline, sources
from diversedit_jax.data.pictures import loading
from diversedit_jax.preparation import work

SIZE = 16


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """24 pictures in classes; one more in the last, turned by a camera, and one of its own size."""
  root = tmp_path_factory.mktemp('folder')
  small.write_pictures(root, bad={})
  exif = Image.Exif()
  exif[274] = 6  # Of the tags the orientation: a quarter turn.
  levels = np.random.default_rng(0).integers(0, 256, (40, 24, 3), np.uint8)
  Image.fromarray(levels).save(root / 'cat' / '024.jpg', exif=exif)
  Image.fromarray(levels[:SIZE, :SIZE]).save(root / 'cat' / '025.png')
  return root


@pytest.fixture(scope='module')
def source(folder):
  return sources.open_source(f'folder:{folder}', size=SIZE)


def test_facts(source, folder):
  assert (source.name, source.space) == (f'folder/{folder.name}', 'pixels')
  assert source.shape == source.pixel_shape == (SIZE, SIZE, 3)
  assert (source.num_classes, len(source)) == (3, 26)
  assert source.can_mirror and source.scaling is None
  np.testing.assert_array_equal(source.labels, [0] * 8 + [1] * 8 + [2] * 10)
  assert source.labels.dtype == np.int32


def by_hand(folder, rule='adm', orientation='exif'):
  """All pictures in the order of their keys, decoded and cropped one by one."""
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  decoded = [pictures.decode.decode(path.read_bytes(), orientation) for path in files]
  return np.stack([pictures.crop.crop(image, SIZE, rule) for image in decoded])


def test_examples_are_the_pictures_in_the_order_of_their_keys(source, folder):
  batch = source.gather(np.arange(26))
  assert set(batch) == {'images', 'labels'}
  assert batch['images'].dtype == np.uint8 and batch['labels'].dtype == np.int32
  expected = by_hand(folder)
  np.testing.assert_array_equal(batch['images'], expected)
  np.testing.assert_array_equal(batch['labels'], source.labels)
  some = np.array([25, 3, 3, 0])
  np.testing.assert_array_equal(source.gather(some)['images'], expected[some])
  np.testing.assert_array_equal(source.gather(some)['labels'], source.labels[some])


@pytest.mark.parametrize(
  ('options', 'differing'),
  [
    ({'crop': 'center'}, 24),  # All whose shorter side is at least twice the crop's.
    ({'orientation': 'stored'}, 1),
  ],
)
def test_crop_and_orientation_are_those_asked_for(source, folder, options, differing):
  images = sources.open_source(f'folder:{folder}', size=SIZE, **options).gather(np.arange(26))
  usual = source.gather(np.arange(26))['images']
  different = (images['images'] != usual).any(axis=(1, 2, 3))
  assert different.sum() == differing
  rule, orientation = options.get('crop', 'adm'), options.get('orientation', 'exif')
  np.testing.assert_array_equal(images['images'], by_hand(folder, rule, orientation))


def test_flips_mirror_the_crop(source):
  some, flips = np.array([5, 24, 5]), np.array([True, True, False])
  plain = source.gather(some)['images']
  found = source.gather(some, flips)['images']
  np.testing.assert_array_equal(found, [plain[0][:, ::-1], plain[1][:, ::-1], plain[2]])


@pytest.mark.parametrize('index', [-1, 26])
def test_indices_outside_are_refused(source, index):
  with pytest.raises(IndexError, match='has 26 examples'):
    source.gather(np.array([0, index]))


def write_bad(root):
  small.write_pictures(root, bad={5: b'no picture', 14: b''})
  return sources.open_source(f'folder:{root}', size=SIZE)


@pytest.mark.parametrize(('index', 'name'), [(5, 'ant/005.jpg'), (14, 'bee/014.jpg')])
def test_a_bad_picture_ends_with_its_name(tmp_path, index, name):
  source = write_bad(tmp_path / 'bad')
  assert len(source) == 24  # The listing knows nothing of it.
  source.gather(np.array([4, 6]))
  with pytest.raises(types.UserError) as error:
    source.gather(np.array([4, index, 6]))
  assert str(error.value).startswith(f'folder/bad: {name}: ')
  assert 'mend it, or make a store' in str(error.value)


def test_a_bad_picture_ends_the_batches_at_its_step(tmp_path):
  source = write_bad(tmp_path / 'bad')
  steps = pipeline.Steps(source=source, seed=0, batch_size=4)
  places = np.flatnonzero(np.isin(order.permutation(0, 0, 24), [5, 14]))
  with pipeline.batches(steps, start_step=0) as batches:
    for _ in range(places.min() // 4):
      next(batches)
    with pytest.raises(types.UserError, match='folder/bad: '):
      next(batches)


def test_a_picture_that_is_gone_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr(loading.time, 'sleep', lambda _: None)
  small.write_pictures(tmp_path, bad={})
  source = sources.open_source(f'folder:{tmp_path}', size=SIZE)
  (tmp_path / 'bee' / '010.jpg').unlink()
  with pytest.raises(types.UserError, match=r'bee/010\.jpg cannot be read: No such file'):
    source.gather(np.array([10]))


def test_a_picture_of_another_size_is_named_where_it_must_be_exact(folder):
  source = sources.open_source(f'folder:{folder}', size=SIZE, crop='exact')
  np.testing.assert_array_equal(source.gather(np.array([25]))['images'][0], by_hand(folder)[25])
  with pytest.raises(types.UserError, match=r'cat/024\.jpg: 40x24, expected exactly 16x16'):
    source.gather(np.array([24]))


def test_a_pickled_source_gathers_the_same(source):
  source.gather(np.array([0]))  # Its threads have started.
  other = pickle.loads(pickle.dumps(source))
  for key, array in source.gather(np.arange(26)).items():
    np.testing.assert_array_equal(other.gather(np.arange(26))[key], array)


def test_several_threads_gather_the_same(source):
  whole = source.gather(np.arange(26))['images']
  rng = np.random.default_rng(0)
  asked = [rng.integers(0, 26, 3) for _ in range(40)]
  with futures.ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda some: source.gather(some)['images'], asked))
  for some, images in zip(asked, found, strict=True):
    np.testing.assert_array_equal(images, whole[some])


@pytest.mark.parametrize('orientation', ['exif', 'stored'])
@pytest.mark.parametrize('crop', ['adm', 'center'])
def test_batches_are_those_of_a_store_of_the_same_pictures(folder, tmp_path, crop, orientation):
  asked = small.asked(
    tmp_path / 'store',
    source=f'folder:{folder}',
    vae=None,
    store='pixels',
    size=SIZE,
    crop=crop,
    orientation=orientation,
  )
  work.run(asked)
  options = {'size': SIZE, 'crop': crop, 'orientation': orientation}
  made = [
    pipeline.Steps(source=sources.open_source(spec, **options), seed=3, batch_size=8, flip=True)
    for spec in (f'folder:{folder}', f'store:{tmp_path}/store')
  ]
  for step in range(7):  # Two epochs.
    decoded, stored = (steps(step) for steps in made)
    assert set(decoded) == set(stored)
    for key, array in decoded.items():
      np.testing.assert_array_equal(stored[key], array)
      assert stored[key].dtype == array.dtype


def test_classes_and_splits_are_those_asked_for(folder, tmp_path):
  (tmp_path / 'train').symlink_to(folder)
  spec = f'folder:{tmp_path}/{{split}}'
  assert len(sources.open_source(spec, num_classes=3, size=SIZE)) == 26
  with pytest.raises(types.UserError, match='has 3 classes, expected 10'):
    sources.open_source(spec, num_classes=10, size=SIZE)
  with pytest.raises(types.UserError, match='test: no such folder'):
    sources.open_source(spec, 'test', size=SIZE)
  with pytest.raises(types.UserError, match="for the split 'test' write '{split}'"):
    sources.open_source(f'folder:{folder}', 'test', size=SIZE)
