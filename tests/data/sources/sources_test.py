"""Sources in arrays and of noise: contents, independence from the batch, and what they refuse."""

import re
import subprocess
import sys

import numpy as np
import pytest
from sklearn import datasets

from diversedit_jax.data import sources
from diversedit_jax.types import UserError

X = np.zeros((3, 4, 4, 1), np.float32)
Y = np.array([0, 1, 2])
NOT_FINITE = np.where(np.arange(3)[:, None, None, None] == 2, np.float32(np.nan), X)
PIXELS = np.arange(3 * 8 * 6 * 3, dtype=np.uint8).reshape(3, 8, 6, 3)
LATENTS = np.arange(3, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 2, 4), np.float32)


@pytest.fixture(scope='module')
def splits():
  return sources.digits('train'), sources.digits('test')


def write(folder, **arrays):
  path = folder / 'data.npz'
  np.savez(path, **arrays)
  return path


def test_digits_facts(splits):
  for source in splits:
    assert (source.space, source.shape, source.num_classes) == ('pixels', (8, 8, 1), 10)
    assert source.pixel_shape == (8, 8, 1)
  assert [len(source) for source in splits] == [1442, 355]
  assert splits[0].data.min() == -1 and splits[0].data.max() == 1
  for index in (-1, 1442):
    with pytest.raises(IndexError, match='1442 examples'):
      splits[0].gather(np.array([0, index]))


def test_digits_splits_partition_the_data(splits):
  """Both splits together are scikit-learn's, each once; the test split is each fifth of a class."""
  raw = datasets.load_digits()
  whole = sorted((*x.ravel(), y) for x, y in zip(raw.images, raw.target, strict=True))
  found = []
  for source in splits:
    batch = source.gather(np.arange(len(source)))
    assert batch['images'].dtype == np.float32 and batch['labels'].dtype == np.int32
    levels = (batch['images'] + 1) * 8
    found += [(*x.ravel(), y) for x, y in zip(levels, batch['labels'], strict=True)]
  assert sorted(found) == whole
  test = splits[1]
  for k in range(10):
    expected = raw.images[raw.target == k][4::5]
    np.testing.assert_array_equal((test.data[test.labels == k][..., 0] + 1) * 8, expected)


def test_synthetic_depends_on_the_index_and_the_split_alone():
  spec = 'synthetic:4x4x2+16x8x3:7:50'
  source = sources.open_source(spec)
  assert (source.shape, source.pixel_shape) == ((4, 4, 2), (16, 8, 3))
  assert (source.space, source.num_classes, len(source)) == ('latents', 7, 50)
  batch = source.gather(np.array([40, 3]))
  assert batch['pixels'].shape == (2, 16, 8, 3) and batch['pixels'].dtype == np.uint8
  for j, index in enumerate((40, 3)):
    alone = source.gather(np.array([index]))
    for name in ('latents', 'pixels'):
      np.testing.assert_array_equal(batch[name][j], alone[name][0])
    assert batch['labels'][j] == index % 7
  plain = sources.open_source('synthetic:4x4x2:7:50')
  assert plain.pixel_shape is None
  np.testing.assert_array_equal(plain.gather(np.array([40, 3]))['latents'], batch['latents'])
  test = sources.open_source(spec, 'test').gather(np.array([40]))
  for name in ('latents', 'pixels'):
    assert not np.array_equal(test[name][0], batch[name][0])


def test_synthetic_is_standard_gaussian():
  """64,000 numbers: standard errors 0.004 of the mean and 0.0028 of the deviation; 5 of them."""
  x = sources.synthetic((4, 4, 4), 10, 1000, seed=0).gather(np.arange(1000))['latents']
  assert x.dtype == np.float32
  assert abs(x.mean()) < 0.02 and abs(x.std() - 1) < 0.014
  flat = x.reshape(1000, -1)
  # Neighbouring examples share no numbers: correlation has standard error 0.004.
  assert abs(np.corrcoef(flat[:-1].ravel(), flat[1:].ravel())[0, 1]) < 0.02
  assert len(np.unique(x)) > 0.99 * x.size


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


