"""`--mode=replay --step=N`: one step of a run computed again, compared, and taken apart.

  newest checkpoint before step N -> the steps up to N, by the program of training -> diagnosis

All of a run is a function of (seed, step), so step N comes to the same bits as it did in training,
on the same machine and versions. Rows of metrics.jsonl and a checkpoint of step N, where there are
such, say whether it did. Nothing is written but `replay/step-N.json`.
"""

from collections.abc import Mapping
import contextlib
import math
from typing import Any

from absl import logging
import jax
import numpy as np

from diversedit_jax import checkpoint, rng, sharding, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.data import files
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import continuing, flat_config, kernels, learned, run_dir
from diversedit_jax.modes import run_context, same_bits
from diversedit_jax.training import average, diagnosis, nonfinite

FOLDER = 'replay'
_WORST = 8  # Examples in the table.


def run(
  experiment: experiment_lib.Experiment, workdir: str, step: int, output: str | None = None
) -> str:
  """Replays a step, counted from 1; returns a report, and writes it as JSON.

  Args:
    experiment: that of the run. workdir: directory of the run. step: to replay.
    output: where the file goes instead.

  Raises:
    UserError: the workdir holds no such run, or no checkpoint before the step; or the file cannot
      be written.
  """
  path = run_dir.open_for_reading(
    workdir, experiment.config, run_context.space_facts(experiment.source)
  )
  _check_run(experiment, path, step)
  way_on = '' if output else '; --output=DIR writes the replay elsewhere'
  results = run_dir.open_for_output(output or workdir, FOLDER, way_on)
  experiment = run_context.with_attention(experiment, kernels.read(path))
  mesh = run_context.make_mesh(experiment)
  experiment_lib.check_devices(experiment, mesh)
  trainable = run_context.make_trainable(experiment, mesh)
  folder = path / 'checkpoints'
  if not folder.is_dir():
    raise types.UserError(f'no {folder}; train first')
  more = map(average.item, trainable.averages)
  with (
    jax.set_mesh(mesh),
    contextlib.closing(
      checkpoint.Checkpoints(str(folder), more=more, read_only=True)
    ) as checkpoints,
  ):
    facts = _replay(experiment, path, step, trainable, checkpoints)
  if jax.process_index() == 0:
    files.write_json(results / f'step-{step}.json', _plain(facts))
  return table(facts)


def table(facts: Mapping[str, Any]) -> str:
  """The report in lines."""
  rows = [('step', f'{facts["step"]}, replayed from {facts["from"]}')]
  rows += [('recorded', line) for line in facts['recorded']]
  rows += [('not finite', line) for line in facts['findings'] or ['nothing']]
  rows.append(('metrics', ', '.join(f'{k} {v:.6g}' for k, v in facts['metrics'].items())))
  lines = [f'{name:<12}{text}' for name, text in rows]
  lines += ['', f'{"block":>5}{"output rms":>14}{"gradient":>14}{"parameters":>14}']
  lines += [
    f'{b["block"]:>5}{b["activation_rms"]:>14.5g}{b["gradient_norm"]:>14.5g}'
    f'{b["parameter_norm"]:>14.5g}'
    for b in facts['blocks']
  ]
  lines += ['', f'{"example":>9}{"row":>6}{"label":>7}{"t":>9}{"loss":>13}  name']
  lines += [
    f'{e["example"]:>9}{e["row"]:>6}{e["label"]:>7}{e["t"]:>9.5f}{e["loss"]:>13.5g}  {e["name"]}'
    for e in facts['examples'][:_WORST]
  ]
  if len(facts['examples']) > _WORST:
    lines.append(f'{"":>9}  ({len(facts["examples"])} in all)')
  return '\n'.join(line.rstrip() for line in lines)


def _check_run(experiment, path, step):
  """Refuses a step that the run does not have, another config and other data (UserError)."""
  if not 1 <= step <= experiment.train.steps:
    raise types.UserError(
      f'--step={step}: steps are counted from 1 to train.steps={experiment.train.steps}'
    )
  stored, given = flat_config.stored(path), flat_config.of(experiment.config)
  data, known = run_context.data_facts(experiment.source), learned.read(path)
  same_data = not known or known['sha256'] == data['sha256']
  if not same_data:
    raise types.UserError(
      f'workdir {path} learns from other data: {learned.changes(known, data)}. Restore them: a '
      'step is replayed on its own examples'
    )
  changed = {
    key: pair
    for key, pair in flat_config.differences(stored, given).items()
    if not continuing.may_change(key, given, same_data=True)
  }
  if changed:
    raise types.UserError(
      f'workdir {path} belongs to another config; it differs in {flat_config.listed(changed)}. '
      f'A step is replayed as it was: give {continuing.flags(changed)}'
    )


def _tell_of_changes(path, begun, step):
  """Warns where steps after `begun` were computed with values that the run has no more."""
  later = [(at, changed) for at, changed in continuing.changes(path) if at > begun]
  if later:
    logging.warning(
      "until step %d the run had other values (%s); steps %d to %d are replayed with today's",
      max(at for at, _ in later),
      ', '.join(dict.fromkeys(key for _, changed in later for key in changed)),
      begun + 1,
      step,
    )


