"""The figure of a sweep over guidance; those of the analysis are in `drawing`."""

from collections.abc import Mapping
import os

import numpy as np

from diversedit_jax.analysis import drawing
from diversedit_jax.types import UserError


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
    f'{best:.4g}', (at, best), xytext=(6, 6), textcoords='offset points', fontsize=drawing.TEXT - 1
  )
  ax.set_xlabel(against, fontsize=drawing.TEXT)
  ax.set_ylabel(label, fontsize=drawing.TEXT)
  ax.tick_params(labelsize=drawing.TEXT - 1, length=2)
  ax.grid(color='0.9', linewidth=0.5)
  ax.spines[['top', 'right']].set_visible(False)
  ax.legend(title=title, fontsize=drawing.TEXT - 1, title_fontsize=drawing.TEXT - 1, frameon=False)
  drawing.write(fig, path)
