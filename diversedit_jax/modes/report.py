"""`--mode=report`: what runs came to, on a page for a browser, as text, and as report.json.

Needs no config, and nothing that computes: all of it was recorded by the runs. Old runs recorded
less; what is missing is said.
"""

from collections.abc import Mapping, Sequence
import datetime
from typing import Any

from diversedit_jax import types
from diversedit_jax.data import files
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import run_dir
from diversedit_jax.modes import evaluate
from diversedit_jax.reporting import page, runs, tables
from diversedit_jax.training import goodput, progress

FOLDER, FILE, PAGE = 'report', 'report.json', 'index.html'
_TITLE = 14  # Width of the words at the left.
_FRAMES, _FRAMES_OF_ALL, _FEWEST = 12, 60, 3  # Steps that are shown: of a run, of all, at least.


def run(named: Sequence[str], output: str | None = None) -> str:
  """Writes the page and the numbers, and returns these as text.

  Args:
    named: directories of runs, or folders of runs. output: where the report goes; None means the
      one directory that is named.

  Raises:
    UserError: there is no run, its records are damaged, the report cannot be written, or nobody
      said where that of several directories goes.
  """
  named = named or ('',)
  if output is None and len(named) > 1:
    raise types.UserError(f'a report of {len(named)} directories needs --output=DIR, where it goes')
  found = runs.find(named)
  frames = max(_FEWEST, min(_FRAMES, _FRAMES_OF_ALL // len(found)))
  report = runs.read_all(found, frames)
  way_on = '' if output else '; --output=DIR writes the report elsewhere'
  folder = run_dir.open_for_output(output or named[0], FOLDER, way_on)
  single = len(report) == 1
  title = report[0].name if single else _title(named, report)
  written = page.write(report, title, datetime.datetime.now())
  with files.atomic(folder / PAGE) as temporary:  # A name in no encoding has surrogates.
    temporary.write_bytes(written.encode('utf-8', 'backslashreplace'))
  facts = {one.name: one.facts for one in report}
  card.write_json(folder / FILE, report[0].facts if single else {'runs': facts})
  pages = map(text, facts.values()) if single else [table(facts)]
  return '\n'.join([*pages, _line('page', folder / PAGE)])


def _title(named, report):
  """The name of the study, or those of a few runs."""
  if len(named) == 1:
    return run_dir.directory(named[0]).name
  return ', '.join(run.name for run in report[:3]) + ', ...' * (len(report) > 3)


def text(facts: Mapping[str, Any]) -> str:
  """The numbers of a run."""
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
  lines += _listed('changes', (f'step {e["step"]}: {tables.change(e)}' for e in facts['changes']))
  lines += _listed('left out', (f'step {e["step"]}: {e["because"]}' for e in facts['left_out']))
  lines += [] if account is None else _account(account)
  lines += _listed('not recorded', facts['not_recorded'])
  return '\n'.join(_line(title, line) for title, line in lines)


def table(facts: Mapping[str, Mapping[str, Any]]) -> str:
  """A line for each of several runs, by name."""
  rows = [('run', 'method', 'steps', 'loss', 'goodput', 'scores')]
  for name, of_one in facts.items():
    steps, last, account = of_one['steps'], of_one['last'], of_one['goodput']
    scores = [content['scores'] for content in of_one['scores'].values()]
    rows.append(
      (
        name,
        of_one['method'],
        f'{steps["done"]:,} of {steps["planned"]:,}',
        f'{last["loss"]:.4g}' if last else '-',
        f'{account["goodput"]:.1%}' if account else '-',
        evaluate.in_words(scores[-1]) if scores else '-',
      )
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  padded = [[f'{cell:<{w}}' for cell, w in zip(row, widths, strict=True)] for row in rows]
  return '\n'.join('  '.join(cells).rstrip() for cells in padded)


def _line(title, line):
  return f'{title:<{_TITLE}}{line}'.rstrip()


def _listed(title, lines):
  return [(title if i == 0 else '', line) for i, line in enumerate(lines)]


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
