"""Figures for papers and reports, drawn without matplotlib's global state.

matplotlib is imported where it draws: the import takes half a second, and most runs draw nothing.
"""

from collections.abc import Mapping
import os
from typing import Any

import numpy as np

from diversedit_jax.analysis import similarity
from diversedit_jax.data import files
from diversedit_jax.types import UserError

_DPI = 300
_TEXT = 8  # Points: the size of a caption in a two-column paper.
_INK = '#1f4e79'


def similarity_heatmaps(
  path: str | os.PathLike[str],
  matrices: Mapping[str, np.ndarray],
  *,
  low: float | None = None,
  high: float = 1.0,
  columns: int = 4,
  label: str = 'CKA',
) -> None:
  """Writes L x L similarities of blocks as a PNG: one panel each, one colour scale for all.

  Blocks are numbered from 1, the first at the lower left. Each title is followed by the mean
  similarity of two different blocks.

  Args:
    path: the PNG file; it appears whole or not at all.
    matrices: matrices [L, L] by title, with L >= 2; L may differ.
    low: value of the darkest colour; None takes the smallest value shown, but at least 0.1 below
      `high`, so that rounding among identical blocks is not drawn as structure.
    high: value of the brightest colour.
    columns: panels per row.
    label: name of the similarity, at the colour bar.

  Raises:
    UserError: for no matrices, another shape, or values that are not finite.
  """
  from matplotlib import figure

  if not matrices or columns < 1:
    raise UserError(f'heat maps need matrices and columns >= 1; got {len(matrices)}, {columns}')
  arrays = {title: np.asarray(matrix, np.float64) for title, matrix in matrices.items()}
  # The score checks the shapes.
  means = {title: 1 - similarity.diversity_score(array) for title, array in arrays.items()}
  bad = [title for title, array in arrays.items() if not np.isfinite(array).all()]
  if bad:
    raise UserError(f'heat maps need finite values; not so in {", ".join(map(repr, bad))}')
  if low is None:
    low = min(high - 0.1, *(array.min() for array in arrays.values()))
  if not low < high:
    raise UserError(f'the colour scale needs low < high; got {low} and {high}')
  below = any(array.min() < low for array in arrays.values())
  above = any(array.max() > high + 1e-9 for array in arrays.values())

  columns = min(columns, len(arrays))
  rows = -(-len(arrays) // columns)
  fig = figure.Figure(figsize=(1.75 * columns + 0.5, 2.1 * rows), layout='constrained')
  fig.get_layout_engine().set(h_pad=0.06)
  axes = fig.subplots(rows, columns, squeeze=False)
  for ax in axes.flat[len(arrays) :]:
    ax.set_axis_off()
  for i, (title, array) in enumerate(arrays.items()):
    ax, depth = axes.flat[i], len(array)
    extent = (0.5, depth + 0.5, 0.5, depth + 0.5)
    picture = ax.imshow(array, vmin=low, vmax=high, cmap='magma', origin='lower', extent=extent)
    ax.set_title(f'{title}\nmean off-diagonal {means[title]:.3f}', fontsize=_TEXT)
    ax.set_xticks(_ticks(depth))
    ax.set_yticks(_ticks(depth))
    ax.tick_params(labelsize=_TEXT - 1, length=2, pad=2)
    if i + columns >= len(arrays):
      ax.set_xlabel('block', fontsize=_TEXT)
    if i % columns == 0:
      ax.set_ylabel('block', fontsize=_TEXT)
  extend = {(0, 0): 'neither', (1, 0): 'min', (0, 1): 'max', (1, 1): 'both'}[below, above]
  bar = fig.colorbar(picture, ax=axes, label=label, extend=extend, aspect=16 * rows, pad=0.02)
  bar.ax.tick_params(labelsize=_TEXT - 1, length=2)
  bar.ax.yaxis.label.set_size(_TEXT)
  bar.outline.set_linewidth(0.5)
  _write(fig, path)


def guidance_curves(
  path: str | os.PathLike[str],
  curves: Mapping[str, Mapping[float, float]],
  *,
  label: str,
  lowest_is_best: bool,
  against: str = 'guidance scale',
  title: str = 'interval of t',
) -> None:
  """Writes a score against the guidance scale as a PNG, one curve for each interval.

  Args:
    path: the PNG file; it appears whole or not at all.
    curves: {scale: score} by the interval in words, or what else `against` and `title` name.
    label: name of the score.
    lowest_is_best: whether the lowest of all points is marked, or the highest.

  Raises:
    UserError: for no points, or scores that are not finite.
  """
  from matplotlib import colormaps, figure

  points = [(y, x, name) for name, curve in curves.items() for x, y in curve.items()]
  if not points or not np.isfinite([y for y, _, _ in points]).all():
    raise UserError(f'guidance curves need points with finite scores; got {points}')
  fig = figure.Figure(figsize=(3.4, 2.6), layout='constrained')
  ax = fig.subplots()
  colours = colormaps['viridis'](np.linspace(0.1, 0.85, len(curves)))
  for (name, curve), colour in zip(curves.items(), colours, strict=True):
    scales = sorted(curve)
    ax.plot(
      scales, [curve[x] for x in scales], color=colour, linewidth=1, marker='o', ms=3, label=name
    )
  best, at, _ = min(points) if lowest_is_best else max(points)
  ax.plot(at, best, marker='o', ms=8, mfc='none', color='#c0392b', linestyle='')
  ax.annotate(
    f'{best:.4g}', (at, best), xytext=(6, 6), textcoords='offset points', fontsize=_TEXT - 1
  )
  ax.set_xlabel(against, fontsize=_TEXT)
  ax.set_ylabel(label, fontsize=_TEXT)
  ax.tick_params(labelsize=_TEXT - 1, length=2)
  ax.grid(color='0.9', linewidth=0.5)
  ax.spines[['top', 'right']].set_visible(False)
  ax.legend(title=title, fontsize=_TEXT - 1, title_fontsize=_TEXT - 1, frameon=False)
  _write(fig, path)


def _ticks(depth: int) -> list[int]:
  """Blocks to number: all of a few, else the first and every fourth, eighth, ..."""
  if depth <= 8:
    return list(range(1, depth + 1))
  every = 4
  while depth > 8 * every:
    every *= 2
  return [1, *range(every, depth + 1, every)]


def _write(fig: Any, path: str | os.PathLike[str]) -> None:
  with files.atomic(path) as temporary:
    fig.savefig(temporary, format='png', dpi=_DPI)
