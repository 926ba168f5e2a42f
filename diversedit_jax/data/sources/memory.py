"""Where examples come from: frozen sources that give any set of indices as numpy arrays.

A source has a length, facts (`name`, `space`, `shape`, `num_classes`, `pixel_shape`) and
`gather(indices)`, which returns `{'images' or 'latents': float32 [n, H, W, C], 'labels': int32
[n]}`. The key is 'images' for pixels in [-1, 1] and 'latents' for latents that are already scaled
for the model; beside latents there may be 'pixels', uint8, for encoders.
"""

import dataclasses
import os
import pathlib
from typing import Literal, Protocol
import zipfile

import numpy as np

from diversedit_jax import trees
from diversedit_jax.types import UserError

Space = Literal['pixels', 'latents']
KEYS = {'pixels': 'images', 'latents': 'latents'}
KINDS = ('digits', 'arrays', 'synthetic')
SPLITS = ('train', 'test')
# Sizes of ImageNet, so that epochs of a synthetic run mean what they mean in the papers.
SYNTHETIC_SIZE = {'train': 1_281_167, 'test': 50_000}


class Source(Protocol):
  """What the pipeline and the model's construction need to know about data."""

  name: str
  space: Space
  shape: tuple[int, int, int]
  num_classes: int
  pixel_shape: tuple[int, int, int] | None

  def __len__(self) -> int: ...

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]: ...


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource:
  """Examples held in memory: `data` uint8 or floating [n, H, W, C], `labels` integer [n].

  uint8 data become x / 127.5 - 1 when gathered; floating values are taken as they are. `pixels`
  uint8 [n, H, W, C] may lie beside latents.
  """

  name: str
  space: Space
  num_classes: int
  data: np.ndarray
  labels: np.ndarray
  pixels: np.ndarray | None = None

  @property
  def shape(self) -> tuple[int, int, int]:
    return self.data.shape[1:]

  @property
  def pixel_shape(self) -> tuple[int, int, int] | None:
    """(H, W, C) of the pixels, be they the data or beside them."""
    if self.space == 'pixels':
      return self.shape
    return None if self.pixels is None else self.pixels.shape[1:]

  def __len__(self) -> int:
    return len(self.data)

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Batch of the examples at `indices` [n], each in [0, len)."""
    _check_indices(self.name, indices, len(self))
    x_NHWC = self.data[indices].astype(np.float32)
    if self.data.dtype == np.uint8:
      x_NHWC = x_NHWC / np.float32(127.5) - np.float32(1)
    beside = {} if self.pixels is None else {'pixels': self.pixels[indices]}
    return {KEYS[self.space]: x_NHWC, 'labels': self.labels[indices].astype(np.int32), **beside}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticSource:
  """Standard Gaussian latents computed from the index: nothing to learn, nothing to store.

  For benchmarks and dry runs. Example i has label i mod num_classes and, with a `pixel_shape`,
  uniform noise for pixels.
  """

  name: str
  shape: tuple[int, int, int]
  num_classes: int
  n: int
  seed: int
  pixel_shape: tuple[int, int, int] | None = None
  space: Space = 'latents'

  def __post_init__(self) -> None:
    shapes = [shape for shape in (self.shape, self.pixel_shape) if shape is not None]
    fits = all(len(shape) == 3 and min(shape) >= 1 for shape in shapes)
    if not fits or self.num_classes < 1 or self.n < 1:
      raise UserError(
        'a synthetic source needs a shape of three positive sizes (H, W, C), num_classes >= 1 and '
        f'n >= 1; got shapes {shapes}, num_classes={self.num_classes}, n={self.n}'
      )
    if not 0 <= self.seed < 2**63:
      raise UserError(f'the seed of a synthetic source must lie in [0, 2**63); got {self.seed}')

  def __len__(self) -> int:
    return self.n

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Batch of the examples at `indices` [n], each in [0, len)."""
    _check_indices(self.name, indices, len(self))
    x_NHWC = np.empty((len(indices), *self.shape), np.float32)
    beside = {}
    if self.pixel_shape is not None:
      beside['pixels'] = np.empty((len(indices), *self.pixel_shape), np.uint8)
    for i, index in enumerate(indices):
      # The counter's high words name the example; its low words count within the example.
      generator = np.random.Generator(
        np.random.Philox(key=self.seed, counter=[0, 0, 0, int(index)])
      )
      generator.standard_normal(dtype=np.float32, out=x_NHWC[i])
      for pixels in beside.values():
        pixels[i] = generator.integers(0, 256, self.pixel_shape, np.uint8)
    return {'latents': x_NHWC, 'labels': (indices % self.num_classes).astype(np.int32), **beside}


