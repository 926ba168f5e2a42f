"""Pictures decoded as they are asked for: the crop of each, their order, a bad one, a store's."""

import pickle

from helpers import small
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import types
from diversedit_jax.data import pictures, pipeline, sources
from diversedit_jax.preparation import work

SIZE = 16


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """24 pictures in classes; one more in the last, turned by a camera, and one of its own size."""
  root = tmp_path_factory.mktemp('folder')
  small.write_pictures(root, bad={})
  exif = Image.Exif()
  exif[274] = 6  # The orientation: a quarter turn.
  levels = np.random.default_rng(0).integers(0, 256, (40, 24, 3), np.uint8)
  Image.fromarray(levels).save(root / 'cat' / '024.jpg', exif=exif)
  Image.fromarray(levels[:SIZE, :SIZE]).save(root / 'cat' / '025.png')
  return root


@pytest.fixture(scope='module')
def source(folder):
  return sources.open_source(f'folder:{folder}', size=SIZE)


def by_hand(folder, rule='adm', orientation='exif'):
  """All pictures in the order of their keys, decoded and cropped one by one."""
  files = sorted(path for path in folder.rglob('*') if path.is_file())
  decoded = [pictures.decode.decode(path.read_bytes(), orientation) for path in files]
  return np.stack([pictures.crop.crop(image, SIZE, rule) for image in decoded])


def test_examples_are_the_pictures_in_the_order_of_their_keys(source, folder):
  assert (source.name, source.space) == (f'folder/{folder.name}', 'pixels')
  assert source.shape == source.pixel_shape == (SIZE, SIZE, 3)
  assert source.can_mirror and source.scaling is None and source.num_classes == 3
  batch = source.gather(np.arange(26))
  assert set(batch) == {'images', 'labels'}
  assert batch['images'].dtype == np.uint8 and batch['labels'].dtype == np.int32
  expected = by_hand(folder)
  np.testing.assert_array_equal(batch['images'], expected)
  np.testing.assert_array_equal(batch['labels'], source.labels)
  assert [source.name_of(i) for i in (0, 24)] == ['ant/000.jpg', 'cat/024.jpg']
  some = np.array([25, 3, 3, 0])
  np.testing.assert_array_equal(source.gather(some)['images'], expected[some])
  np.testing.assert_array_equal(source.gather(some)['labels'], source.labels[some])


def test_a_bad_picture_ends_with_its_name(tmp_path):
  small.write_pictures(tmp_path / 'bad', bad={5: b'no picture', 14: b''})
  source = sources.open_source(f'folder:{tmp_path}/bad', size=SIZE)
  assert len(source) == 24  # The listing knows nothing of it.
  source.gather(np.array([4, 6]))
  with pytest.raises(types.UserError, match='folder/bad: ant/005.jpg: no JPEG.* make a store'):
    source.gather(np.array([4, 5, 6]))


def test_a_pickled_source_gathers_the_same(source):
  source.gather(np.array([0]))  # Its threads have started.
  other = pickle.loads(pickle.dumps(source))
  for key, array in source.gather(np.arange(26)).items():
    np.testing.assert_array_equal(other.gather(np.arange(26))[key], array)


@pytest.mark.parametrize(('crop', 'orientation'), [('adm', 'exif'), ('center', 'stored')])
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
  images = made[0].source.gather(np.arange(26))['images']
  np.testing.assert_array_equal(images, by_hand(folder, crop, orientation))
  for step in range(7):  # Two epochs.
    decoded, stored = (steps(step) for steps in made)
    assert set(decoded) == set(stored)
    for key, array in decoded.items():
      np.testing.assert_array_equal(stored[key], array)
      assert stored[key].dtype == array.dtype
