"""Sections of the page that follow runs over their steps: losses, diversity, samples, speed."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from diversedit_jax.reporting import charts, curves, markup, pictures, runs

_NOTES = {
  'loss': 'The flow and the weighted terms, which are minimised.',
  'velocity': 'Squared error of the predicted velocity, the part of the flow.',
  'diverse/loss': 'Diversity loss before it is weighted.',
  'diverse/weight': 'Adaptive weight of the diversity loss; 0 where the loss is off.',
  'diverse/orth': 'Part of the diversity loss: similarity of the mean features of blocks.',
  'diverse/mi': 'Part of the diversity loss: similarity of blocks, token by token.',
  'diverse/disp': 'Part of the diversity loss: how unevenly blocks use the features.',
  'grad_norm': 'Norm of the gradient, before it is clipped.',
  'param_norm': 'Norm of all parameters.',
  'skipped': 'Steps left out since the row before, because they were not finite.',
  'similarity/token': 'Mean cosine of two different blocks, token by token.',
  'similarity/mean': 'Mean cosine of two different blocks, of features averaged first.',
}
_UNITS = {'steps_per_second': 'steps/s', 'images_per_second': 'images/s'}
_SPEED = ('grad_norm', 'param_norm', 'learning_rate', 'skipped', *_UNITS)
_OF_BLOCKS = {
  'activation_rms': 'Root mean square of the outputs of each block',
  'gradient_norm': 'Norm of the gradient of the parameters of each block',
}
_MATRICES = {'token': 'token by token', 'mean': 'of mean features'}
_FIGURES = 24  # Pictures of other modes, of all runs together.
_STEPS_OF_ONE = 4  # Lines of blocks, for a single run.


def all_curves(report: Sequence[runs.Run], names: Sequence[str]) -> list[markup.Html]:
  """A chart for each metric that any of the runs has, over the same steps."""
  last = max((x[-1] for run in report for x, _ in run.curves.values()), default=0)
  drawn = []
  for name in names:
    lines = [
      charts.Line(name=run.name, number=run.number, xs=xs, ys=ys)
      for run in report
      if name in run.curves
      for xs, ys in [run.curves[name]]
    ]
    bad = sum(run.not_finite.get(name, 0) for run in report)
    note = _NOTES.get(name, '')
    note += f' {bad:,} values that are not finite are left out.' if bad else ''
    title, unit = name.removeprefix('eval/').replace('_', ' '), _UNITS.get(name, '')
    if lines:
      drawn.append(charts.chart(title, lines, unit=unit, note=note.strip(), ends=(0, last)))
  return drawn


def losses(report: Sequence[runs.Run]) -> list[markup.Html]:
  """The loss, and the losses, weights and parts of all terms."""
  found = _names(report)
  terms = [
    name for name in found if '/' in name and name.partition('/')[0] not in _NOT_TERMS
  ]  # 'diverse/loss' before 'diverse/weight' before its parts.
  order = {'loss': 0, 'weight': 1}
  terms.sort(key=lambda name: (name.partition('/')[0], order.get(name.partition('/')[2], 2)))
  others = [n for n in found if '/' not in n and n not in ('loss', 'velocity', *_SPEED)]
  return all_curves(report, ['loss', 'velocity', *others, *terms])


def speed(report: Sequence[runs.Run]) -> list[markup.Html]:
  """Norms, the learning rate, and how fast training was."""
  found = _names(report)
  data = [name for name in found if name.startswith('data/')]
  return all_curves(report, [*(name for name in _SPEED if name in found), *data])


def scores(report: Sequence[runs.Run]) -> list[markup.Html]:
  """What online evaluations found."""
  return all_curves(report, [name for name in _names(report) if name.startswith('eval/')])


_NOT_TERMS = ('eval', 'data', 'similarity', *_OF_BLOCKS)


def _names(report) -> list[str]:
  return list(dict.fromkeys(name for run in report for name in run.curves))


def diversity(report: Sequence[runs.Run]) -> list[markup.Html]:
  """How similar blocks are over the steps, as curves and as maps, and how large each is."""
  names = [name for name in _names(report) if name.startswith('similarity/')]
  found = [_grid(all_curves(report, names))]
  reels = list(_similarities(report))
  if reels:
    _, low, high = reels[0]
    found += [
      markup.tag('h3', 'Similarity of blocks'),
      pictures.scale(low, high, 'mean cosine'),
      pictures.film([reel for reel, _, _ in reels], along='step', kind='maps'),
    ]
  found += [_grid(_profiles(report))]
  return found


def _similarities(report) -> Iterator[tuple[pictures.Reel, float, float]]:
  of_all = [
    matrices[kind]
    for run in report
    for _, matrices in run.similarity.shown
    for kind in _MATRICES
    if kind in matrices
  ]
  if not of_all:
    return
  low, high = pictures.colour_range(of_all)
  for run in report:
    for kind, words in _MATRICES.items():
      frames = [
        pictures.Frame(
          at=step,
          content=pictures.heat_map(
            matrices[kind],
            low,
            high,
            f'Similarity of the blocks of {run.name}, {words}, step {step:,}',
          ),
        )
        for step, matrices in run.similarity.shown
        if kind in matrices
      ]
      if frames:
        title = f'{run.name}, {words}' if len(report) > 1 else words
        reel = pictures.Reel(
          name=run.name, number=run.number, frames=frames, of=run.similarity.of, title=title
        )
        yield reel, low, high


def _profiles(report) -> list[markup.Html]:
  drawn = []
  for name, note in _OF_BLOCKS.items():
    lines: list[charts.Line] = []
    for run in report:
      shown = [(step, found[name]) for step, found in run.blocks.shown if name in found]
      shown = [(step, values) for step, values in shown if np.isfinite(values).all()]
      if len(report) > 1:
        lines += [_profile(run.name, run.number, values) for _, values in shown[-1:]]
        continue
      picked = [shown[i] for i in curves.evenly(len(shown), _STEPS_OF_ONE)]
      lines += [_profile(f'step {step:,}', i, values) for i, (step, values) in enumerate(picked)]
    if lines:
      when = '' if len(report) == 1 else ', at the last step that has it'
      title = name.replace('_', ' ')
      drawn.append(
        charts.chart(title, lines, along='block', note=f'{note}{when}.', own_names=len(report) == 1)
      )
  return drawn


def _profile(name, number, values):
  blocks = np.arange(1, len(values) + 1, dtype=np.float64)
  return charts.Line(name=name, number=number, xs=blocks, ys=values.astype(np.float64))


def _grid(drawn) -> markup.Html | None:
  return markup.tag('div', drawn, class_='charts') if drawn else None


def samples(report: Sequence[runs.Run], notes: list[str]) -> list[markup.Html]:
  """Grids of samples. notes: gets what cannot be shown."""
  reels, widest = [], _widest(report)
  for run in report:
    frames = []
    for step, png in run.previews.shown:
      alt = f'Grid of samples of {run.name}, step {step:,}'
      try:
        frames.append(pictures.Frame(at=step, content=pictures.picture(png, alt, widest)))
      except (ValueError, OSError) as error:
        notes.append(f'{run.name}: the preview of step {step} cannot be read: {error}')
    if frames:
      reels.append(
        pictures.Reel(name=run.name, number=run.number, frames=frames, of=run.previews.of)
      )
  return [pictures.film(reels, along='step', kind='samples')] if reels else []


def _widest(report) -> int:
  """Pixels across of pictures that are made smaller: more runs share the page."""
  return max(320, 1000 // len(report))


def cka(report: Sequence[runs.Run]) -> list[markup.Html]:
  """Linear unbiased CKA between blocks, by time."""
  of_all = [matrix for run in report for _, matrix in run.cka.shown]
  if not of_all:
    return []
  low, high = pictures.colour_range(of_all)
  reels = []
  for run in report:
    alt = f'CKA between the blocks of {run.name}'
    frames = [
      pictures.Frame(at=t, content=pictures.heat_map(m, low, high, f'{alt}, t = {t:g}'))
      for t, m in run.cka.shown
    ]
    if frames:
      reels.append(pictures.Reel(name=run.name, number=run.number, frames=frames, of=run.cka.of))
  return [
    pictures.scale(low, high, 'CKA, linear and unbiased'),
    pictures.film(reels, along='time t', kind='maps'),
  ]


def figures(report: Sequence[runs.Run], notes: list[str]) -> list[markup.Html]:
  """Pictures that other modes made, as they are. notes: gets what cannot be shown."""
  found: list[Any] = []
  most = max(1, _FIGURES // len(report))
  for run in report:
    if len(run.figures) > most:
      notes.append(f'{run.name}: {most} of {len(run.figures)} figures are shown')
    for name, png in list(run.figures.items())[:most]:
      try:
        image = pictures.picture(png, f'{name} of {run.name}', _widest(report))
      except (ValueError, OSError) as error:
        notes.append(f'{run.name}: {name} cannot be read: {error}')
        continue
      title = f'{run.name}: {name}' if len(report) > 1 else name
      found.append(
        markup.tag(
          'figure', markup.tag('figcaption', title), image, class_='reel', data_run=run.number
        )
      )
  if not found:
    return []
  return [markup.tag('div', markup.tag('div', found, class_='reels'), class_='film samples')]
