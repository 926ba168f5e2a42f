"""Figures from panels, as journals take them: vectors and pixels, drawn without global state.

Colours are told apart by colour-blind readers (viridis, magma, Okabe and Ito), and series by their
markers too. matplotlib is imported where it draws: the import takes half a second, and most runs
draw nothing.
"""

from collections.abc import Sequence
import os
import textwrap
from typing import Any

import numpy as np

from diversedit_jax.analysis import panels
from diversedit_jax.data import files

DPI = 300
TEXT = 8  # Points: the size of a caption in a two-column paper.
FORMATS = ('png', 'pdf')
_OKABE_ITO = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#000000')
_MARKERS = 'osD^vP*X'
_LETTERS = 15  # To an inch.
_NARROW = 0.1  # Least span of colours, so that rounding is not drawn as structure.


def draw(
  stem: str | os.PathLike[str],
  shown: Sequence[panels.Panel],
  *,
  columns: int = 4,
  title: str = '',
) -> list[str]:
  """Writes `stem`.png and `stem`.pdf; each appears whole or not at all. Their paths.

  shown: panels in reading order. columns: of them in a row. title: above all.
  """
  fig = figure_of(shown, columns=columns, title=title)
  return [write(fig, f'{os.fspath(stem)}.{kind}') for kind in FORMATS]


