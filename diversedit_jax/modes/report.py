"""`--mode=report`: the numbers of a run on a page of text, and in report/report.json.

Needs no config, and nothing that computes: all of it was recorded by the run. Old runs recorded
less; what is missing is said.
"""

from collections.abc import Iterator, Mapping
import datetime
import pathlib
from typing import Any

from diversedit_jax import checkpoint
from diversedit_jax.data import files
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import continuing, flat_config, learned, run_dir
from diversedit_jax.modes import evaluate, inspect
from diversedit_jax.training import goodput, nonfinite, progress, writers

FOLDER, FILE = 'report', 'report.json'
_TITLE = 14  # Width of the words at the left.


def run(workdir: str, output: str | None = None) -> str:
  """Writes the numbers and returns them as text.

  Args:
    workdir: directory of a run. output: where the file goes instead.

  Raises:
    UserError: there is no run, its records are damaged, or the file cannot be written.
  """
  facts = gather(run_dir.open_recorded(workdir))
  way_on = '' if output else '; --output=DIR writes the report elsewhere'
  folder = run_dir.open_for_output(output or workdir, FOLDER, way_on)
  card.write_json(folder / FILE, facts)
  return text(facts)


def gather(path: pathlib.Path) -> dict[str, Any]:
  """What a run recorded of itself; None, or nothing in a list, for what it did not."""
  config = flat_config.stored(path)
  rows = writers.read_jsonl(path / 'metrics.jsonl')
  trained = [row for row in rows if 'loss' in row]
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
    'scores': inspect.scores(path),
    'changes': continuing.history(path),
    'left_out': files.read_json(path / nonfinite.FILE, list, may_lack=True),
  }
  facts['images'] = _images(facts['steps']['done'], config, continuing.changes(path))
  return facts | {'not_recorded': list(_missing(facts))}


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


def text(facts: Mapping[str, Any]) -> str:
  """The page."""
  steps, last, account = facts['steps'], facts['last'], facts['goodput']
  done, planned = steps['done'], steps['planned']
  lines = [
    ('run', facts['run']),
    ('method', f'{facts["method"]}, {facts["data"]}'),
    ('steps', f'{done:,} of {planned:,} ({done / planned:.0%}), {facts["images"]:,} images'),
  ]
  if last is not None:
    losses = [f'{name} {value:.4g}' for name, value in progress.losses(last).items()]
    rates = [f'{last[k]:.4g} {k.replace("_per_", "/")}' for k in progress.RATES if k in last]
    lines += [('last report', ', '.join([f'step {last["step"]:,}', *losses, *rates]))]
  lines += [('checkpoints', ', '.join(map(str, facts['checkpoints'])) or 'none')]
  scores = facts['scores'].items()
  lines += _listed('scores', (f'{k}: {evaluate.in_words(v["scores"])}' for k, v in scores))
  lines += _listed('changes', map(_change, facts['changes']))
  lines += _listed('left out', (f'step {e["step"]}: {e["because"]}' for e in facts['left_out']))
  lines += [] if account is None else _account(account)
  lines += _listed('not recorded', facts['not_recorded'])
  return '\n'.join(f'{title:<{_TITLE}}{line}'.rstrip() for title, line in lines)


def _listed(title, lines):
  return [(title if i == 0 else '', line) for i, line in enumerate(lines)]


def _change(entry):
  if 'rewound_to' in entry:
    return f'step {entry["step"]}: back to step {entry["rewound_to"]}'
  named = (f'{key} {to["old"]!r} -> {to["new"]!r}' for key, to in entry['changed'].items())
  return f'step {entry["step"]}: {", ".join(named)}'


def _account(account):
  total = account['total']
  yield 'goodput', goodput.share_in_words(account)
  for kind, seconds in account['seconds'].items():
    note = (
      f'  {account["lost_steps"]:,} steps were made again' if kind == 'lost' and seconds else ''
    )
    share = seconds / total if total else 0.0
    yield f'  {kind}', f'{seconds:>12,.1f} s {share:>6.1%}{note}'
  yield '  stopped', f'{account["stopped"]:>12,.1f} s         between starts'
  for i, start in enumerate(account['starts']):
    began = datetime.datetime.fromtimestamp(start['began']).isoformat(' ', 'minutes')
    end = start['ended'] or 'no end was recorded'
    steps = f'steps {start["from_step"]:,} to {start["to_step"]:,}'
    yield 'starts' if i == 0 else '', f'{began}, {steps}: {end}'
