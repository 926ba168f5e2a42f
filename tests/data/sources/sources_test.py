"""Sources: contents, independence from the batch, and what they refuse."""

import numpy as np
import pytest
from sklearn import datasets

from diversedit_jax.data import sources
from diversedit_jax.types import UserError


@pytest.fixture(scope='module')
def splits():
  return sources.digits('train'), sources.digits('test')


def test_digits_facts(splits):
  for source in splits:
    assert (source.space, source.shape, source.num_classes) == ('pixels', (8, 8, 1), 10)
  assert [len(source) for source in splits] == [1442, 355]


def test_digits_splits_partition_the_data(splits):
  """Images and labels of both splits together are scikit-learn's, each once."""
  raw = datasets.load_digits()
  whole = sorted((*x.ravel(), y) for x, y in zip(raw.images, raw.target, strict=True))
  found = []
  for source in splits:
    batch = source.gather(np.arange(len(source)))
    levels = (batch['images'] + 1) * 8
    found += [(*x.ravel(), y) for x, y in zip(levels, batch['labels'], strict=True)]
  assert sorted(found) == whole


def test_digits_test_split_is_every_fifth_of_a_class(splits):
  raw = datasets.load_digits()
  for k in range(10):
    expected = raw.images[raw.target == k][4::5]
    test = splits[1]
    np.testing.assert_array_equal((test.data[test.labels == k][..., 0] + 1) * 8, expected)


def test_digits_batch(splits):
  batch = splits[0].gather(np.array([3, 3, 0]))
  assert set(batch) == {'images', 'labels'}
  assert batch['images'].dtype == np.float32 and batch['labels'].dtype == np.int32
  assert batch['images'].shape == (3, 8, 8, 1)
  assert splits[0].data.min() == -1 and splits[0].data.max() == 1
  np.testing.assert_array_equal(batch['images'][0], batch['images'][1])


def test_indices_out_of_range_are_refused(splits):
  for index in (-1, 1442):
    with pytest.raises(IndexError, match='1442 examples'):
      splits[0].gather(np.array([0, index]))


def test_synthetic_depends_on_the_index_alone():
  source = sources.synthetic((4, 4, 2), 7, 1000, seed=3)
  batch = source.gather(np.array([500, 2, 999]))
  for j, index in enumerate((500, 2, 999)):
    alone = source.gather(np.array([index]))
    np.testing.assert_array_equal(batch['latents'][j], alone['latents'][0])
    assert batch['labels'][j] == index % 7
  other = sources.synthetic((4, 4, 2), 7, 1000, seed=4).gather(np.array([500]))
  assert not np.array_equal(batch['latents'][0], other['latents'][0])


def test_synthetic_is_standard_gaussian():
  """64,000 numbers: standard errors 0.004 of the mean and 0.0028 of the deviation; 5 of them."""
  x = sources.synthetic((4, 4, 4), 10, 1000, seed=0).gather(np.arange(1000))['latents']
  assert x.dtype == np.float32
  assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.014
  flat = x.reshape(1000, -1)
  # Neighbouring examples share no numbers: correlation has standard error 0.004.
  assert abs(np.corrcoef(flat[:-1].ravel(), flat[1:].ravel())[0, 1]) < 0.02
  assert len(np.unique(x)) > 0.99 * x.size


def write(folder, **arrays):
  path = folder / 'data.npz'
  np.savez(path, **arrays)
  return path


def test_arrays_uint8_images(tmp_path):
  x = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3) * 2
  source = sources.arrays(write(tmp_path, images=x, labels=np.array([4, 0])))
  assert (source.space, source.shape, source.num_classes) == ('pixels', (4, 5, 3), 5)
  batch = source.gather(np.array([1, 0]))
  assert batch['images'].dtype == np.uint8 and batch['labels'].dtype == np.int32
  np.testing.assert_array_equal(batch['images'], x[::-1])
  np.testing.assert_array_equal(batch['labels'], [0, 4])
  mirrored = source.gather(np.array([1, 0]), np.array([True, False]))['images']
  np.testing.assert_array_equal(mirrored, [x[1, :, ::-1], x[0]])


def test_latents_have_no_mirror_images(tmp_path):
  source = sources.arrays(write(tmp_path, latents=LATENTS, labels=Y))
  assert not source.can_mirror and not sources.synthetic((4, 4, 2), 7, 9, seed=3).can_mirror
  with pytest.raises(ValueError, match='cannot be mirrored'):
    source.gather(np.array([0]), np.array([True]))