def figure_of(shown: Sequence[panels.Panel], *, columns: int = 4, title: str = '') -> Any:
  """The matplotlib figure of some panels."""
  from matplotlib import figure

  columns = min(columns, len(shown))
  rows = -(-len(shown) // columns)
  wide, high = _size(shown, columns)
  width = wide * columns + 0.5
  lines = [textwrap.fill(line, int(_LETTERS * width)) for line in title.splitlines()]
  title = '\n'.join(lines)
  fig = figure.Figure(
    figsize=(width, high * rows + 0.18 * len(title.splitlines())),
    layout='constrained',
  )
  fig.get_layout_engine().set(h_pad=0.06, w_pad=0.06)
  if title:
    fig.suptitle(title, fontsize=TEXT)
  axes = fig.subplots(rows, columns, squeeze=False)
  for ax in axes.flat[len(shown) :]:
    ax.set_axis_off()
  scales = _scales(shown)
  one_bar = all(isinstance(p, panels.Heatmap) for p in shown) and len(scales) == 1
  for i, panel in enumerate(shown):
    ax = axes.flat[i]
    ax.set_title(panel.title, fontsize=TEXT)
    ax.tick_params(labelsize=TEXT - 1, length=2, pad=2)
    if isinstance(panel, panels.Pictures):
      _pictures(ax, panel)
      continue
    if isinstance(panel, panels.Curves):
      _curves(ax, panel)
    else:
      image = _heatmap(ax, panel, scales[panel.label])
      if not one_bar:
        ax.set_anchor('E')  # Beside its bar.
        _bar(fig, image, ax, panel.label, aspect=18)
    below = i + columns < len(shown) and _same(panel, shown[i + columns], 'x_label')
    beside = i % columns and _same(panel, shown[i - 1], 'y_label')
    ax.set_xlabel('' if below else panel.x_label, fontsize=TEXT)
    ax.set_ylabel('' if beside else panel.y_label, fontsize=TEXT)
  if one_bar:
    _bar(fig, image, axes, shown[0].label, aspect=16 * rows)
  return fig


def write(fig: Any, path: str | os.PathLike[str]) -> str:
  """Saves a figure, whole or not at all, in the format of its suffix; the path."""
  import matplotlib

  kind = os.fspath(path).rpartition('.')[2]
  # Letters of a PDF as letters, which journals ask for; and no date, so that files compare.
  facts = {'pdf': {'CreationDate': None}}.get(kind)
  with matplotlib.rc_context({'pdf.fonttype': 42}), files.atomic(path) as temporary:
    fig.savefig(temporary, format=kind, dpi=DPI, metadata=facts)
  return path


def _size(shown, columns):
  """Inches of a panel."""
  pictures = [p for p in shown if isinstance(p, panels.Pictures)]
  if pictures:
    widest = max(len(p.columns) for p in pictures)
    tallest = max(len(p.rows) for p in pictures)
    return 0.6 * widest + 0.4, 0.62 * tallest + 0.4
  if all(isinstance(p, panels.Heatmap) for p in shown):
    return (1.75, 2.1) if columns > 1 else (2.6, 2.4)
  return 3.0, 2.35


def _same(panel, other, name):
  return type(panel) is type(other) and getattr(panel, name) == getattr(other, name)


def _scales(shown):
  """(low, high, what lies beyond) by label of heat maps."""
  found = {}
  for label in {p.label for p in shown if isinstance(p, panels.Heatmap)}:
    these = [p for p in shown if isinstance(p, panels.Heatmap) and p.label == label]
    values = np.concatenate([np.ravel(p.values) for p in these])
    highs = [p.high for p in these if p.high is not None]
    lows = [p.low for p in these if p.low is not None]
    high = max(highs) if highs else values.max()
    low = min(lows) if lows else min(high - _NARROW, values.min())
    beyond = {(0, 0): 'neither', (1, 0): 'min', (0, 1): 'max', (1, 1): 'both'}
    found[label] = (
      low,
      high,
      beyond[bool(values.min() < low - 1e-9), bool(values.max() > high + 1e-9)],
    )
  return found


def _heatmap(ax, panel, scale):
  rows, cols = panel.values.shape
  low, high, _ = scale
  extent = (0.5, cols + 0.5, 0.5, rows + 0.5)
  image = ax.imshow(
    panel.values, vmin=low, vmax=high, cmap='magma', origin='lower', extent=extent, aspect='auto'
  )
  image.beyond = scale[2]
  ax.set_box_aspect(rows / cols if 0.5 < rows / cols < 2 else 1)
  if _number(panel.x) and not all(float(x).is_integer() for x in panel.x):
    ax.tick_params(axis='x', labelrotation=90)
  for labels, axis in ((panel.x, ax.xaxis), (panel.y, ax.yaxis)):
    places = ticks(len(labels))
    axis.set_ticks(
      places, [f'{labels[i - 1]:g}' if _number(labels) else labels[i - 1] for i in places]
    )
  return image


def _bar(fig, image, axes, label, aspect):
  bar = fig.colorbar(image, ax=axes, label=label, extend=image.beyond, aspect=aspect, pad=0.02)
  bar.ax.tick_params(labelsize=TEXT - 1, length=2)
  bar.ax.yaxis.label.set_size(TEXT)
  bar.outline.set_linewidth(0.5)


def _curves(ax, panel):
  from matplotlib import colormaps, ticker

  names = list(panel.series)
  if panel.ordered:
    colours = colormaps['viridis'](np.linspace(0.05, 0.85, len(names)))
  else:
    colours = [_OKABE_ITO[i % len(_OKABE_ITO)] for i in range(len(names))]
  x = np.asarray(panel.x, np.float64)
  bottom = np.zeros(len(x))
  for i, (name, colour) in enumerate(zip(names, colours, strict=True)):
    y = np.array([np.nan if v is None else v for v in panel.series[name]], np.float64)
    if panel.stacked:
      width = 0.8 * (np.diff(x).min() if len(x) > 1 else 1.0)
      ax.bar(x, y, width, bottom=bottom, color=colour, label=name)
      bottom += y
    else:
      marker = _MARKERS[i % len(_MARKERS)]
      ax.plot(x, y, color=colour, linewidth=1.2, marker=marker, ms=3.5, label=name)
  if panel.reference is not None:
    level, name = panel.reference
    ax.axhline(level, color='0.35', linewidth=0.8, linestyle='--', label=name)
  gap = np.diff(x).min() if len(x) > 1 else 1.0
  ax.set_xlim(x[0] - gap / 2, x[-1] + gap / 2)
  if panel.log:
    ax.set_yscale('log')
  if panel.low is not None or panel.high is not None:
    ax.set_ylim(panel.low, panel.high)
  whole = all(float(value).is_integer() for value in panel.x)
  if whole and len(x) <= 12:
    ax.set_xticks(x, [f'{int(value):,}' for value in panel.x])
  elif whole:
    ax.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
  ax.grid(color='0.9', linewidth=0.5, axis='y')
  ax.set_axisbelow(True)
  ax.spines[['top', 'right']].set_visible(False)
  if len(names) > 1 or panel.reference is not None:
    # Above the axes, where no curve can be.
    ax.set_title(panel.title, fontsize=TEXT, pad=18)
    ax.legend(
      loc='lower center',
      bbox_to_anchor=(0.5, 0.98),
      ncols=4,
      fontsize=TEXT - 1,
      frameon=False,
      columnspacing=0.9,
      handlelength=1.3,
      handletextpad=0.4,
    )


def _pictures(ax, panel):
  """All as one image, with gaps, labels of columns above and of rows at the left."""
  side = 32
  gap, rows = 3, []
  for row in panel.pictures:
    made = []
    for picture in row:
      colour = np.repeat(picture[..., None], 3, axis=-1) if picture.ndim == 2 else picture
      factors = [max(side // n, 1) for n in colour.shape[:2]]
      large = np.repeat(np.repeat(colour, factors[0], axis=0), factors[1], axis=1)
      places = [np.arange(side) * n // side for n in large.shape[:2]]
      made += [large[places[0]][:, places[1]], np.ones((side, gap, 3))]
    rows += [
      np.concatenate(made[:-1], axis=1),
      np.ones((gap, len(made) // 2 * (side + gap) - gap, 3)),
    ]
  page = np.concatenate(rows[:-1])
  ax.imshow(np.clip(page, 0, 1), interpolation='nearest')
  middle = lambda n: [i * (side + gap) + side / 2 - 0.5 for i in range(n)]
  ax.xaxis.tick_top()
  ax.set_xticks(middle(len(panel.columns)), panel.columns)
  ax.set_yticks(middle(len(panel.rows)), panel.rows)
  ax.tick_params(length=0)
  ax.spines[:].set_visible(False)


def ticks(n: int) -> list[int]:
  """Places to number, from 1: all of a few, else the first and every fourth, eighth, ..."""
  if n <= 8:
    return list(range(1, n + 1))
  every = 4
  while n > 8 * every:
    every *= 2
  return [1, *range(every, n + 1, every)]


def _number(labels):
  return not any(isinstance(label, str) for label in labels)
