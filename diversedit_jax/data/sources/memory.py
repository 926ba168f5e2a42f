"""Sources in memory: scikit-learn's digits, and the arrays of an .npz file."""

import dataclasses
import importlib.util
import os
import pathlib
import zipfile

from absl import logging
import numpy as np

from diversedit_jax import paths
from diversedit_jax.data import latents
from diversedit_jax.data.pictures import remarks
from diversedit_jax.data.sources import base, layouts
from diversedit_jax.types import UserError


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ArraySource(base.Source):
  """Examples held in memory: `data` uint8 or floating [n, H, W, C], `labels` integer [n].

  data: images or latents [n, H, W, C], uint8 or floating; uint8 becomes floating on the device.
  labels: integers [n].
  pixels: uint8 [n, H, W, C] beside latents; None without any.
  """

  name: str
  space: base.Space
  num_classes: int
  data: np.ndarray
  labels: np.ndarray
  pixels: np.ndarray | None = None
  scaling: latents.Scaling | None = None
  label_names: tuple[str, ...] = ()

  def __post_init__(self):
    # In uint8 labels the null label could wrap around to a class.
    object.__setattr__(self, 'labels', np.asarray(self.labels).astype(np.int32))

  @property
  def can_mirror(self) -> bool:
    """Pixels can be mirrored; latents of a mirror image are not the mirrored latents."""
    return self.space == 'pixels'

  @property
  def shape(self) -> tuple[int, int, int]:
    return self.data.shape[1:]

  @property
  def pixel_shape(self) -> tuple[int, int, int] | None:
    """(H, W, C) of the pixels, which are the data or lie beside them; None without pixels."""
    if self.space == 'pixels':
      return self.shape
    return None if self.pixels is None else self.pixels.shape[1:]

  def __len__(self) -> int:
    return len(self.data)

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """See `base.Source`."""
    base.check_indices(self.name, indices, len(self))
    if flips is not None and not self.can_mirror:
      raise ValueError(f'{self.name} holds latents, which cannot be mirrored')
    x_NHWC = base.mirrored(self.data[indices], flips)
    if x_NHWC.dtype != np.uint8:
      x_NHWC = x_NHWC.astype(np.float32)
    beside = {} if self.pixels is None else {'pixels': self.pixels[indices]}
    return {base.KEYS[self.space]: x_NHWC, 'labels': self.labels[indices], **beside}

  def digest(self) -> str:
    """SHA-256 of the labels and of up to 16 examples, spread evenly."""
    n = len(self)
    places = np.unique(np.linspace(0, n - 1, 16).astype(int))
    return base.digest_of(n, self.labels, self.data[places])


def digits(split: str) -> ArraySource:
  """Handwritten digits of scikit-learn: 1,797 grey 8x8 images, x / 8 - 1 in [-1, 1], 10 classes.

  The test split is every fifth image of each class in the file's order (355 images), the train
  split the other 1,442. The same writers are in both.
  """
  rows = _rows_of_digits()
  levels_NHW, labels = rows[:, :-1].reshape(-1, 8, 8), rows[:, -1].astype(np.int32)
  rank_in_class = np.empty_like(labels)
  for k in range(10):
    members = np.flatnonzero(labels == k)
    rank_in_class[members] = np.arange(len(members))
  chosen = (rank_in_class % 5 == 4) == (split == 'test')
  x_NHWC = (levels_NHW[chosen] / 8 - 1).astype(np.float32)[..., None]
  return ArraySource(
    name=f'digits/{split}', space='pixels', num_classes=10, data=x_NHWC, labels=labels[chosen]
  )


def _rows_of_digits() -> np.ndarray:
  """64 levels and a label a row, without importing scikit-learn if its file is in its place.

  To import it takes longer than everything else at the start of a run.
  """
  package = importlib.util.find_spec('sklearn')
  for folder in package.submodule_search_locations if package else ():
    file = pathlib.Path(folder, 'datasets', 'data', 'digits.csv.gz')
    if file.is_file():
      return np.loadtxt(file, delimiter=',')
  from sklearn import datasets

  found = datasets.load_digits()
  return np.column_stack([found.data, found.target])


