"""The arithmetic of a chart: fewer points with the same extremes, ticks, numbers in few letters."""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np


def thin(xs: np.ndarray, ys: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
  """At most `limit` of the points [n], in order; limit: at least 4.

  These are the first, the last, and of each of equal stretches between them the lowest and highest.
  """
  n = len(xs)
  if n <= limit:
    return xs, ys
  kept = {0, n - 1}
  edges = np.linspace(1, n - 1, (limit - 2) // 2 + 1).round().astype(int)
  for start, end in zip(edges, edges[1:], strict=False):
    if start < end:
      part = ys[start:end]
      kept |= {start + int(part.argmin()), start + int(part.argmax())}
  at = np.array(sorted(kept))
  return xs[at], ys[at]


def evenly(count: int, most: int) -> list[int]:
  """At most this many of `count` indices, evenly spread, the first and the last among them."""
  if most < 2:
    return [count - 1][:count]
  return sorted({round(at) for at in np.linspace(0, count - 1, min(count, most))} if count else ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Axis:
  """What values lie between, and where ticks stand; logarithmic or not."""

  low: float
  high: float
  ticks: Sequence[float]
  log: bool = False

  def at(self, values: np.ndarray | float) -> np.ndarray | float:
    """Places on the axis: 0 is its lower end, 1 its upper end."""
    scale = np.log10 if self.log else lambda x: x
    low, high = scale(self.low), scale(self.high)
    return (scale(values) - low) / (high - low)


def linear(low: float, high: float, count: int = 4, *, whole: bool = False) -> Axis:
  """An axis that begins and ends at ticks 1, 2 or 5 times a power of ten apart, about `count` gaps.

  Values not far from 0, as seen from there, have it on their axis. whole: no ticks between whole
  numbers.
  """
  if 0 < low < 0.4 * high:
    low = 0.0
  if 0.4 * low < high < 0:
    high = 0.0
  if not high - low > 1e-9 * max(abs(low), abs(high)):
    pad = abs(high) * 0.1 or 1.0
    low, high = low - pad, high + pad
  step = _nice((high - low) / count)
  step = max(step, 1.0) if whole else step
  first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
  digits = max(0, 1 - math.floor(math.log10(step)))
  ticks = [round(i * step, digits) + 0.0 for i in range(first, last + 1)]
  return Axis(low=ticks[0], high=ticks[-1], ticks=ticks)


def between(low: float, high: float, count: int = 4, *, whole: bool = True) -> Axis:
  """An axis that ends where the values do. whole: ticks at whole numbers only, as for steps."""
  around = linear(low, high, count, whole=whole)
  if low == high:
    return around
  ticks = [tick for tick in around.ticks if low <= tick <= high]
  return Axis(low=low, high=high, ticks=ticks)


def logarithmic(low: float, high: float) -> Axis:
  """An axis for values above 0 whose ticks are 1, 2 and 5 times powers of ten, or fewer."""
  low, high = (low / 1.1, high * 1.1) if high < 1.2 * low else (low, high)
  first, last = math.floor(math.log10(low) + 1e-9), math.ceil(math.log10(high) - 1e-9)
  all_ticks = [float(f'{m}e{k}') for k in range(first, last + 1) for m in (1, 2, 5)]
  low = max(t for t in all_ticks if t <= low * (1 + 1e-9))
  high = min(t for t in [*all_ticks, float(f'1e{last + 1}')] if t >= high * (1 - 1e-9))
  ticks = [t for t in all_ticks if low <= t <= high]
  if len(ticks) > 6:
    powers = [float(f'1e{k}') for k in range(first, last + 1)]
    every = -(-len(powers) // 6)
    ticks = [t for t in powers[::every] if low <= t <= high]
  return Axis(low=low, high=high, ticks=ticks, log=True)


def _nice(step: float) -> float:
  power = math.floor(math.log10(step))
  return next(float(f'{m}e{power}') for m in (1, 2, 5, 10) if m * 10.0**power >= step * (1 - 1e-9))


def short(value: float) -> str:
  """A number of an axis: 0.002, 1,500, 20k, 3M, 1e-05."""
  for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= max(size, 10_000):
      return f'{value / size:g}{letter}'
  return f'{value:,.0f}' if abs(value) >= 1000 and value == round(value) else f'{value:g}'


def number(value: object) -> str:
  """A number of a table: four digits, or all of a whole one."""
  if isinstance(value, bool) or not isinstance(value, int | float):
    return str(value)
  return f'{value:,}' if isinstance(value, int) else f'{value:.4g}'
