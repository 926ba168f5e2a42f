"""Sections of the page that are tables: overview, config, seconds, environment."""

from collections.abc import Mapping, Sequence
import datetime
import json
from typing import Any

from diversedit_jax import progress
from diversedit_jax.experiment import declarations
from diversedit_jax.reporting import charts, curves, markup, records, runs

ACROSS = 4  # Runs that are columns of a table; of more, each is a row.
_GOODPUT = (
  'train: steps that count; their share is the goodput. hooks: reports, telemetry, previews, '
  'scores. lost: steps that a later start made again. stopped: between starts, not in the total.'
)
_KINDS = ('train', 'compile', 'data', 'save', 'hooks', 'setup', 'lost')


def compared(
  report: Sequence[runs.Run], facts: Mapping[str, Sequence[Any]], title: str
) -> markup.Html:
  """Facts by name, each a value for each run: runs are columns if they are few."""
  names = [named(report, run) for run in report]
  if len(report) > ACROSS:
    rows = [[name, *values] for name, *values in zip(names, *facts.values(), strict=True)]
    return markup.table(['run', *facts], rows, rows_attributes=_of_runs(report), title=title)
  head = ['', *names] if len(report) > 1 else ['', '']
  return markup.table(head, [[key, *values] for key, values in facts.items()], title=title)


def swatch_of(run: runs.Run) -> list[Any]:
  """The name of a run after a piece of its line."""
  return [charts.swatch(run.number), run.name]


def named(report: Sequence[runs.Run], run: runs.Run) -> Any:
  """The name of a run, after a piece of its line if there are others."""
  return swatch_of(run) if len(report) > 1 else run.name


def _of_runs(report):
  return [{'data_run': run.number} for run in report]


def overview(report: Sequence[runs.Run]) -> list[markup.Html]:
  """What each run is and came to."""
  facts = [_overview_of(run) for run in report]
  keys = list(dict.fromkeys(key for of_one in facts for key in of_one))
  return [compared(report, {k: [of_one.get(k, '–') for of_one in facts] for k in keys}, 'Overview')]


def _overview_of(run) -> dict[str, str]:
  facts, last = run.facts, run.facts['last'] or {}
  done, planned = facts['steps']['done'], facts['steps']['planned']
  told = {
    'method': facts['method'],
    'data': facts['data'],
    'steps': f'{done:,} of {planned:,}' + (f' ({done / planned:.0%})' if done < planned else ''),
    'images seen': f'{facts["images"]:,}',
  }
  if last:
    when = '' if last['step'] == done else f' (step {last["step"]:,})'
    told |= {'last loss': f'{last["loss"]:.4g}{when}'}
  told |= (
    {'speed': f'{last["images_per_second"]:.4g} images/s'} if 'images_per_second' in last else {}
  )
  if facts['goodput']:
    told |= {'goodput': f'{facts["goodput"]["goodput"]:.1%}'}
    told |= {'time': progress.duration(facts['goodput']['total'])}
  final = [(f, c) for f, c in facts['scores'].items() if not f.startswith(records.DURING)]
  for _, content in final[-1:]:
    told |= {words(name): curves.number(value) for name, value in content['scores'].items()}
  return told


def words(name: str) -> str:
  """A name of a score without underscores."""
  return name.replace('_', ' ')


def as_text(given: Any) -> str:
  """A value of a config or a protocol, as JSON has it, words without quotes."""
  return given if isinstance(given, str) and given else json.dumps(given, ensure_ascii=False)


def config(report: Sequence[runs.Run]) -> list[markup.Html]:
  """What differs between runs, or from the defaults, and all keys."""
  declared = declarations.keys()
  plain = lambda value: list(value) if isinstance(value, tuple) else value
  keys = list(dict.fromkeys(key for run in report for key in run.config))
  values = {key: [run.config.get(key) for run in report] for key in keys}
  unlike = {k: v for k, v in values.items() if len({json.dumps(one) for one in v}) > 1}
  shared = {k: v[0] for k, v in values.items() if k not in unlike}
  defaults = {key: plain(declared[key].default) for key in shared if key in declared}
  chosen = {k: v for k, v in shared.items() if k not in defaults or v != defaults[k]}
  found = []
  if len(report) > 1:
    found += [markup.tag('h3', 'What differs between the runs')]
    told = {key: [as_text(value) for value in of_runs] for key, of_runs in unlike.items()}
    found += [compared(report, told, 'What differs')] if told else [markup.tag('p', 'Nothing.')]
  rows = [[key, as_text(value), as_text(defaults.get(key))] for key, value in chosen.items()]
  same = ' of those that are the same in all' if len(report) > 1 else ''
  whole = [[key, as_text(value)] for key, value in shared.items()]
  changed = markup.table(['key', 'value', 'default'], rows, title='What is not the default')
  summary = f'{len(rows)} keys{same} that are not the default'
  found += [
    markup.tag('details', markup.tag('summary', summary), changed, open=len(report) == 1),
    markup.tag(
      'details',
      markup.tag('summary', f'All {len(whole)} keys{same}'),
      markup.table(['key', 'value'], whole, title='Keys'),
    ),
  ]
  return found + _events(report)


