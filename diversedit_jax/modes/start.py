"""The weights from which a run starts, `init_from`: found, fitted, told and recorded."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from absl import logging
import ml_collections

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import trees, types
from diversedit_jax.experiment import continuing, flat_config, learned, run_dir
from diversedit_jax.modes import null_label, origins, run_context
from diversedit_jax.training import initial
from diversedit_jax.training import state as state_lib
from diversedit_jax.weights import array_files, location, misfits

# The same arrays are another network under another value of these.
_FIXED = ('model.heads', 'model.skip.placement')


@dataclasses.dataclass(frozen=True)
class Beginning:
  """Initial weights, and what init.json says of them."""

  start: initial.Start
  facts: Mapping[str, Any]


def with_checkpoint(config: ml_collections.ConfigDict, origin: str) -> ml_collections.ConfigDict:
  """A config that starts from what `--checkpoint` names.

  Raises:
    UserError: `init_from` names something else.
  """
  given = config.get('init_from', '')
  if not origin:
    raise types.UserError('--checkpoint is empty: give a file of weights or checkpoints/STEP')
  if given not in ('', origin):
    raise types.UserError(
      f'--checkpoint={origin} and config.init_from={given} name two things to start from; give '
      'one of them'
    )
  return ml_collections.ConfigDict({**config.to_dict(), 'init_from': origin})


def begin(
  experiment: experiment_lib.Experiment, trainable: state_lib.Trainable, workdir: str
) -> tuple[experiment_lib.Experiment, Beginning | None, Mapping[str, Any]]:
  """What a run starts from.

  A run that goes on is not started again: it needs neither the weights nor the keys that name them,
  and weights that have moved are known by their digest.

  Returns:
    The experiment, with the keys by which the workdir's run started where it need not say them; the
    weights to start from, None for random ones or a run that goes on; and what init.json says of
    them, {} for random ones.

  Raises:
    UserError: no such weights, or they do not fit; or the workdir's run started from others.
  """
  path, stored = run_dir.started_from(workdir)
  recorded = run_dir.beginning(path)
  if stored is not None:
    if not experiment.init_from:
      experiment = _with_keys(experiment, stored)
    elif experiment.init_from != stored['init_from']:
      _check_same_weights(experiment, path, stored, recorded)
      experiment = _with_keys(experiment, {'init_from': stored['init_from']})
  if not experiment.init_from or continuing.newest_step(path):
    return experiment, None, recorded
  found = _begin(experiment, trainable)
  if recorded and recorded['sha256'] != found.facts['sha256']:
    raise types.UserError(
      f'init_from={experiment.init_from} is not what the run in {path} started from: SHA-256 '
      f'{recorded["sha256"]}, now {found.facts["sha256"]}. Restore it, or choose another workdir'
    )
  return experiment, found, found.facts


def tell(found: Beginning, trainable: state_lib.Trainable) -> None:
  """Logs what is kept, fitted, new and left out."""
  start, facts, shapes = found.start, found.facts, trees.named_leaves(trainable.params)
  logging.info(
    'starting from %s (%s%s), SHA-256 %s',
    facts['from'],
    facts['weights'],
    '' if facts['step'] is None else f' of step {facts["step"]}',
    facts['sha256'],
  )
  size = lambda names: f'{sum(trees.count(shapes[n]) for n in names):,} parameters'
  logging.info('kept: %d arrays, %s', len(start.kept), size(start.kept))
  for name, how in start.fitted.items():
    logging.info('fitted: %s: %s', name, how)
  for how in dict.fromkeys(start.new.values()):
    names = [name for name in start.new if start.new[name] == how]
    logging.info('new (%s): %s, %s', how, misfits.first_few(names), size(names))
  if start.left_out:
    logging.info('left out: %s', misfits.first_few(start.left_out))
  for key, (theirs, ours) in facts['differs'].items():
    logging.warning('the weights were trained with %s=%r, and go on with %r', key, theirs, ours)
  asleep = sorted(trainable.fixed & {*start.new, *start.rows})
  if asleep:
    logging.warning(
      'optimizer.freeze keeps what is new as it starts: %s', misfits.first_few(asleep)
    )


def _begin(experiment, trainable):
  """Reads and fits the weights."""
  options = experiment.init
  origin, differs, arrays = run_context.on_all_processes(lambda: _read(experiment))
  digest = array_files.digest(arrays.items())
  run_context.check_same_everywhere(digest, f'init_from={experiment.init_from}')
  start = initial.fit(
    arrays,
    {name: x.shape for name, x in trees.named_leaves(trainable.params).items()},
    options,
    channels=experiment.architecture.channels,
    names=learned.that_say_something(experiment.source.label_names),
    found_names=learned.that_say_something(_known(origin)[1].get('label_names') or ()),
    origin=f'init_from={experiment.init_from}',
  )
  facts = {
    'from': location.place_of(origin.path) or str(origin.path),
    'weights': 'file' if origin.step is None else options.weights,
    'step': origin.step,
    'sha256': digest,
    'kept': start.kept,
    'fitted': start.fitted,
    'new': start.new,
    'left_out': start.left_out,
    'differs': differs,
    'label_dropout': _dropped(origin, start),
  }
  return Beginning(start, facts)


def _dropped(origin, fitted):
  """The share of labels that was dropped for the null label's row that is taken; 0 for none."""
  table = fitted.values.get(initial.TABLE)
  return null_label.dropped_for(origin) if table is not None and table[-1].any() else 0.0