def arrays(
  path: str | os.PathLike[str], num_classes: int | None = None, *, pixels: bool = True
) -> ArraySource:
  """Examples of an `.npz` file, read into memory as a whole, without executing pickled code.

  The file holds `labels` integer [n] and either `images` [n, H, W, C], uint8 or float32 in
  [-1, 1], or `latents` [n, h, w, c], float16 or float32, already scaled for the model. Beside
  latents it may hold `pixels` uint8 [n, H, W, 3], for encoders, and `layout`, see `layouts`.

  Args:
    path: path of the file.
    num_classes: number of classes, above every label; None takes the largest label plus one.
    pixels: whether to read pixels beside latents.

  Raises:
    UserError: naming the file, the array, what was found and what was expected.
  """
  path = paths.path(path)
  if not path.is_file():
    raise UserError(f'{path}: no such file; expected an .npz with images or latents, and labels')
  data_name, data, labels, beside, layout = _read_npz(path, pixels)
  _check_data(path, data_name, data)
  if data_name == 'latents':
    layouts.check_latents(path, data, layout)
  if beside is not None and not (
    beside.dtype == np.uint8
    and beside.ndim == 4
    and 0 not in beside.shape
    and (len(beside), beside.shape[-1]) == (len(data), 3)
  ):
    raise UserError(
      f'{path}: `pixels` is {beside.dtype.name} {beside.shape}, expected uint8 '
      f'({len(data)}, H, W, 3){layouts.turned(path, "pixels", beside.shape)}'
    )
  classes = _check_labels(path, labels, len(data), num_classes)
  space = 'pixels' if data_name == 'images' else 'latents'
  name = f'arrays/{path.stem}'
  return ArraySource(
    name=name, space=space, num_classes=classes, data=data, labels=labels, pixels=beside
  )


def _read_npz(
  path: pathlib.Path, pixels: bool
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray | None, str | None]:
  """The name 'images' or 'latents', that array, labels, pixels beside latents, the layout."""
  try:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
      raise ValueError('it holds a single array')
    with loaded as file:
      wanted = [name for name in ('images', 'latents') if name in file.files]
      if len(wanted) == 1 and 'labels' in file.files:
        beside = pixels and wanted[0] == 'latents' and 'pixels' in file.files
        beside = file['pixels'] if beside else None
        layout = str(file['layout']) if 'layout' in file.files else None
        return wanted[0], file[wanted[0]], file['labels'], beside, layout
      found = sorted(file.files)
  except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
    raise UserError(f'{path}: cannot be read as an .npz of plain arrays: {error}') from error
  raise UserError(
    f'{path}: found arrays {found}, expected `labels` and exactly one of `images` and `latents`'
  )


def _check_data(path: pathlib.Path, name: str, data: np.ndarray) -> None:
  kinds = ('uint8', 'float32') if name == 'images' else ('float16', 'float32')
  if data.dtype.name not in kinds:
    way = ''
    if data.dtype == np.float64:
      narrow = layouts.command(path, f'f["{name}"] = f["{name}"].astype("float32")')
      way = f', as `{narrow}` makes it'
    raise UserError(f'{path}: `{name}` is {data.dtype.name}, expected {" or ".join(kinds)}{way}')
  if data.ndim != 4 or 0 in data.shape:
    raise UserError(f'{path}: `{name}` has shape {data.shape}, expected (n, H, W, C), all positive')
  if name == 'images' and data.shape[-1] not in (1, 3):
    raise UserError(
      f'{path}: `images` has shape {data.shape}, expected (n, H, W, 1 or 3)'
      f'{layouts.turned(path, name, data.shape)}'
    )
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


def _open_digits(request: base.Request) -> ArraySource:
  if request.rest:
    raise UserError(f"data {request.spec!r} is malformed; expected 'digits'")
  return digits(request.split)


def _open_arrays(request: base.Request) -> ArraySource:
  if not request.rest:
    raise UserError("data 'arrays' is malformed; expected 'arrays:FILE.npz'")
  source = arrays(request.path(), request.num_classes, pixels=request.pixels)
  for remark in remarks.of_labels(source.labels, ()):
    logging.warning('%s: %s', source.name, remark)
  return source


base.register('digits', _open_digits)
base.register('arrays', _open_arrays)
