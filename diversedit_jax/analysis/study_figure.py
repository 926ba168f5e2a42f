"""The figure of a study: every run's score, scores over training, and the diversity loss's weight.

matplotlib is imported where it draws: the import takes half a second, and most runs draw nothing.
"""

from collections.abc import Mapping
import pathlib
from typing import Any

import numpy as np

from diversedit_jax.analysis import studies
from diversedit_jax.data import files

_TEXT = 8  # Points: the size of a caption in a two-column paper.
# Okabe and Ito's colours, which colour-blind readers tell apart; more variants change the dashes.
_COLOURS = ('#000000', '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9')
_DASHES = ('-', '--', ':')
_WEIGHT = 'diverse/weight'
FORMATS = ('svg', 'png')


def draw(path: pathlib.Path, results: Mapping[str, Any]) -> list[pathlib.Path]:
  """Writes the figure of a study as `PATH.svg` and `PATH.png`; returns their paths.

  Args:
    path: path without ending, on a disk or in a bucket. results: see `modes.study`.
  """
  import matplotlib
  from matplotlib import figure, ticker

  score, names = results['score'], list(results['variants'])
  runs = results['runs']
  weighted = any(run['series'].get(_WEIGHT) for run in runs)
  panels = 3 if weighted else 2
  height = max(2.2, 0.24 * len(names) + 0.9)
  fig = figure.Figure(figsize=(3.1 * panels, height), layout='constrained')
  fig.suptitle(results['title'], fontsize=_TEXT + 1)
  axes = fig.subplots(1, panels, width_ratios=[1.35, 1, 1][:panels])
  _dots(axes[0], results, names, score)
  _curves(axes[1], results, names, lambda run: run['scores'].get(score, []))
  if score in results['floors']:
    axes[1].axhline(results['floors'][score], color='0.6', linewidth=0.8, linestyle='-.')
  axes[1].set_ylabel(_words(score), fontsize=_TEXT)
  known = [value for run in runs for _, value in run['scores'].get(score, [])]
  if results['best'] == 'min' and min(known, default=1) > 0:  # KID, without bias, may be below 0.
    axes[1].set_yscale('log')
    axes[1].yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes[1].yaxis.set_major_formatter('{x:g}')
    axes[1].yaxis.set_minor_formatter(ticker.NullFormatter())
  if weighted:
    _curves(axes[2], results, names, lambda run: run['series'].get(_WEIGHT, []))
    axes[2].set_ylabel('weight of the diversity loss', fontsize=_TEXT)
  for ax in axes:
    ax.tick_params(labelsize=_TEXT - 1, length=2)
    ax.spines[['top', 'right']].set_visible(False)
  written = [path.with_name(f'{path.name}.{kind}') for kind in FORMATS]
  # The same results are the same file, and its words are text.
  with matplotlib.rc_context({'svg.hashsalt': 'study', 'svg.fonttype': 'none'}):
    for target in written:
      kind = target.suffix[1:]
      undated = {'metadata': {'Date': None}} if kind == 'svg' else {}
      with files.atomic(target) as temporary:
        fig.savefig(temporary, format=kind, dpi=200, **undated)
  return written


def _dots(ax, results, names, score):
  """A row for each variant: a dot for each seed, a bar at the mean; the real data's floor."""
  for row, (name, values) in enumerate(studies.scores(results, score).items()):
    colour, y = _style(names, name)['color'], len(names) - 1 - row
    ax.plot(values, [y] * len(values), 'o', ms=3.5, mfc='none', mec=colour, mew=0.9)
    if values:
      ax.plot([np.mean(values)] * 2, [y - 0.3, y + 0.3], color=colour, linewidth=2)
  failed = {run['variant'] for run in results['runs'] if run.get('failed')}
  labels = [f'{name} (diverged)' if name in failed else name for name in names]
  ax.set_yticks(range(len(names)), labels[::-1])
  ax.set_ylim(-0.6, len(names) - 0.4)
  if (floor := results['floors'].get(score)) is not None:
    ax.axvline(floor, color='0.6', linewidth=0.8, linestyle='-.')
    place = {'xytext': (2, 0), 'textcoords': 'offset points', 'va': 'top'}
    text = 'real data'
    ax.annotate(text, (floor, len(names) - 0.4), fontsize=_TEXT - 2, color='0.4', **place)
  better = 'lower is better' if results['best'] == 'min' else 'higher is better'
  ax.set_xlabel(f'{_words(score)} after {results["steps"]:,} steps ({better})', fontsize=_TEXT)
  ax.grid(axis='x', color='0.92', linewidth=0.6)


def _curves(ax, results, names, curve_of):
  """The mean of each variant over steps, with the range of its seeds; failed runs are not shown."""
  for name in names:
    runs = [run for run in results['runs'] if run['variant'] == name and not run.get('failed')]
    curves = [curve for curve in map(curve_of, runs) if curve]
    steps = sorted(set.intersection(*[{s for s, _ in c} for c in curves])) if curves else []
    if not steps:
      continue
    values = np.array([[dict(map(tuple, c))[s] for s in steps] for c in curves])
    style = _style(names, name)
    ax.plot(steps, values.mean(axis=0), linewidth=1.2, label=name, **style)
    ax.fill_between(
      steps, values.min(axis=0), values.max(axis=0), color=style['color'], alpha=0.12, linewidth=0
    )
  ax.set_xlabel('step', fontsize=_TEXT)
  ax.grid(color='0.92', linewidth=0.6)
  if ax.lines:
    ax.legend(fontsize=_TEXT - 2, frameon=False)


def _style(names, name):
  index = names.index(name)
  dashes = _DASHES[index // len(_COLOURS) % len(_DASHES)]
  return {'color': _COLOURS[index % len(_COLOURS)], 'linestyle': dashes}


def _words(score):
  """'frechet_distance' -> 'Fréchet distance'."""
  known = {'fid': 'FID', 'frechet_distance': 'Fréchet distance'}
  return known.get(score, score.replace('_', ' '))