def _read(experiment):
  """The origin, what else differs, and the arrays by path."""
  origin, wanted = origins.find(experiment.init_from), experiment.init.weights
  choice = None if origin.step is None else origin.choice(wanted, 'init.weights')
  if origin.step is None and wanted != 'ema':
    raise types.UserError(
      f'init.weights={wanted} chooses among those of a checkpoint, but {origin.name} is a file, '
      'which holds one set: leave it out'
    )
  return origin, _differences(origin, experiment), origin.arrays(choice)


def _differences(origin, experiment):
  """What a checkpoint's run has otherwise than this one that its arrays do not show, by key.

  Raises:
    UserError: under that, the same arrays are another network.
  """
  stored, data = _known(origin)
  found = {}
  if stored:
    given = flat_config.of(experiment.config)
    theirs, ours = flat_config.decisive(stored), flat_config.decisive(given)
    shown = {'model.time_input', 'interpolant.path', 'interpolant.prediction', 'model.heads'}
    if theirs['model.skip.enabled'] and ours['model.skip.enabled']:
      shown.add('model.skip.placement')
    found = {k: v for k, v in flat_config.differences(theirs, ours).items() if k in shown}
  for key in _FIXED:
    if key in found:
      theirs, ours = found[key]
      raise types.UserError(
        f'init_from={experiment.init_from} was trained with {key}={theirs!r}, given {ours!r}: the '
        f'same arrays would be another network. Give --config.{key}={theirs}'
      )
  here = run_context.space_facts(experiment.source)
  known = [name for name in run_dir.SPACE if data.get(name) and name in here]
  flat = (flat_config.flatten({name: of[name] for name in known}) for of in (data, here))
  return found | flat_config.differences(*flat)


def _known(origin):
  """What the folder of weights says: a flat config, None if it has none, and facts of the data."""
  if origin.about is not None:
    return origin.about.config, origin.about.data
  if origin.run is not None:
    return flat_config.stored(origin.run), learned.read(origin.run)
  return None, {}


def _check_same_weights(experiment, path, stored, recorded):
  """Refuses weights by another path that are not those that the workdir's run started from."""
  began = stored['init_from']
  if began:
    origin = origins.find(experiment.init_from)
    choice = None if origin.step is None else origin.choice(stored['init.weights'], 'init.weights')
    arrays = origin.arrays(choice)
    if recorded.get('sha256') == array_files.digest(arrays.items()):
      return
  raise types.UserError(
    f'workdir {path} holds a run that started from {began or "random parameters"}; '
    f'init_from={experiment.init_from} starts a new one: choose another --workdir, or leave '
    'init_from out to go on'
  )


def _with_keys(experiment, keys):
  """The experiment with other values of init keys, by whole key."""
  config = experiment.config.copy_and_resolve_references()
  config.update_from_flattened_dict(keys)
  return dataclasses.replace(
    experiment,
    config=config,
    init_from=config.init_from,
    init=initial.Options(**config.init.to_dict()),
  )