@pytest.mark.parametrize('dtype', [np.float16, np.float32])
def test_arrays_latents_and_the_pixels_beside_them(tmp_path, dtype):
  latents = LATENTS.astype(dtype)
  path = write(tmp_path, latents=latents, labels=Y.astype(np.uint8), pixels=PIXELS)
  source = sources.arrays(path, num_classes=1000)
  assert (source.space, source.num_classes) == ('latents', 1000)
  assert (source.shape, source.pixel_shape) == ((2, 2, 4), (8, 6, 3))
  batch = source.gather(np.array([2, 0, 2]))
  assert batch['latents'].dtype == np.float32
  np.testing.assert_array_equal(batch['latents'], LATENTS[[2, 0, 2]])
  np.testing.assert_array_equal(batch['pixels'], PIXELS[[2, 0, 2]])
  np.testing.assert_array_equal(batch['labels'], [2, 0, 2])
  without = sources.open_source(f'arrays:{path}', pixels=False)
  assert without.pixel_shape is None and 'pixels' not in without.gather(np.array([0]))
  assert not source.can_mirror
  with pytest.raises(ValueError, match='cannot be mirrored'):
    source.gather(np.array([0]), np.array([True]))


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'labels': Y}, r"found arrays \['labels'\], expected `labels` and exactly one"),
    ({'images': X, 'latents': X, 'labels': Y}, 'exactly one'),
    ({'images': X.transpose(0, 3, 1, 2), 'labels': Y}, r'\(3, 1, 4, 4\), expected \(n, H, W, 1 or'),
    ({'images': X.astype(np.float64), 'labels': Y}, r'float64, expected uint8 or float32.*astype'),
    (
      {'images': np.zeros((3, 3, 8, 8), np.uint8), 'labels': Y},
      'by `python .*transpose.0, 2',
    ),
    ({'latents': X, 'labels': Y, 'layout': 'HWC'}, "`layout` is 'HWC', expected 'NHWC'"),
    ({'images': X + 200, 'labels': Y}, r'values in \[200, 200\], expected \[-1, 1\]'),
    ({'latents': NOT_FINITE, 'labels': Y}, 'not finite, first in example 2'),
    ({'images': X, 'labels': Y[:2]}, r'int64 \(2,\), expected integers \(3,\)'),
    ({'images': X, 'labels': Y - 1}, r'\[-1, 1\], expected \[0, 2\)'),
    ({'images': X[:0], 'labels': Y[:0]}, 'all positive'),
    ({'images': X, 'labels': np.array([0, 1, None])}, 'plain arrays'),
    ({'latents': X, 'labels': Y, 'pixels': PIXELS[:2]}, r'`pixels` is .*, expected uint8 \(3, H'),
  ],
)
def test_arrays_refusals_name_the_file(tmp_path, arrays, message):
  path = write(tmp_path, **arrays)
  with pytest.raises(UserError, match=message) as error:
    sources.arrays(path)
  assert str(path) in str(error.value)


NORMAL = np.random.default_rng(0).standard_normal((3, 32, 32, 4)).astype(np.float32)
FIRST = NORMAL.transpose(0, 3, 1, 2)
TOGETHER = lambda spread: np.concatenate([NORMAL, spread], axis=-1)