def _others(experiment, path):
  """Values and versions that are not those of the run, in words; [] if all are."""
  versions = files.read_json(path / 'versions.json', list, may_lack=True)
  pairs = [(flat_config.stored(path), flat_config.of(experiment.config))]
  pairs += [(versions[-1], card.versions())] if versions else []
  others = [found for pair in pairs if (found := flat_config.differences(*pair))]
  return [f'not as in the run: {flat_config.listed(found)}' for found in others]


def _replay(experiment, path, step, trainable, checkpoints):
  """All that is known of the step; see `run`."""
  key, mesh = jax.random.key(experiment.seed), trainable.mesh
  begun, state, sums = _before(path, step, trainable, checkpoints, rng.stream(key, 'init'))
  began = checkpoints.name(begun) if begun else 'the beginning'
  logging.info('replaying steps %d to %d from %s', begun + 1, step, began)
  _tell_of_changes(path, begun, step)
  frozen = jax.device_put(experiment.objective.frozen(), sharding.replicated(mesh))
  compiled = run_context.make_steps(experiment, trainable)
  diagnose = diagnosis.make(
    experiment.objective.running(step - 1),
    trainable,
    key=rng.stream(key, 'train'),
    depth=experiment.architecture.depth,
    accumulate=experiment.train.accumulate,
  )
  left_out = {e['step']: e for e in files.read_json(path / nonfinite.FILE, list, may_lack=True)}
  rows = same_bits.Rows(path, sums)
  with run_context.open_batches(experiment, mesh, begun) as batches:
    for number in range(begun + 1, step):
      batch = next(batches)
      if number in left_out:
        state = nonfinite.passed_over(state)
        rows.leave_out(number)
      else:
        state, metrics = compiled(number, state, batch, frozen)
        rows.add(number, metrics)
    batch = next(batches)
    found = jax.device_get(diagnose(state, batch, frozen))
    if step in left_out:  # It is computed all the same, after what became of the run without it.
      compared = same_bits.compare(trainable, checkpoints, nonfinite.passed_over(state), step)
      _, metrics = compiled(step, state, batch, frozen)
      rows.leave_out(step)
    else:
      state, metrics = compiled(step, state, batch, frozen)
      rows.add(step, metrics)
      compared = same_bits.compare(trainable, checkpoints, state, step)
  recorded = [*rows.lines(), *compared]
  if any(' differs' in line for line in recorded):
    recorded += _others(experiment, path)
  metrics = {name: float(value) for name, value in jax.device_get(metrics).items()}
  if step in left_out:
    recorded.append(f'left out of the run, because {left_out[step]["because"]}')
  return {
    'step': step,
    'from': began,
    'recorded': recorded or ['neither a row nor a checkpoint to compare with'],
    **_described(experiment, step, found),
    'metrics': metrics,
  }


def _before(path, step, trainable, checkpoints, init_key):
  """(steps done, state, sums of metrics) of the newest checkpoint before a step, or at the start.

  Raises:
    UserError: there is no such checkpoint, and the run started from weights.
  """
  known = checkpoints.steps()
  before = [number for number in known if number < step]
  if before:
    number, items, meta = checkpoints.restore(trainable.targets(), before[-1])
    return number, trainable.assemble(number, items), meta['metrics']
  if run_dir.beginning(path):
    raise types.UserError(
      f'--step={step}: the run has no checkpoint before that step, found '
      f'{", ".join(map(str, known)) or "none"}, and it began from other weights; give a step after '
      'one of these, or keep more checkpoints (checkpoint.keep, checkpoint.keep_every)'
    )
  return 0, trainable.init(init_key), None


def _described(experiment, step, found):
  """Findings, blocks and examples, worst first, of a diagnosis."""
  source, indices = experiment.source, run_context.examples_of(experiment, step).tolist()
  names = [f'{index}{f" ({name})" if (name := source.name_of(index)) else ""}' for index in indices]
  rms_L = np.sqrt(np.mean(np.square(found['rms'].astype(np.float64)), axis=0))
  loss_N = found['loss']
  worst = np.argsort(np.where(np.isfinite(loss_N), -loss_N, -np.inf), kind='stable').tolist()
  return {
    'findings': diagnosis.findings(found, names),
    'blocks': [
      {
        'block': block + 1,
        'activation_rms': float(rms_L[block]),
        'gradient_norm': float(found['gradient_norm'][block]),
        'parameter_norm': float(found['parameter_norm'][block]),
      }
      for block in range(len(rms_L))
    ],
    'examples': [
      {
        'example': indices[row],
        'row': row,
        'label': int(found['label'][row]),
        't': float(found['t'][row]),
        'loss': float(loss_N[row]),
        'name': source.name_of(indices[row]),
      }
      for row in worst
    ],
  }


def _plain(value):
  """The value with words for numbers that JSON does not have."""
  if isinstance(value, dict):
    return {k: _plain(v) for k, v in value.items()}
  if isinstance(value, list):
    return [_plain(v) for v in value]
  return str(value) if isinstance(value, float) and not math.isfinite(value) else value