def test_pixels_beside_latents_are_read_only_where_they_are_wanted(tmp_path):
  path = write(tmp_path, latents=LATENTS, labels=Y, pixels=PIXELS)
  for spec in (f'arrays:{path}', 'synthetic:4x4x2+16x8x3:7:50'):
    assert 'pixels' in sources.open_source(spec).gather(np.array([0]))
    without = sources.open_source(spec, pixels=False)
    assert without.pixel_shape is None and 'pixels' not in without.gather(np.array([0]))


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_arrays_latents(tmp_path, dtype):
  x = np.linspace(-3, 3, 32).reshape(2, 2, 2, 4).astype(dtype)
  path = write(tmp_path, latents=x, labels=np.array([1, 0], np.uint8))
  source = sources.arrays(path, num_classes=1000)
  assert (source.space, source.num_classes) == ('latents', 1000)
  batch = source.gather(np.array([0, 1]))
  assert set(batch) == {'latents', 'labels'} and batch['latents'].dtype == np.float32
  np.testing.assert_array_equal(batch['latents'], x.astype(np.float32))


X = np.zeros((3, 4, 4, 1), np.float32)
Y = np.array([0, 1, 2])
NOT_FINITE = np.where(np.arange(3)[:, None, None, None] == 2, np.float32(np.nan), X)


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'labels': Y}, r"found arrays \['labels'\], expected `labels` and exactly one"),
    ({'images': X}, r"found arrays \['images'\]"),
    ({'images': X, 'latents': X, 'labels': Y}, 'exactly one'),
    ({'images': X[0], 'labels': Y}, r'`images` has shape \(4, 4, 1\), expected \(n, H, W, C\)'),
    ({'images': X.transpose(0, 3, 1, 2), 'labels': Y}, r'\(3, 1, 4, 4\), expected \(n, H, W, 1 or'),
    ({'images': X.astype(np.float64), 'labels': Y}, 'float64, expected uint8 or float32'),
    ({'latents': X.astype(np.uint8), 'labels': Y}, 'uint8, expected float16 or float32'),
    ({'images': X + 200, 'labels': Y}, r'values in \[200, 200\], expected \[-1, 1\]'),
    ({'latents': NOT_FINITE, 'labels': Y}, 'not finite, first in example 2'),
    ({'images': X, 'labels': Y[:2]}, r'int64 \(2,\), expected integers \(3,\)'),
    ({'images': X, 'labels': Y + 0.5}, 'float64'),
    ({'images': X, 'labels': Y - 1}, r'\[-1, 1\], expected \[0, 2\)'),
    ({'images': X[:0], 'labels': Y[:0]}, 'all positive'),
    ({'images': X, 'labels': np.array([0, 1, None])}, 'plain arrays'),
  ],
)
def test_arrays_refusals_name_the_file(tmp_path, arrays, message):
  path = write(tmp_path, **arrays)
  with pytest.raises(UserError, match=message) as error:
    sources.arrays(path)
  assert str(path) in str(error.value)


def test_arrays_refuses_labels_outside_the_classes(tmp_path):
  path = write(tmp_path, images=X, labels=Y)
  with pytest.raises(UserError, match=r'\[0, 2\], expected \[0, 2\)'):
    sources.arrays(path, num_classes=2)


def test_arrays_refuses_other_files(tmp_path):
  with pytest.raises(UserError, match='no such file'):
    sources.arrays(tmp_path / 'absent.npz')
  for content in ('', 'hello', 'PK\3\4 cut short'):
    (tmp_path / 'text.npz').write_text(content)
    with pytest.raises(UserError, match='cannot be read'):
      sources.arrays(tmp_path / 'text.npz')
  np.save(tmp_path / 'single.npy', X)
  with pytest.raises(UserError, match='a single array'):
    sources.arrays(tmp_path / 'single.npy')


def test_open_source(tmp_path, splits):
  assert len(sources.open_source('digits', 'test')) == len(splits[1])
  source = sources.open_source('synthetic:32x16x4:1000')
  assert (source.shape, source.num_classes, len(source)) == ((32, 16, 4), 1000, 1_281_167)
  assert len(sources.open_source('synthetic:8x8x4:10:77')) == 77
  np.savez(tmp_path / 'test.npz', images=X, labels=Y)
  assert len(sources.open_source(f'arrays:{tmp_path}/{{split}}.npz', 'test')) == 3
  assert len(sources.open_source(f'arrays:{tmp_path}/test.npz', num_classes=9)) == 3


def test_synthetic_splits_differ():
  train, test = (sources.open_source('synthetic:4x4x4:10', split) for split in ('train', 'test'))
  i = np.array([5])
  assert not np.array_equal(train.gather(i)['latents'], test.gather(i)['latents'])


