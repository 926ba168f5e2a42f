"""`--mode=sweep`: one score over weights, guidance scales and intervals, as a table and a plot."""

import dataclasses
import json
import pathlib
from typing import Any

from absl import logging
import jax

from diversedit_jax import experiment as experiment_lib
from diversedit_jax.analysis import figures
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import eval_options
from diversedit_jax.modes import evaluate, guiding, null_label, opening, restoring
from diversedit_jax.sampling import trajectory
from diversedit_jax.training import average

_SETTING = ('weights', 'scale', 'interval', 'nfe', 'file')


def run(
  experiment: experiment_lib.Experiment, workdir: str, origin: str | None
) -> list[pathlib.Path]:
  """Scores samples of every setting; writes a table and a plot beside one file for each.

  A setting that was scored before is not sampled again, so a sweep may be interrupted or extended.

  Raises:
    UserError: a guided setting for a model without classes or for MeanFlow; see `evaluate`.
  """
  options, rows = experiment.sweep, []
  if options.weights:
    restoring.check_weights(workdir, origin, options.weights, 'sweep.weights')
  warnings = [f'{options.number} samples each: compare these among themselves, and quote none']
  for chosen in options.weights or (experiment.sample.weights,):
    of_these = dataclasses.replace(
      experiment, sample=dataclasses.replace(experiment.sample, weights=chosen)
    )
    path, weights = restoring.open_weights(of_these, workdir, origin)
    if not rows:
      folder, name = path / 'eval', 'sweep-' + weights.named(experiment.evaluation.name)
      samplers = _samplers(experiment, weights)
      labels_N = evaluate.make_labels(experiment, options.number)
      scorer = opening.open_all(experiment, weights.mesh, folder / 'references')
      opening.check_score('sweep.score', options.score, scorer)
    weights = guiding.with_guide(experiment, workdir, weights, samplers, evaluate.KEY)
    kind = weights.kind if options.weights else ''
    evaluations = [
      evaluate.Evaluation(
        experiment, weights, scorer, labels_N, folder / name, _point_name(sampler, kind), sampler
      )
      for sampler in samplers
    ]
    for sampler, one in zip(samplers, evaluations, strict=True):
      count = len(samplers) * max(len(options.weights), 1)
      logging.info('setting %d of %d: %s', len(rows) + 1, count, one.result.stem)
      one.run(keep_samples=False)
      rows.append({})
      if jax.process_index() == 0:
        found = json.loads(one.result.read_bytes())
        rows[-1] = _row(sampler, kind, found, f'{name}/{one.result.name}')
        warnings += [line for line in found['warnings'] if line not in warnings]
    del weights, evaluations, one  # Before the next are read.
  return _write(folder, name, options, rows, warnings) if jax.process_index() == 0 else []


def _write(folder, name, options, rows, warnings) -> list[pathlib.Path]:
  """Writes and logs the table, and the plot; their paths."""
  choose = eval_options.BEST[options.score]
  best = choose(rows, key=lambda row: row[options.score])
  table, plot = folder / f'{name}.json', folder / f'{name}.png'
  card.write_json(
    table,
    {
      'score': options.score,
      'number': options.number,
      'best': best,
      'rows': rows,
      'warnings': warnings,
    },
  )
  label = f'{options.score.replace("_", " ")} of {options.number} samples'
  figures.guidance_curves(
    plot, label=label, lowest_is_best=choose is min, **_plotted(rows, options.score)
  )
  evaluate.warn(name, warnings)
  logging.info('%s\nprotocol of the best: %s', as_text(rows, options.score, best), best['file'])
  return [table, plot]


def as_text(rows: list[dict[str, Any]], score: str, best: dict[str, Any]) -> str:
  """The table for a terminal; the best setting has a star."""
  names = [score, *(k for k in rows[0] if k not in (score, *_SETTING))]
  width = max(len(row.get('weights', '')) for row in rows)
  title = f'{"weights":<{width}}  ' if width else ''
  lines = [f'{title}{"scale":>7}  {"interval":<12}{"NFE":>6}' + ''.join(f'{n:>22}' for n in names)]
  for row in rows:
    low, high = row['interval']
    star = ' *' if row is best else ''
    numbers = ''.join(f'{row[n]:>22.5g}' for n in names)
    of = f'{row["weights"]:<{width}}  ' if width else ''
    lines.append(
      f'{of}{row["scale"]:>7g}  {f"[{low:g}, {high:g}]":<12}{row["nfe"]:>6}{numbers}{star}'
    )
  return '\n'.join(lines)


def _plotted(rows, score):
  """What the plot shows, and against what: the guidance scale, or if that is one the width."""
  by_weights: dict[str, list] = {}
  for row in rows:
    by_weights.setdefault(row.get('weights', ''), []).append(row)
  widths = {name: average.chosen(name, '') for name in by_weights if name}
  if len(rows) == len(widths) > 1 and all(
    isinstance(one, average.PowerFunction) for one in widths.values()
  ):
    curve = {widths[row['weights']].std: row[score] for row in rows}
    scale = f'scale {rows[0]["scale"]:g}'
    return {'curves': {scale: curve}, 'against': 'width (std) of the average', 'title': 'guidance'}
  named = lambda name, interval: f'{name} {interval}' if name else interval
  return {
    'curves': {
      named(name, interval): curve
      for name, of_one in by_weights.items()
      for interval, curve in _curves(of_one, score).items()
    }
  }


def _curves(rows, score):
  """{interval in words: {scale: score}}; scale 1, if tried once, belongs to every interval."""
  at_1 = [row for row in rows if row['scale'] == 1]
  unguided = {row['scale']: row[score] for row in at_1} if len(at_1) == 1 else {}
  curves: dict[str, dict[float, float]] = {}
  for row in rows:
    if row not in at_1 or not unguided:
      low, high = row['interval']
      curves.setdefault(f'[{low:g}, {high:g}]', dict(unguided))[row['scale']] = row[score]
  return curves or {'unguided': unguided}


def _samplers(experiment, weights) -> list[trajectory.SamplerConfig]:
  """Those of all settings; refuses guidance that the weights never learned (UserError)."""
  base = null_label.sampler_for(experiment, evaluate.KEY)
  token = dataclasses.replace(base, guidance_scale=1.0).guided
  points = experiment.sweep.points(guided_at_1=token)
  samplers = [_sampler(experiment, base, *point) for point in points]
  null_label.check_trained(
    experiment, weights.label_dropout, samplers, evaluate.KEY, scale='sweep.guidance_scales'
  )
  null_label.check_changes(experiment, evaluate.KEY, samplers)
  return samplers


def _sampler(experiment, base, scale, low, high) -> trajectory.SamplerConfig:
  sampler = dataclasses.replace(base, guidance_scale=scale, guidance_low=low, guidance_high=high)
  trajectory.check_guidance(sampler, experiment.objective.flow.null_label)
  experiment.objective.flow.check_sampler(sampler)
  return sampler


def _point_name(sampler, kind):
  name = f'w{sampler.guidance_scale:g}-t{sampler.guidance_low:g}-{sampler.guidance_high:g}'
  return f'{name}-{kind}' if kind else name


def _row(sampler, kind, found, file):
  return {
    **({'weights': kind} if kind else {}),
    'scale': sampler.guidance_scale,
    'interval': [sampler.guidance_low, sampler.guidance_high],
    'nfe': trajectory.evaluations(sampler).per_sample,
    'file': file,
    **found['scores'],
  }
