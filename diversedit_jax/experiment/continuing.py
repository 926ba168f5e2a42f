"""How a run goes on with other values, or from an earlier step: what may change, and what is kept.

A key on which nothing depends that was learned (`may_change`) changes by itself. Any other must be
named, as in `--continue_with=optimizer.learning_rate,seed`, and those of the network or the data
never change. changes.json lists every change: its step, and old and new value by key.
"""

from collections.abc import Collection, Mapping, Sequence
import pathlib
import re
import shlex
from typing import Any
import uuid

from absl import logging

from diversedit_jax import checkpoint, trees, types
from diversedit_jax.data import bad_records, files
from diversedit_jax.experiment import declarations, flat_config
from diversedit_jax.methods import registry
from diversedit_jax.training import nonfinite

CHANGES = 'changes.json'
SET_ASIDE = 'set_aside'

# Where they lie, files that have the step at the end of their name.
_BY_STEP = (
  'checkpoints/*',
  'samples/preview-*',
  'telemetry/*',
  'eval/during/step-*',
  'replay/step-*',
)


def check(
  path: pathlib.Path,
  changed: flat_config.Changed,
  given: Mapping[str, Any],
  *,
  same_data: bool,
  named: Sequence[str],
) -> None:
  """Refuses changes that were not named, and those with which a run cannot go on.

  Args:
    path: directory of the run.
    changed: what differs. given: the whole flat config.
    same_data: whether the examples are known to be those that the run learns from.
    named: keys that may change, or 'SECTION.*'.

  Raises:
    UserError: with the way on; or a name is unknown, or of a key that does not change.
  """
  free = {key for key in changed if may_change(key, given, same_data=same_data)}
  asked = _asked(named, changed, given, history(path))
  held = {key: pair for key, pair in changed.items() if key not in free}
  fixed = {key: why for key in held if (why := _fixed(key, held[key], same_data))}
  if fixed:
    what, verb = ' and '.join(dict.fromkeys(fixed.values())), 'decide' + 's' * (len(fixed) == 1)
    raise types.UserError(
      f'workdir {path} belongs to another config; it differs in {flat_config.listed(held)}. '
      f'{", ".join(fixed)} {verb} {what}, so the run cannot go on with that: {from_weights(path)}, '
      f'or give what is stored: {flags(held, fixed)}'
    )
  unasked = {key: pair for key, pair in held.items() if key not in asked}
  if unasked:
    keys = ','.join([*named, *unasked])
    raise types.UserError(
      f'workdir {path} belongs to another config; it differs in {flat_config.listed(unasked)}. '
      f'To go on from step {newest_step(path)} with what is given, add --continue_with={keys}; to '
      f'go on as before, give {flags(unasked)}; or choose another workdir'
    )


def may_change(key: str, given: Mapping[str, Any], *, same_data: bool) -> bool:
  """Whether a run may continue with another value of a key that nobody named; see `check`."""
  if key in ('data.source', 'data.classes', 'data.labels'):
    return same_data
  if key == 'train.steps' and given['optimizer.schedule'] != 'constant':
    # Otherwise the learning rate jumps.
    return given['optimizer.decay_end'] is not None
  if key == 'train.accumulate' and registry.needs(given['method'], 'couples_examples'):
    return False  # Such a loss is that of each microbatch.
  section, declared = key.partition('.')[0], declarations.keys()
  if section in registry.sections() and not registry.reads(given['method'], key):
    return True
  return key in declared and declared[key].may_change


def flags(changed: flat_config.Changed, keys: Collection[str] | None = None) -> str:
  """The flags that give the stored values, of some keys or of all that changed."""
  pairs = ((key, changed[key][0]) for key in keys or changed)
  return ' '.join(shlex.quote(f'--config.{key}={value}') for key, value in pairs)


def from_weights(path: pathlib.Path) -> str:
  """The way on where a run cannot go on, in words."""
  step = newest_step(path)
  if not step:
    return 'choose another workdir'
  return (
    f'start a new run from its weights by another --workdir and '
    f'--config.init_from={path}/checkpoints/{step}'
  )


def history(path: pathlib.Path) -> list[dict[str, Any]]:
  """The changes of a run so far, oldest first.

  Raises:
    UserError: the file is damaged.
  """
  return files.read_json(path / CHANGES, list, may_lack=True)


def changes(path: pathlib.Path) -> list[tuple[int, Mapping[str, Any]]]:
  """The changes of a run's values, oldest first: the step after which they hold, and by key
  'old' and 'new'.

  A run that goes back to an earlier step takes its values along, so they hold from there on.
  """
  past, found = history(path), []
  for i, entry in enumerate(past):
    if 'changed' in entry:
      back = [later['rewound_to'] for later in past[i:] if 'rewound_to' in later]
      found.append((min([entry['step'], *back]), entry['changed']))
  return found


