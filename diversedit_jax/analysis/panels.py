"""What a figure shows, as numbers: panels that `drawing` draws and analysis.json holds."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

from diversedit_jax import types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heatmap:
  """A matrix [R, C]; row r stands at y[r], counted upwards, column c at x[c].

  label: name of the values; heat maps of one figure with the same label share their colours.
  low, high: ends of the colours; None is the smallest, or largest, value with that label.
  """

  title: str
  values: np.ndarray
  x: Sequence[Any]
  y: Sequence[Any]
  x_label: str
  y_label: str
  label: str
  low: float | None = None
  high: float | None = None

  def __post_init__(self):
    if np.shape(self.values) != (len(self.y), len(self.x)):
      raise ValueError(f'{self.title}: {np.shape(self.values)} for {len(self.y)} x {len(self.x)}')
    _check_finite(self.title, self.values)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curves:
  """Values over x by the name of their series; None is a value that does not exist.

  ordered: whether the series are steps of a quantity, such as times, which their colours show.
  low, high: ends of the y axis; None is chosen when drawn. log: whether it is logarithmic.
  reference: a level to compare with, and its name.
  stacked: whether the series add up, drawn as bars.
  """

  title: str
  x: Sequence[float]
  x_label: str
  y_label: str
  series: Mapping[str, Sequence[float | None]]
  ordered: bool = False
  low: float | None = None
  high: float | None = None
  log: bool = False
  reference: tuple[float, str] | None = None
  stacked: bool = False

  def __post_init__(self):
    for name, values in self.series.items():
      if len(values) != len(self.x):
        raise ValueError(f'{self.title}: {name} has {len(values)} values for {len(self.x)} of x')
      _check_finite(f'{self.title}: {name}', [v for v in values if v is not None])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pictures:
  """Small pictures [H, W, 3] or [H, W] in [0, 1], rows of columns; array: their name in the npz."""

  title: str
  pictures: Sequence[Sequence[np.ndarray]]
  columns: Sequence[str]
  rows: Sequence[str]
  array: str


Panel = Heatmap | Curves | Pictures


def facts(panel: Panel) -> dict[str, Any]:
  """What a panel shows, in JSON's terms; numbers of pictures are in the npz."""
  kind = type(panel).__name__.lower()
  found = {f.name: getattr(panel, f.name) for f in dataclasses.fields(panel)}
  found.pop('pictures', None)
  return {'kind': kind, **found}


def _check_finite(what, values):
  if not np.isfinite(np.asarray(values, np.float64)).all():
    raise types.UserError(f'figures need finite values; not so in {what!r}')