def _events(report) -> list[markup.Html]:
  """Values that changed on the way, and steps that were left out."""
  lines = []
  for run in report:
    of = f'{run.name}, ' if len(report) > 1 else ''
    for entry in run.facts['changes']:
      lines.append(f'{of}step {entry["step"]:,}: {change(entry)}')
    for entry in run.facts['left_out']:
      lines.append(f'{of}step {entry["step"]:,} was left out: {entry["because"]}')
  if not lines:
    return []
  items = markup.tag('ul', [markup.tag('li', line) for line in lines])
  return [markup.tag('h3', 'What happened on the way'), items]


def change(entry: Mapping[str, Any]) -> str:
  """An entry of changes.json in words."""
  if 'rewound_to' in entry:
    return f'back to step {entry["rewound_to"]}'
  return ', '.join(f'{key} {to["old"]!r} -> {to["new"]!r}' for key, to in entry['changed'].items())


def goodput(report: Sequence[runs.Run]) -> list[markup.Html]:
  """Where the seconds went: a bar and a row for each run, and its starts."""
  told = [(run, run.facts['goodput']) for run in report if run.facts['goodput']]
  if not told:
    return []
  bars = [_bar(report, run, account) for run, account in told]
  rows = [
    [
      named(report, run),
      f'{account["goodput"]:.1%}',
      *(f'{account["seconds"].get(kind, 0.0):,.1f} s' for kind in _KINDS),
      f'{account["total"]:,.1f} s',
      f'{account["stopped"]:,.1f} s',
    ]
    for run, account in told
  ]
  starts = [
    [
      named(report, run),
      datetime.datetime.fromtimestamp(start['began']).isoformat(' ', 'minutes'),
      f'{start["from_step"]:,} to {start["to_step"]:,}',
      start['ended'] or 'no end was recorded',
    ]
    for run, account in told
    for start in account['starts']
  ]
  kinds = [(kind, number) for number, kind in enumerate(_KINDS)]
  of_rows = [{'data_run': run.number} for run, _ in told]
  head = ['run', 'goodput', *_KINDS, 'total', 'stopped']
  return [
    markup.tag('p', _GOODPUT, class_='faint'),
    markup.tag('p', [_key(kind, number) for kind, number in kinds], class_='legend'),
    markup.tag('div', bars, class_='bars'),
    markup.table(head, rows, rows_attributes=of_rows, title='Seconds by what they went into'),
    markup.tag(
      'details',
      markup.tag('summary', f'{len(starts)} start{"s" * (len(starts) > 1)}'),
      markup.table(['run', 'began', 'steps', 'ended'], starts, title='Starts'),
    ),
  ]


def _key(kind, number):
  return markup.tag('span', markup.tag('i', class_=f'b{number}'), kind)


def _bar(report, run, account):
  seconds, total = account['seconds'], account['total'] or 1.0
  shares = {kind: seconds.get(kind, 0.0) / total for kind in _KINDS}
  parts = [
    markup.tag(
      'span',
      class_=f'b{number}',
      style=f'flex-grow:{shares[kind]:.4f}',
      title=f'{kind} {shares[kind]:.1%}',
    )
    for number, kind in enumerate(_KINDS)
    if shares[kind] > 0
  ]
  words = ', '.join(f'{kind} {share:.1%}' for kind, share in shares.items() if share >= 0.0005)
  return markup.tag(
    'div',
    markup.tag('span', run.name, class_='of') if len(report) > 1 else None,
    markup.tag('div', parts, class_='bar', role='img', aria_label=f'{run.name}: {words}'),
    data_run=run.number,
  )


def environment(report: Sequence[runs.Run]) -> list[markup.Html]:
  """Versions, devices and data."""
  facts = [_environment_of(run) for run in report]
  keys = list(dict.fromkeys(key for of_one in facts for key in of_one))
  table = {key: [of_one.get(key, '–') for of_one in facts] for key in keys}
  if len(report) <= ACROSS:
    return [compared(report, table, 'Environment')]
  unlike = {key: values for key, values in table.items() if len(set(values)) > 1}
  same = [[key, values[0]] for key, values in table.items() if key not in unlike]
  return [
    markup.table(['', 'all runs'], same, title='Environment of all runs'),
    compared(report, unlike, 'Environment, where runs differ') if unlike else None,
  ]


def _environment_of(run) -> dict[str, str]:
  told = dict(run.facts['versions'] or {})
  told |= {f'attention on {platform}': kernel for platform, kernel in run.attention.items()}
  for content in run.facts['scores'].values():
    device = content['protocol'].get('device')
    if isinstance(device, dict):
      told['device of scores'] = f'{device.get("count")} x {device.get("kind")}'
  for key in ('name', 'examples', 'space', 'sha256'):
    if key in run.data:
      text = str(run.data[key])
      told[f'data, {key}'] = text[:16] if key == 'sha256' else text
  return told


def listed(names: Sequence[str], report: Sequence[runs.Run]) -> str:
  """Names of some of the runs, in few words."""
  if len(names) == len(report):
    return f'all {len(names)} runs'
  more = f' and {len(names) - ACROSS} more' if len(names) > ACROSS else ''
  return ', '.join(names[:ACROSS]) + more


def missing(report: Sequence[runs.Run], notes: Sequence[str]) -> list[markup.Html]:
  """What was not recorded, and what cannot be shown."""
  by_line: dict[str, list[str]] = {}
  for run in report:
    for line in run.missing:
      by_line.setdefault(line, []).append(run.name)
  many = len(report) > 1
  lines = [f'{line} ({listed(of, report)})' if many else line for line, of in by_line.items()]
  lines += notes
  return [markup.tag('ul', [markup.tag('li', line) for line in lines])] if lines else []