def digits(split: str) -> ArraySource:
  """Handwritten digits of scikit-learn: 1,797 grey 8x8 images, x / 8 - 1 in [-1, 1], 10 classes.

  Every fifth image of each class, in the file's order, is the test split (355 images); the other
  1,442 are the train split. Both hold the same writers.

  Raises:
    UserError: for a split other than 'train' and 'test'.
  """
  _check_split(split)
  from sklearn import datasets  # Here, because its import takes a second that others need not pay.

  raw = datasets.load_digits()
  labels = raw.target.astype(np.int32)
  rank_in_class = np.empty_like(labels)
  for k in range(10):
    members = np.flatnonzero(labels == k)
    rank_in_class[members] = np.arange(len(members))
  chosen = (rank_in_class % 5 == 4) == (split == 'test')
  x_NHWC = (raw.images[chosen] / 8 - 1).astype(np.float32)[..., None]
  return ArraySource(
    name=f'digits/{split}', space='pixels', num_classes=10, data=x_NHWC, labels=labels[chosen]
  )


def arrays(path: str | os.PathLike[str], num_classes: int | None = None) -> ArraySource:
  """Examples of an `.npz` file, read whole into memory, without executing pickled code.

  The file holds `labels` integer [n] and either `images` [n, H, W, C], uint8 or float32 in
  [-1, 1], or `latents` [n, h, w, c], float16 or float32, already scaled for the model; beside
  latents there may be `pixels` uint8 [n, H, W, 3], for encoders.

  Args:
    path: of the file.
    num_classes: labels must lie below it; None takes the largest label plus one.

  Raises:
    UserError: naming the file, the array, what was found and what was expected.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f'{path}: no such file; expected an .npz with images or latents, and labels')
  data_name, data, labels, pixels = _read_npz(path)
  _check_data(path, data_name, data)
  if pixels is not None and not (
    pixels.dtype == np.uint8 and pixels.ndim == 4 and 0 not in pixels.shape
    and (len(pixels), pixels.shape[-1]) == (len(data), 3)
  ):  # fmt: skip
    raise UserError(
      f'{path}: `pixels` is {pixels.dtype.name} {pixels.shape}, expected uint8 '
      f'({len(data)}, H, W, 3)'
    )
  classes = _check_labels(path, labels, len(data), num_classes)
  space = 'pixels' if data_name == 'images' else 'latents'
  name = f'arrays/{path.stem}'
  return ArraySource(
    name=name, space=space, num_classes=classes, data=data, labels=labels, pixels=pixels
  )


def synthetic(
  shape: tuple[int, int, int], num_classes: int, n: int, seed: int,
  pixel_shape: tuple[int, int, int] | None = None,
) -> SyntheticSource:  # fmt: skip
  """Gaussian latents [*shape] as a function of seed and index; see `SyntheticSource`."""
  name = f'synthetic/{"x".join(map(str, shape))}'
  return SyntheticSource(
    name=name, shape=tuple(shape), num_classes=num_classes, n=n, seed=seed, pixel_shape=pixel_shape
  )


def open_source(spec: str, split: str = 'train', num_classes: int | None = None) -> Source:
  """Source of a spec string.

    digits                             scikit-learn's digits
    arrays:PATH                        an .npz file; '{split}' in PATH becomes 'train' or 'test'
    synthetic:HxWxC:CLASSES[:N]        Gaussian latents; N defaults to the size of ImageNet's split
    synthetic:HxWxC+HxWxC:CLASSES[:N]  with pixels beside them, of the second shape

  Args:
    spec: as above.
    split: 'train' or 'test'.
    num_classes: demanded of the source; None accepts what the source has.

  Raises:
    UserError: for an unknown kind or split, a malformed spec, or another number of classes.
  """
  _check_split(split)
  kind, _, rest = spec.partition(':')
  if kind == 'digits' and not rest:
    source: Source = digits(split)
  elif kind == 'arrays' and rest:
    if '{split}' not in rest and split != 'train':
      raise UserError(
        f'data {spec!r} names one file, which is the train split; for the {split!r} split write '
        "'{split}' in the path, as in arrays:FOLDER/{split}.npz"
      )
    source = arrays(rest.replace('{split}', split), num_classes)
  elif kind == 'synthetic':
    source = _parse_synthetic(spec, rest, split)
  elif kind in KINDS:
    raise UserError(f"data {spec!r} is malformed; expected 'digits' or 'arrays:PATH'")
  else:
    raise UserError(f'unknown data source {spec!r}{trees.did_you_mean(kind, KINDS)}')
  if num_classes is not None and source.num_classes != num_classes:
    raise UserError(f'data {spec!r} has {source.num_classes} classes, expected {num_classes}')
  return source


def _parse_synthetic(spec: str, rest: str, split: str) -> SyntheticSource:
  try:
    shape, *numbers = rest.split(':')
    shape, *pixel_shapes = (tuple(int(n) for n in s.split('x')) for s in shape.split('+'))
    (height, width, channels), (pixel_shape,) = shape, pixel_shapes or [None]
    num_classes, n = (int(x) for x in (numbers if len(numbers) > 1 else [*numbers, '0']))
  except ValueError as error:
    raise UserError(
      f"data {spec!r} is malformed; expected 'synthetic:HxWxC:CLASSES' or "
      "'synthetic:HxWxC:CLASSES:N', as in synthetic:32x32x4:1000"
    ) from error
  n = n if len(numbers) > 1 else SYNTHETIC_SIZE[split]
  return synthetic(
    (height, width, channels), num_classes, n, seed=SPLITS.index(split), pixel_shape=pixel_shape
  )


def _check_split(split: str) -> None:
  if split not in SPLITS:
    raise UserError(f'unknown split {split!r}{trees.did_you_mean(split, SPLITS)}')


def _check_indices(name: str, indices: np.ndarray, n: int) -> None:
  # Without this, numpy would take negative indices from the end.
  if len(indices) and not (np.min(indices) >= 0 and np.max(indices) < n):
    raise IndexError(
      f'{name} has {n} examples; got indices from {np.min(indices)} to {np.max(indices)}'
    )


def _read_npz(
  path: pathlib.Path,
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray | None]:
  """'images' or 'latents', that array, the labels, and the pixels beside latents if any."""
  try:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
      raise ValueError('it holds a single array')
    with loaded as file:
      wanted = [name for name in ('images', 'latents') if name in file.files]
      if len(wanted) == 1 and 'labels' in file.files:
        beside = wanted[0] == 'latents' and 'pixels' in file.files
        return wanted[0], file[wanted[0]], file['labels'], file['pixels'] if beside else None
      found = sorted(file.files)
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f'{path}: cannot be read as an .npz of plain arrays: {error}') from error
  raise UserError(
    f'{path}: found arrays {found}, expected `labels` and exactly one of `images` and `latents`'
  )


def _check_data(path: pathlib.Path, name: str, data: np.ndarray) -> None:
  kinds = ('uint8', 'float32') if name == 'images' else ('float16', 'float32')
  if data.dtype.name not in kinds:
    raise UserError(f'{path}: `{name}` is {data.dtype.name}, expected {" or ".join(kinds)}')
  if data.ndim != 4 or 0 in data.shape:
    raise UserError(f'{path}: `{name}` has shape {data.shape}, expected (n, H, W, C), all positive')
  if name == 'images' and data.shape[-1] not in (1, 3):
    raise UserError(f'{path}: `images` has shape {data.shape}, expected (n, H, W, 1 or 3)')
  if data.dtype == np.uint8:
    return
  if not np.isfinite(data).all():
    bad = int(np.argmin(np.isfinite(data).all(axis=(1, 2, 3))))
    raise UserError(f'{path}: `{name}` has values that are not finite, first in example {bad}')
  if name == 'images' and (data.min() < -1 or data.max() > 1):
    raise UserError(
      f'{path}: `images` is float32 with values in [{data.min():g}, {data.max():g}], '
      'expected [-1, 1]'
    )


def _check_labels(path: pathlib.Path, labels: np.ndarray, n: int, num_classes: int | None) -> int:
  if labels.dtype.kind not in 'iu' or labels.shape != (n,):
    raise UserError(
      f'{path}: `labels` is {labels.dtype.name} {labels.shape}, expected integers ({n},)'
    )
  classes = int(labels.max()) + 1 if num_classes is None else num_classes
  if labels.min() < 0 or labels.max() >= classes:
    raise UserError(
      f'{path}: `labels` lie in [{labels.min()}, {labels.max()}], expected [0, {classes})'
    )
  return classes
