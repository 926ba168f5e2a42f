"""The numbers that a run recorded of itself, as `report.json` has them."""

from collections.abc import Iterator, Mapping
import json
import math
import pathlib
from typing import Any

from diversedit_jax import checkpoint
from diversedit_jax.data import files
from diversedit_jax.experiment import continuing, flat_config, learned
from diversedit_jax.training import goodput, nonfinite, writers

DURING = 'eval/during/'
"""Where scores of online evaluations lie in a run."""


def gather(path: pathlib.Path) -> dict[str, Any]:
  """What a run recorded of itself; None, or nothing in a list, for what it did not."""
  config = flat_config.stored(path)
  rows = writers.read_jsonl(path / 'metrics.jsonl')
  trained = [row for row in map(finite, rows) if 'loss' in row]
  account = goodput.summary(writers.read_jsonl(path / goodput.FILE))
  steps = checkpoint.steps(path / 'checkpoints')
  versions = files.read_json(path / 'versions.json', list, may_lack=True)
  facts = {
    'run': str(path),
    'method': config['method'],
    'data': learned.read(path).get('name') or config['data.source'],
    'versions': versions[-1] if versions else None,
    'steps': {'planned': config['train.steps'], 'done': _done(trained, steps, account)},
    'images': None,
    'last': trained[-1] if trained else None,
    'goodput': account or None,
    'checkpoints': steps,
    'scores': scores(path),
    'changes': continuing.history(path),
    'left_out': files.read_json(path / nonfinite.FILE, list, may_lack=True),
  }
  facts['images'] = _images(facts['steps']['done'], config, continuing.changes(path))
  return facts | {'not_recorded': list(_missing(facts))}


def finite(row: Mapping[str, Any]) -> dict[str, Any]:
  """A row without numbers that are NaN or infinite, which JSON does not have."""
  return {k: v for k, v in row.items() if not isinstance(v, float) or math.isfinite(v)}


def _done(trained, checkpoints, account):
  """The last step that any record tells of; the run may have gone further before it was killed."""
  starts = account.get('starts', [])
  last = [starts[-1]['to_step']] if starts else []
  return max([*checkpoints, *last, *(row['step'] for row in trained[-1:])], default=0)


def _images(done, config, changes):
  """Examples of all steps, each with the batch size that it had."""
  key, images, until = 'train.batch_size', 0, done
  size = config[key]
  for step, changed in reversed(changes):
    if key in changed:
      at = min(step, until)
      images += (until - at) * size
      until, size = at, changed[key]['old']
  return images + until * size


def _missing(facts) -> Iterator[str]:
  """What the run did not record, in words."""
  account = facts['goodput']
  if facts['last'] is None:
    yield 'no losses: metrics.jsonl has no row of them'
  if account is None:
    yield f'where its seconds went: it has no {goodput.FILE}, which runs write since 0.3'
  elif account['unrecorded_steps']:
    yield f'where the seconds of steps 1 to {account["unrecorded_steps"]} went'
  *before, last = account['starts'] if account else [{'ended': ''}]
  if any(start['ended'] is None for start in before):
    yield 'the seconds after the last report of a start that was killed'
  if last['ended'] is None:
    yield 'the end of the last start: it was killed, or it still trains'
  if facts['versions'] is None:
    yield 'the versions of its packages'


def scores(folder: pathlib.Path) -> dict[str, Mapping[str, Any]]:
  """The contents of all files with scores and their protocol in a run, by path, oldest first."""
  found = {}
  for file in files.below(folder / 'eval', '.json'):
    try:
      content = json.loads(file.read_bytes())
    except ValueError:
      continue
    if isinstance(content, dict) and {'scores', 'protocol'} <= content.keys():
      found[file.relative_to(folder).as_posix()] = content
  return found