def record(path: pathlib.Path, entry: Mapping[str, Any]) -> None:
  """Adds an entry to the changes of a run."""
  files.write_json(path / CHANGES, [*history(path), dict(entry)])


def record_changes(path: pathlib.Path, changed: flat_config.Changed) -> None:
  """Keeps the stored config, which held until now, under another name, and lists what changes."""
  step = newest_step(path)
  logging.info('the run goes on at step %d with %s', step, flat_config.listed(changed))
  files.copy(path / flat_config.FILE, path / f'config.until-{step}-{uuid.uuid4().hex[:8]}.json')
  record(
    path,
    {'step': step, 'changed': {k: {'old': old, 'new': new} for k, (old, new) in changed.items()}},
  )


def newest_step(path: pathlib.Path) -> int:
  """The step of the newest checkpoint in a run's directory, 0 without one."""
  return max(checkpoint.steps(path / 'checkpoints'), default=0)


def rewind(path: pathlib.Path, step: int, *, changed: bool) -> None:
  """Sets aside what a run made after an earlier checkpoint, from which it then goes on.

  A second start of the same command, of a job that was requeued, changes nothing. One that was
  killed in here is done again: the record of it is written last.

  Args:
    path: directory of the run. step: step of the checkpoint. changed: whether values change too.

  Raises:
    UserError: there is no such checkpoint.
  """
  rewound = [entry for entry in history(path) if 'rewound_to' in entry]
  if rewound and rewound[-1]['rewound_to'] == step and not changed:
    logging.info('the run has gone back to step %d already, and goes on', step)
    return
  steps = checkpoint.steps(path / 'checkpoints')
  if step not in steps:
    raise types.UserError(
      f'--continue_from={step}: {path}/checkpoints has no such step; found {steps}'
    )
  later = [p for pattern in _BY_STEP for p in path.glob(pattern) if (_step(p) or 0) > step]
  best = path / 'eval' / 'during' / 'best.json'
  if best.exists() and files.read_json(best).get('step', 0) > step:
    later += [p for p in (best, best.with_suffix('.safetensors')) if p.exists()]
  folder = path / SET_ASIDE / f'after-{step}-{uuid.uuid4().hex[:8]}'
  folder.mkdir(parents=True)
  if (path / 'metrics.jsonl').exists():  # Its later rows are dropped when the run goes on.
    files.copy(path / 'metrics.jsonl', folder / 'metrics.jsonl')
  if (path / nonfinite.FILE).exists():
    files.copy(path / nonfinite.FILE, folder / nonfinite.FILE)
    nonfinite.forget_after(path, step)
  bad_records.forget_after(path, step)
  for one in later:
    files.move(one, folder / one.relative_to(path))
  aside = str(folder.relative_to(path))
  record(path, {'step': max(steps), 'rewound_to': step, 'set_aside': aside})
  logging.info('the run goes back to step %d; what came later is in %s', step, folder)


def _fixed(key, pair, same_data):
  """What a key decides that a run keeps for ever, in words; '' for one that may be named."""
  if key == 'method':
    same = len({registry.trained_parts(method) for method in pair}) == 1
    return '' if same else 'the network'
  if key == 'data.num_classes' or declarations.keys()[key].decides_network:
    return 'the network'
  if key in ('data.source', 'data.classes', 'data.labels'):
    return '' if same_data else 'the examples'
  if key == 'init_from' or key.startswith('init.'):
    return 'what the run started from'
  if key in ('optimizer.freeze', 'optimizer.name', 'optimizer.muon.parameters'):
    return 'which parameters have which moments'
  return 'the examples' if key.startswith('data.') and key != 'data.flip' else ''


def _asked(named: Sequence[str], changed: Collection[str], given, past) -> set[str]:
  """The keys that are named, each of which must change, or have been changed so before."""
  declared, found = declarations.keys(), set()
  sections = {f'{key.rpartition(".")[0]}.*' for key in declared if '.' in key}
  made = {
    key for e in past for key, to in e.get('changed', {}).items() if to['new'] == given.get(key)
  }
  for name in (name.strip().removeprefix('config.') for name in named):
    if name not in declared and name not in sections:
      hint = trees.did_you_mean(name, [*declared, *sections])
      raise types.UserError(f'--continue_with={name}: unknown key{hint}')
    keys = {name} if name in declared else {k for k in declared if k.startswith(name[:-1])}
    if not keys & {*changed, *made}:
      what = f'{name} is {given[name]!r}' if name in declared else f'all of {name} is'
      raise types.UserError(
        f'--continue_with={name}: {what} as the run has it; leave it out, or give another value'
      )
    found |= keys
  return found


def _step(path):
  """The step at the end of a file's name, or None."""
  found = re.search(r'(?:^|-)(\d+)$', path.stem)
  return int(found[1]) if found else None
