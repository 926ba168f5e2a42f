"""Pictures inside the page: grids of samples, similarities of blocks as maps, and films of them."""

import base64
from collections.abc import Sequence
import dataclasses
import io
from typing import Any

import numpy as np
from PIL import Image

from diversedit_jax.reporting import curves, markup

_COLOURS = 'magma'  # As the figures of `--mode=analyze`.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frame:
  """A picture of a film. at: step, or what else the film goes along."""

  at: float
  content: markup.Html


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reel:
  """The frames of one run, in order, and how many there were to choose from."""

  name: str
  number: int
  frames: Sequence[Frame]
  of: int
  title: str = ''


def film(reels: Sequence[Reel], *, along: str, kind: str) -> markup.Html:
  """Frames of runs side by side, moved together by a slider; without a script the last ones.

  kind: class of the whole, which decides how large the pictures are.
  """
  stops = sorted({frame.at for reel in reels for frame in reel.frames})
  last = len(stops) - 1
  slider = markup.tag(
    'label',
    f'{along} ',
    markup.tag('input', type='range', min=0, max=last, value=last, step=1),
    markup.tag('output', f'{stops[-1]:,g}'),
    class_='slider',
    hidden=True,
    data_along=along,
  )
  return markup.tag(
    'div',
    slider if last else None,
    markup.tag('div', [_reel(reel, along) for reel in reels], class_='reels'),
    class_=f'film {kind}',
    data_stops=' '.join(f'{stop:.10g}' for stop in stops),
  )


def _reel(reel, along):
  count = f'{len(reel.frames)} of {reel.of:,} shown' if len(reel.frames) < reel.of else ''
  frames = [
    markup.tag(
      'div',
      frame.content,
      markup.tag('p', f'{along} {frame.at:,g}', class_='at'),
      class_='frame',
      data_at=f'{frame.at:.10g}',
      hidden=frame is not reel.frames[-1],
    )
    for frame in reel.frames
  ]
  title = markup.tag('figcaption', reel.title or reel.name, markup.tag('small', count))
  return markup.tag('figure', title, frames, class_='reel', data_run=reel.number)


def picture(png: bytes, alt: str, widest: int) -> markup.Html:
  """A PNG file inside the page, made smaller if it is heavy.

  widest: pixels across, if it is made smaller; heavy is what has more than 150 bytes for each.

  Raises:
    ValueError, OSError: it is no picture.
  """
  with Image.open(io.BytesIO(png), formats=['PNG']) as opened:
    try:
      opened.load()
    except SyntaxError as error:  # So Pillow tells a chunk that is damaged.
      raise ValueError(str(error)) from error
    size, kind = opened.size, 'png'
    if len(png) > 150 * widest:
      small = opened.convert('RGB')
      small.thumbnail((widest, 4 * widest))
      buffer = io.BytesIO()
      small.save(buffer, 'JPEG', quality=85)
      if buffer.tell() < len(png):
        png, size, kind = buffer.getvalue(), small.size, 'jpeg'
  return _image(png, kind, alt, width=size[0], height=size[1])


def heat_map(matrix: np.ndarray, low: float, high: float, alt: str) -> markup.Html:
  """Similarities [L, L] as a map, the first block at the lower left. low, high: of the colours."""
  depth = len(matrix)
  colours = _colours((matrix - low) / max(high - low, 1e-9))[::-1]
  buffer = io.BytesIO()
  Image.fromarray(colours).quantize(256).save(buffer, 'PNG', optimize=True)
  thousandths = ' '.join(f'{v:.0f}' for v in (matrix * 1000).round().ravel().tolist())
  mean = f'mean of two different blocks {off_diagonal(matrix):.3f}'
  ticks = curves.between(1, depth).ticks if depth > 1 else [1]
  return markup.tag(
    'div',
    markup.tag(
      'div',
      _image(buffer.getvalue(), 'png', f'{alt}, {mean}', width=depth, height=depth),
      _ticks(ticks, depth, 'bottom'),
      _ticks(ticks, depth, 'left'),
      class_='map',
      data_depth=depth,
      data_values=thousandths,
    ),
    markup.tag('p', mean, class_='mean'),
  )


def scale(low: float, high: float, words: str) -> markup.Html:
  """What the colours of maps mean."""
  stops = _colours(np.linspace(0, 1, 9))
  colours = ','.join(f'rgb({r} {g} {b})' for r, g, b in stops.tolist())
  return markup.tag(
    'p',
    f'{low:g}',
    markup.tag('span', class_='bar', style=f'background:linear-gradient(90deg,{colours})'),
    f'{high:g} {words}; both axes: block',
    class_='scale',
  )


def off_diagonal(matrix: np.ndarray) -> float:
  """Mean over pairs of different blocks; 1 for a single block."""
  depth = len(matrix)
  return float(matrix[~np.eye(depth, dtype=bool)].mean()) if depth > 1 else 1.0


def colour_range(matrices: Sequence[np.ndarray]) -> tuple[float, float]:
  """The range of colours for all maps that are compared: from the smallest value, rounded, to 1."""
  low = min(float(matrix.min()) for matrix in matrices)
  return min(0.9, np.floor(low * 20 + 1e-6) / 20 + 0.0), 1.0


def _ticks(ticks, depth, side):
  at = lambda tick: f'{100 * (tick - 0.5) / depth:.4g}%'
  spans = [
    markup.tag('span', f'{tick:g}', style=f'{"left" if side == "bottom" else "bottom"}:{at(tick)}')
    for tick in ticks
  ]
  return markup.tag('div', spans, class_=side, aria_hidden='true')


def _image(content: bytes, kind: str, alt: str, **attributes: Any) -> markup.Html:
  source = f'data:image/{kind};base64,{base64.b64encode(content).decode()}'
  return markup.tag('img', src=source, alt=alt, **attributes)


def _colours(values: np.ndarray) -> np.ndarray:
  """uint8 [..., 3] of values in [0, 1]."""
  from matplotlib import colormaps  # Here, because its import takes half a second.

  return colormaps[_COLOURS](np.clip(values, 0, 1), bytes=True)[..., :3]
