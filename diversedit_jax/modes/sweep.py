"""`--mode=sweep`: one score over guidance scales and intervals, as a table and a plot."""

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
from diversedit_jax.modes import evaluate, null_label, opening, restoring
from diversedit_jax.sampling import trajectory


def run(
  experiment: experiment_lib.Experiment, workdir: str, origin: str | None
) -> list[pathlib.Path]:
  """Scores samples of every setting; writes a table and a plot beside one file for each.

  A setting that was scored before is not sampled again, so a sweep may be interrupted or extended.

  Raises:
    UserError: a guided setting for a model without classes or for MeanFlow; see `evaluate`.
  """
  options = experiment.sweep
  path, weights = restoring.open_weights(experiment, workdir, origin)
  folder = path / 'eval'
  name = 'sweep-' + weights.named(experiment.evaluation.name)
  base = null_label.sampler_for(experiment, evaluate.KEY)
  token = dataclasses.replace(base, guidance_scale=1.0).guided
  samplers = [_sampler(experiment, base, *point) for point in options.points(guided_at_1=token)]
  null_label.check_trained(
    experiment, weights.label_dropout, samplers, evaluate.KEY, scale='sweep.guidance_scales'
  )
  null_label.check_changes(experiment, evaluate.KEY, samplers)
  labels_N = evaluate.make_labels(experiment, options.number)
  scorer = opening.open_all(experiment, weights.mesh, folder / 'references')
  opening.check_score('sweep.score', options.score, scorer)
  evaluations = [
    evaluate.Evaluation(
      experiment, weights, scorer, labels_N, folder / name, _point_name(sampler), sampler
    )
    for sampler in samplers
  ]
  rows: list[dict[str, Any]] = []
  warnings = [f'{options.number} samples each: compare these among themselves, and quote none']
  for i, (sampler, one) in enumerate(zip(samplers, evaluations, strict=True)):
    logging.info('setting %d of %d: %s', i + 1, len(samplers), _point_name(sampler))
    one.run(keep_samples=False)
    if jax.process_index() == 0:
      found = json.loads(one.result.read_bytes())
      rows.append(_row(sampler, found, f'{name}/{one.result.name}'))
      warnings += [line for line in found['warnings'] if line not in warnings]
  if jax.process_index() != 0:
    return []
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
  curves = _curves(rows, options.score)
  figures.guidance_curves(plot, curves, label=label, lowest_is_best=choose is min)
  evaluate.warn(name, warnings)
  logging.info('%s\nprotocol of the best: %s', as_text(rows, options.score, best), best['file'])
  return [table, plot]


def as_text(rows: list[dict[str, Any]], score: str, best: dict[str, Any]) -> str:
  """The table for a terminal; the best setting has a star."""
  names = [score, *(k for k in rows[0] if k not in (score, 'scale', 'interval', 'nfe', 'file'))]
  lines = [f'{"scale":>7}  {"interval":<12}{"NFE":>6}' + ''.join(f'{n:>22}' for n in names)]
  for row in rows:
    low, high = row['interval']
    star = ' *' if row is best else ''
    numbers = ''.join(f'{row[n]:>22.5g}' for n in names)
    lines.append(f'{row["scale"]:>7g}  {f"[{low:g}, {high:g}]":<12}{row["nfe"]:>6}{numbers}{star}')
  return '\n'.join(lines)


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


def _sampler(experiment, base, scale, low, high) -> trajectory.SamplerConfig:
  sampler = dataclasses.replace(base, guidance_scale=scale, guidance_low=low, guidance_high=high)
  trajectory.check_guidance(sampler, experiment.objective.flow.null_label)
  experiment.objective.flow.check_sampler(sampler)
  return sampler


def _point_name(sampler):
  return f'w{sampler.guidance_scale:g}-t{sampler.guidance_low:g}-{sampler.guidance_high:g}'


def _row(sampler, found, file):
  return {
    'scale': sampler.guidance_scale,
    'interval': [sampler.guidance_low, sampler.guidance_high],
    'nfe': trajectory.evaluations(sampler).per_sample,
    'file': file,
    **found['scores'],
  }
