"""What the runs of a study came to, read from their records, and what a step of each costs.

title, baseline, score, best, steps   of the study; `best` is 'min' or 'max'
floors       {score: that of real data}
variants     {name: changes against the baseline, parameters, flops_per_step, seconds_per_step}
runs         variant, seed, failed, scores {name: [[step, value], ...]}, series {name: the same}
device, versions
"""

from collections.abc import Mapping
import json
import math
import pathlib
import time
from typing import Any

import jax
import ml_collections

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import sharding, types
from diversedit_jax.analysis import output, registry
from diversedit_jax.data import files
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import continuing, eval_options, flat_config, study
from diversedit_jax.modes import online_eval, plan, run_context
from diversedit_jax.training import step, writers

_FAILED = 'diverged.json'
_SERIES = ('velocity', 'diverse/loss', 'diverse/weight', 'similarity/token', 'similarity/mean')
# Score of samples -> that of real pictures, as a scorer gives it beside the scores.
_FLOORS = {
  'frechet_distance': 'frechet_floor',
  'class_consistency': 'classifier_test_accuracy',
  'classifier_fid': 'classifier_fid_floor',
  'classifier_consistency': 'classifier_test_accuracy',
}
_ROUNDS, _STEPS = 8, 4
# What scores depend on that a run may change on its way; paths may be elsewhere by now.
_SCORING = ('eval.every', 'eval.every_number', 'eval.labels', 'eval.quantiser')
_SCORING += ('eval.precision_recall', 'eval.kid_subsets', 'sample.seed', 'sample.weights')


