"""Pictures from arrays: the two quantisers in common use, and grids that a person can read.

  truncate     floor(clip(255 (x + 1) / 2, 0, 255))     REPA, SRA, REG                (1)
  round_half   floor(clip(127.5 x + 128, 0, 255))       DiT, SiT, MeanFlow            (2)

They differ by half a level, so an experiment uses one of them throughout and records which.
"""

from collections.abc import Sequence
import os
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diversedit_jax import trees
from diversedit_jax.data import files
from diversedit_jax.types import UserError

QUANTISERS = ('truncate', 'round_half')
# A tile is enlarged to at least this many screen pixels, so that 8x8 digits can be read.
_READABLE = 40
_MAX_SIDE = 4096  # Pixels of a grid; more, a viewer shows slowly or not at all.
_GAP = 2
_MARGIN = 8
# A grey that is neither the black nor the white of a digit, so that the edges of tiles show.
_LINE = 144


def to_uint8(x: np.ndarray, quantiser: str = 'truncate') -> np.ndarray:
  """Quantises values in [-1, 1] of any shape to uint8 levels; values outside are clipped.

  Only 'round_half' inverts x = k / 127.5 - 1 for every level k. 'truncate' may lose a level to
  rounding, as does the code that it reproduces.

  Raises:
    UserError: the quantiser is unknown, or a value is not finite.
  """
  trees.check_known('quantiser', quantiser, QUANTISERS)
  x = np.asarray(x, np.float32)
  if not np.isfinite(x).all():
    bad = np.count_nonzero(~np.isfinite(x))
    raise UserError(f'cannot quantise: {bad} of {x.size} values are not finite')
  return levels(x, quantiser)


def levels(x: Any, quantiser: str) -> Any:
  """`to_uint8` for a numpy or JAX array whose values are known to be finite; traceable."""
  scaled = 255 * ((x + 1) / 2) if quantiser == 'truncate' else 127.5 * x + 128
  return scaled.clip(0, 255).astype(np.uint8)


def from_uint8(x: Any) -> Any:
  """Maps uint8 levels of a numpy or JAX array to x / 127.5 - 1 in [-1, 1], float32."""
  return x.astype(np.float32) / np.float32(127.5) - np.float32(1)


def grid_limit(height: int, width: int) -> tuple[int, int]:
  """The most rows and columns that a grid shows of images of a size; others are left out."""
  scale = _enlargement(height, width)
  return tuple(max(_MAX_SIDE // (side * scale + _GAP), 1) for side in (height, width))


def _enlargement(height, width):
  return max(1, -(-_READABLE // min(height, width)))


def save_grid(
  path: str | os.PathLike[str],
  images_NHWC: np.ndarray,
  columns: int,
  *,
  scale: int | None = None,
  row_labels: Sequence[str] | None = None,
  title: str | None = None,
  quantiser: str = 'round_half',
  smooth: bool = False,
) -> None:
  """Writes images as a PNG grid, row by row, with thin grey lines around them.

  What goes beyond `grid_limit` is left out, which the title says.

  Args:
    path: the PNG, which appears whole or not at all.
    images_NHWC: uint8, or floating in [-1, 1] (clipped); C = 1 grey or 3 colour.
    columns: images per row; the last row may be short.
    scale: whole factor of enlargement; None makes tiles at least 40 px wide.
    row_labels: text left of each row, such as its class; one per row.
    title: text above the grid.
    quantiser: rule for floating images, see `to_uint8`.
    smooth: enlarges bicubically, so that a person can read an 8x8 digit; else pixels stay squares.

  Raises:
    UserError: another shape, labels that are not one per row, or values that are not finite.
  """
  images_NHWC = np.asarray(images_NHWC)
  if images_NHWC.ndim != 4 or images_NHWC.shape[-1] not in (1, 3) or 0 in images_NHWC.shape:
    raise UserError(f'a grid needs images (N, H, W, 1 or 3), N >= 1; got {images_NHWC.shape}')
  if columns < 1 or (scale is not None and scale < 1):
    raise UserError(f'a grid needs columns >= 1 and scale >= 1; got {columns} and {scale}')
  if images_NHWC.dtype != np.uint8:
    images_NHWC = to_uint8(images_NHWC, quantiser)
  n, height, width, channels = images_NHWC.shape
  rows = -(-n // columns)
  if row_labels is not None and len(row_labels) != rows:
    raise UserError(f'a grid of {rows} rows needs {rows} row labels; got {len(row_labels)}')
  shown = [min(*pair) for pair in zip((rows, columns), grid_limit(height, width), strict=True)]
  if shown != [rows, columns]:
    kept = [i for i in range(n) if i // columns < shown[0] and i % columns < shown[1]]
    cut = f'{len(kept)} of {n} images'
    title = f'{title}, {cut}' if title else cut
    images_NHWC, (rows, columns) = images_NHWC[kept], shown
    row_labels = None if row_labels is None else row_labels[:rows]
  scale = scale or _enlargement(height, width)
  height, width = height * scale, width * scale
  resample = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST

  font = _font([title or '', *(row_labels or ())], max(11, min(18, height // 3)))
  title_font = _font([title or ''], 16)
  left = _MARGIN
  if row_labels is not None:
    left += _MARGIN + round(max(font.getlength(str(label)) for label in row_labels))
  top = _MARGIN + (28 if title else 0)
  right = left + columns * (width + _GAP) - _GAP
  if title:
    right = max(right, _MARGIN + round(title_font.getlength(title)))
  bottom = top + rows * (height + _GAP) - _GAP
  page = Image.new('L' if channels == 1 else 'RGB', (right + _MARGIN, bottom + _MARGIN), 'white')
  draw = ImageDraw.Draw(page)
  for i, x_HWC in enumerate(images_NHWC):
    row, column = divmod(i, columns)
    x, y = left + column * (width + _GAP), top + row * (height + _GAP)
    frame = (x - _GAP, y - _GAP, x + width + _GAP - 1, y + height + _GAP - 1)
    draw.rectangle(frame, fill=(_LINE,) * channels)
    tile = Image.fromarray(x_HWC[..., 0] if channels == 1 else x_HWC)
    page.paste(tile.resize((width, height), resample), (x, y))
  for row, label in enumerate(row_labels or ()):
    middle = top + row * (height + _GAP) + height // 2
    draw.text((left - _MARGIN, middle), str(label), fill='black', font=font, anchor='rm')
  if title:
    draw.text((_MARGIN, _MARGIN), title, fill='black', font=title_font)
  with files.atomic(path) as temporary:
    page.save(temporary, format='PNG')


def _font(texts, size):
  """A font that has the letters of texts, as far as one that is here does."""
  if all(map(str.isascii, map(str, texts))):
    return ImageFont.load_default(size=size)
  import matplotlib  # Here: its import takes a tenth of a second, and its fonts have more letters.

  return ImageFont.truetype(f'{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf', size)