@pytest.mark.parametrize(
  ('spec', 'split', 'classes', 'message'),
  [
    ('digit', 'train', None, "did you mean 'digits'"),
    ('array:x.npz', 'train', None, "did you mean 'arrays'"),
    ('cats', 'train', None, 'known: arrays, csv, digits, folder, store'),
    ('digits:8', 'train', None, 'malformed'),
    ('arrays', 'train', None, 'malformed'),
    ('digits', 'tets', None, "did you mean 'test'"),
    ('digits', 'train', 1000, 'has 10 classes, expected 1000'),
    ('synthetic:32x32:1000', 'train', None, 'malformed'),
    ('synthetic:32x32x4', 'train', None, 'malformed'),
    ('synthetic:0x32x4:10', 'train', None, 'three positive sizes'),
    ('arrays:some.npz', 'test', None, 'names one split'),
    ('store:some', 'test', None, 'names one split'),
    ('store:', 'train', None, 'malformed'),
    ('folder:some', 'train', None, 'set data.size'),
    ('tfds:cifar10', 'train', None, 'set data.size'),
  ],
)
def test_open_source_refusals(spec, split, classes, message):
  with pytest.raises(UserError, match=message):
    sources.open_source(spec, split, classes)


# Pixels beside latents.

PIXELS = np.arange(3 * 8 * 6 * 3, dtype=np.uint8).reshape(3, 8, 6, 3)
LATENTS = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 4), np.float32)


def test_pixels_follow_their_latents(tmp_path):
  path = write(tmp_path, latents=LATENTS, labels=Y, pixels=PIXELS)
  source = sources.arrays(path)
  assert (source.space, source.shape, source.pixel_shape) == ('latents', (2, 2, 4), (8, 6, 3))
  batch = source.gather(np.array([2, 0, 2]))
  assert set(batch) == {'latents', 'labels', 'pixels'} and batch['pixels'].dtype == np.uint8
  np.testing.assert_array_equal(batch['latents'][:, 0, 0, 0], [2, 0, 2])
  np.testing.assert_array_equal(batch['pixels'], PIXELS[[2, 0, 2]])
  np.testing.assert_array_equal(batch['labels'], [2, 0, 2])


def test_pixel_shape_is_that_of_the_data_where_these_are_pixels(tmp_path, splits):
  assert splits[0].pixel_shape == (8, 8, 1)
  assert sources.arrays(write(tmp_path, latents=LATENTS, labels=Y)).pixel_shape is None
  assert sources.arrays(write(tmp_path, images=PIXELS, labels=Y)).pixel_shape == (8, 6, 3)


@pytest.mark.parametrize(
  'pixels',
  [
    PIXELS.astype(np.float32),
    PIXELS[:2],
    PIXELS[..., 0],
    PIXELS[..., :2],
    PIXELS[:, :0],
    PIXELS[0],
  ],
  ids=['float32', 'fewer', 'rank', 'channels', 'empty', 'one'],
)
def test_other_pixels_are_refused(tmp_path, pixels):
  path = write(tmp_path, latents=LATENTS, labels=Y, pixels=pixels)
  with pytest.raises(UserError) as error:
    sources.arrays(path)
  found = f'{path}: `pixels` is {pixels.dtype.name} {pixels.shape}, expected uint8 (3, H, W, 3)'
  assert str(error.value) == found


def test_synthetic_pixels_depend_on_the_index_and_leave_the_latents():
  source = sources.open_source('synthetic:4x4x2+16x8x3:7:50')
  assert (source.shape, source.pixel_shape) == ((4, 4, 2), (16, 8, 3))
  assert (source.space, source.num_classes, len(source)) == ('latents', 7, 50)
  batch = source.gather(np.array([40, 3]))
  assert batch['pixels'].shape == (2, 16, 8, 3) and batch['pixels'].dtype == np.uint8
  for j, index in enumerate((40, 3)):
    alone = source.gather(np.array([index]))
    np.testing.assert_array_equal(batch['pixels'][j], alone['pixels'][0])
  plain = sources.open_source('synthetic:4x4x2:7:50')
  assert plain.pixel_shape is None
  np.testing.assert_array_equal(plain.gather(np.array([40, 3]))['latents'], batch['latents'])
  test = sources.open_source('synthetic:4x4x2+16x8x3:7:50', 'test').gather(np.array([40]))
  assert not np.array_equal(test['pixels'][0], batch['pixels'][0])


def test_synthetic_pixels_are_uniform_noise():
  """19,200 values of 256: the mean has a standard error of 0.53; 5 of them."""
  x = sources.open_source('synthetic:1x1x1+8x8x3:2').gather(np.arange(100))['pixels']
  assert x.min() == 0 and x.max() == 255
  assert abs(x.mean() - 127.5) < 5 * 0.54
  assert abs(np.corrcoef(x[:-1].ravel(), x[1:].ravel())[0, 1]) < 5 / np.sqrt(x.size)


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('synthetic:4x4x2+8x8:10', 'three positive sizes'),
    ('synthetic:4x4x2+8x0x3:10', 'three positive sizes'),
    ('synthetic:4x4x2+8x8x3+8x8x3:10', 'malformed'),
    ('synthetic:4x4x2+:10', 'malformed'),
  ],
)
def test_malformed_synthetic_pixels_are_refused(spec, message):
  with pytest.raises(UserError, match=message):
    sources.open_source(spec)