def check_config(path: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Refuses a run that was trained, or scored, by another config than a study asks for.

  Raises:
    UserError: what differs is listed; or its config is damaged.
  """
  stored, given = flat_config.stored(path), flat_config.of(config)
  if stored is None:
    return
  decides = lambda key: (
    key in _SCORING
    or key.startswith('sampler.')
    or not continuing.may_change(key, given, same_data=True)
  )
  changed = flat_config.differences(stored, given)
  if changed := {key: pair for key, pair in changed.items() if decides(key)}:
    raise types.UserError(
      f'{path} is a run of another config; it differs in {flat_config.listed(changed)}. To compare '
      f'what is there, give {continuing.flags(changed)}; or choose another --workdir'
    )


def is_done(path: pathlib.Path, config: ml_collections.ConfigDict) -> bool:
  """Whether a run was trained, scored and analysed to its end, or its numbers are not finite."""
  if (path / _FAILED).is_file():
    return True
  wanted, found = set(config.analysis.parts), output.read(path / 'analysis')['parts']
  analysed = wanted - {registry.ALL} <= found.keys() and (found or not wanted)
  return _scored(path, config.train.steps).is_file() and bool(analysed)


def note_failure(path: pathlib.Path, step: int, because: str) -> None:
  """Writes down that the numbers of a run are not finite, so that it is not tried again.

  step: the last one that is known to be fine or the first that is not; 0 for none.
  because: which numbers, in words.
  """
  card.write_json(path / _FAILED, {'step': step, 'because': because})


def gather(asked: study.Study, home: pathlib.Path, known: Mapping[str, Any]) -> dict[str, Any]:
  """The results of the runs that are done.

  Args:
    asked: the study. home: directory of its runs.
    known: results that were gathered before, whose costs of a step are kept; may be empty.
  """
  first = asked.variants[asked.baseline]
  score = first.eval.best
  device = jax.devices()[0].device_kind
  costs = known.get('variants', {}) if known.get('device') == device else {}
  variants = {name: {'changes': asked.changes(name)} for name in asked.variants}
  missing = [n for n in variants if 'seconds_per_step' not in costs.get(n, {})]
  costs = _costs(asked) if missing else costs
  for name, facts in variants.items():
    facts |= {key: value for key, value in costs[name].items() if key != 'changes'}
  # After the costs, which take minutes, in which other shares of the study may have ended.
  done = [one for one in asked.runs() if is_done(home / one.folder, one.config)]
  return {
    'title': asked.title,
    'baseline': asked.baseline,
    'score': score,
    'best': eval_options.BEST[score].__name__,
    'steps': first.train.steps,
    'floors': _floors(home, done),
    'variants': variants,
    'runs': [_records(home / one.folder, one) for one in done],
    'device': device,
    'versions': card.versions(),
  }


def write(path: pathlib.Path, results: Mapping[str, Any]) -> None:
  """Writes results as JSON with a line for each run and each variant, which differ readably."""
  dumped = lambda value: json.dumps(value, allow_nan=False, ensure_ascii=False)
  whole = {key: dumped(value) for key, value in results.items()}
  variants = (f'{dumped(name)}: {dumped(facts)}' for name, facts in results['variants'].items())
  whole['variants'] = '{\n  ' + ',\n  '.join(variants) + '\n }'
  whole['runs'] = '[\n  ' + ',\n  '.join(map(dumped, results['runs'])) + '\n ]'
  lines = ',\n '.join(f'{dumped(key)}: {text}' for key, text in whole.items())
  with files.atomic(path) as temporary:
    temporary.write_text(f'{{\n {lines}\n}}\n', encoding='utf-8')


def _scored(path, step):
  return path / online_eval.FOLDER / f'step-{step:08d}.json'


def _records(path, one):
  rows = writers.read_jsonl(path / 'metrics.jsonl')
  failed = files.read_json(path / _FAILED, may_lack=True) or None
  there = lambda key: [row for row in rows if math.isfinite(row.get(key, math.nan))]
  curve = lambda key: [[row['step'], float(f'{row[key]:.6g}')] for row in there(key)]
  names = sorted({key for row in rows for key in row if key.startswith('eval/')})
  return {
    'variant': one.variant,
    'seed': one.seed,
    'failed': failed,
    'scores': {name.removeprefix('eval/'): curve(name) for name in names},
    'series': {name: curve(name) for name in _SERIES if curve(name)} | _cka(path),
  }


def _cka(path):
  """The diversity score over the checkpoints, by time, if the part `steps` was analysed."""
  found = output.read(path / 'analysis')['parts'].get('steps', {}).get('summary', {})
  return {
    f'cka diversity, {time}': [
      [s, float(f'{v:.6g}')] for s, v in zip(found['steps'], values, strict=True)
    ]
    for time, values in found.get('diversity_score', {}).items()
  }


def _floors(home, done):
  """Scores of real data that a scorer gives beside those of samples."""
  for one in done:
    file = _scored(home / one.folder, one.config.train.steps)
    if file.is_file():
      found = files.read_json(file)
      return {k: found[key] for k, key in _FLOORS.items() if k in found['scores'] and key in found}
  return {}


def _costs(asked):
  """Parameters, FLOPs and seconds of a step of each variant.

  Seconds are the fewest of rounds in which all variants take turns, those that whatever else the
  machine does disturbed least; compilation is not included.
  """
  costs, steps = {}, {}
  for name, config in asked.variants.items():
    experiment = experiment_lib.build(config)
    planned = plan.numbers(experiment, jax.device_count())
    costs[name] = {
      'parameters': planned['parameters'],
      'flops_per_step': planned['training_gflops_per_image'] * 1e9 * config.train.batch_size,
    }
    steps[name] = _stepper(experiment)
  times = {name: [] for name in steps}
  for _ in range(_ROUNDS):
    for name, take in steps.items():
      times[name].append(take(_STEPS) / _STEPS)
  for name, seconds in times.items():
    costs[name] |= {'seconds_per_step': min(seconds), 'seconds_range': [min(seconds), max(seconds)]}
  return costs


def _stepper(experiment):
  """A function that takes so many steps on one batch and returns their seconds.

  Between its calls it holds nothing on the devices but that batch, so that variants that fill them
  can take turns.
  """
  mesh = run_context.make_mesh(experiment)
  experiment = run_context.with_attention(experiment, {})
  trainable = run_context.make_trainable(experiment, mesh)
  take = step.compile_step(run_context.make_step(experiment, trainable), trainable.shardings, mesh)
  with jax.set_mesh(mesh), run_context.open_batches(experiment, mesh, 0) as batches:
    batch = next(iter(batches))

  def run(count):
    with jax.set_mesh(mesh):
      frozen = jax.device_put(experiment.objective.frozen(), sharding.replicated(mesh))
      state, metrics = take(trainable.init(jax.random.key(experiment.seed)), batch, frozen)
      jax.block_until_ready(metrics)  # The first step may compile.
      started = time.perf_counter()
      for _ in range(count):
        state, metrics = take(state, batch, frozen)
      jax.block_until_ready(state)
      return time.perf_counter() - started

  run(1)
  return run