@pytest.mark.parametrize(
  ('latents', 'expected', 'message'),
  [
    (FIRST, NORMAL, 'channels first, 32x32 with 4 channels'),
    ('NCHW', NORMAL, 'channels first, 32x32 with 4 channels'),
    (FIRST[..., :24], NORMAL[:, :, :24], 'channels first, 32x24 with 4 channels'),
    (TOGETHER(NORMAL), None, 'moments, 4 means and as many logarithms'),
    (TOGETHER(0 * NORMAL - 100), 0.18215 * NORMAL, 'moments, 4 means and as many logarithms'),
    (TOGETHER(abs(NORMAL)), None, 'moments, 4 means and as many standard deviations'),
    (
      TOGETHER(0 * NORMAL - 100).transpose(0, 3, 1, 2),
      0.18215 * NORMAL,
      'first.*like moments',
    ),
  ],
)
def test_latents_of_another_layout_are_refused_with_the_line_that_turns_them(
  tmp_path, latents, expected, message
):
  """The line is run, and so is the one that says that they are right."""
  stated = {}
  if isinstance(latents, str):  # Which the file says itself.
    stated, latents = {'layout': latents}, FIRST
  path = write(tmp_path, latents=latents, labels=Y, **stated)
  with pytest.raises(UserError, match=f'look like .*{message}') as error:
    sources.arrays(path)
  turning, stating = re.findall('`(python -c .*?)`', str(error.value))
  made = tmp_path / 'data-new.npz'
  subprocess.run(turning.replace('python', sys.executable, 1), shell=True, check=True)
  found = sources.arrays(made).data
  if expected is not None:
    np.testing.assert_allclose(found, expected, atol=1e-6)
  assert found.shape[-1] == 4 and found.dtype == np.float32
  subprocess.run(stating.replace('python', sys.executable, 1), shell=True, check=True)
  np.testing.assert_array_equal(sources.arrays(made).data, latents)


@pytest.mark.parametrize('shape', [(32, 32, 4), (32, 24, 4), (8, 8, 32), (16, 32, 16), (4, 4, 16)])
def test_latents_of_our_layout_are_taken(tmp_path, shape):
  x = np.random.default_rng(0).standard_normal((3, *shape)).astype(np.float32)
  assert sources.arrays(write(tmp_path, latents=x, labels=Y)).shape == shape


def test_arrays_refuses_other_files(tmp_path):
  with pytest.raises(UserError, match='no such file'):
    sources.arrays(tmp_path / 'absent.npz')
  (tmp_path / 'text.npz').write_text('PK\3\4 cut short')
  with pytest.raises(UserError, match='cannot be read'):
    sources.arrays(tmp_path / 'text.npz')
  np.save(tmp_path / 'single.npy', X)
  with pytest.raises(UserError, match='a single array'):
    sources.arrays(tmp_path / 'single.npy')


def test_open_source(tmp_path, splits):
  assert len(sources.open_source('digits', 'test')) == len(splits[1])
  source = sources.open_source('synthetic:32x16x4:1000')
  assert (source.shape, source.num_classes, len(source)) == ((32, 16, 4), 1000, 1_281_167)
  np.savez(tmp_path / 'test.npz', images=X, labels=Y)
  assert len(sources.open_source(f'arrays:{tmp_path}/{{split}}.npz', 'test')) == 3
  assert len(sources.open_source(f'arrays:{tmp_path}/test.npz', num_classes=9)) == 3


@pytest.mark.parametrize(
  ('spec', 'split', 'classes', 'message'),
  [
    ('array:x.npz', 'train', None, "did you mean 'arrays'"),
    (__file__, 'train', None, 'a path without its kind; write folder:'),
    ('digits:8', 'train', None, 'malformed'),
    ('arrays', 'train', None, 'malformed'),
    ('digits', 'tets', None, "did you mean 'test'"),
    ('digits', 'train', 1000, 'has 10 classes, expected data.num_classes=1000'),
    ('synthetic:32x32x4', 'train', None, 'malformed'),
    ('synthetic:4x4x2+8x0x3:10', 'train', None, 'three positive sizes'),
    ('synthetic:4x4x2+8x8x3+8x8x3:10', 'train', None, 'malformed'),
    ('arrays:some.npz', 'test', None, 'names one split'),
    ('folder:some', 'train', None, 'set data.size'),
  ],
)
def test_open_source_refusals(spec, split, classes, message):
  with pytest.raises(UserError, match=message):
    sources.open_source(spec, split, classes)
