"""Merges benchmarks/results/*.json into benchmarks/README.md: every goal and what was measured.

  python benchmarks/report.py

A goal is met only if the whole spread of its number is on the right side; of few rounds, the
verdict says how many. Nothing in the table is written by hand: goals come from goals.py, numbers
and devices from the results. Standard library only.
"""

import argparse
import collections
import json
import pathlib
from typing import Any

import goals
import sources

FOLDER = pathlib.Path(__file__).parent
MET, MISSED, NOT_MEASURED, ELSEWHERE = 'met', 'missed', 'not measured', 'other device'
OLDER = 'of older sources'
_FEW = 5  # Rounds, of which the spread says little.

_HEAD = """# Benchmarks

Made by `python benchmarks/report.py` from `benchmarks/results/*.json`; do not edit. The goals are
in `goals.py`. A goal is met only if the whole spread of its number is on the right side.

- Commands are run as `python benchmarks/COMMAND`; those on a GPU as `benchmarks/gpu.sh NAME`, and
  `benchmarks/gpu.sh` alone runs all of them. `PYTHON_WITH_TORCH` is any Python with torch and
  safetensors; `python benchmarks/peers/check.py` shows that the PyTorch peer computes the same.
- The note `of older sources` is on numbers that were taken before a change of any Python file that
  is measured or measures; it does not say that the change matters to them.
- Ratios are those of turns within one run (`timing.py`). On a CPU they are of CPU seconds, which
  the load of other processes hardly touches; the load is given all the same.
- A compiler's account is of a program that was compiled for a device and did not run; the headline
  says how many verdicts rest on one, and the column `device` for what it was compiled.
- What was predicted, tried and learnt is in `NOTES.md`.

"""


_FITS = """

## What fits

Training steps compiled for accelerators that were not there (`python benchmarks/ahead.py`): nothing
ran. Bytes are the compiler's account of one device, beside what it may use (GPUs: 90 % of their
memory, as `launch/gpu_node.sh` sets it; TPUs: what libtpu says); where the compiler gave up, they
are what it said then. The batch is that of one device, products are in bfloat16. Compilers: """


def load(folder: pathlib.Path) -> dict[str, Any]:
  """File name -> content of all results."""
  return {path.name: json.loads(path.read_text()) for path in sorted(folder.glob('*.json'))}


def platform(result: dict) -> str:
  """'cpu' or 'gpu': of what the numbers were taken on."""
  header = result['header']
  return header.get('platform') or ('cpu' if header['device'].startswith('cpu') else 'gpu')


def elsewhere(results: dict[str, Any], goal: goals.Goal) -> bool:
  """Whether the goal's file is of another GPU, or of another number of them, than it speaks of."""
  found = results.get(goal.file)
  if found is None or platform(found) != goal.platform:
    return False
  return not found['header']['device'].endswith(goal.device)


def find(results: dict[str, Any], goal: goals.Goal) -> dict[str, float] | None:
  """The goal's number as a spread; None if there is none from the right kind of device."""
  found = results.get(goal.file)
  if found is None or platform(found) != goal.platform or elsewhere(results, goal):
    return None
  for step in goal.path:
    if not isinstance(found, dict) or step not in found:
      return None
    found = found[step]
  if found is None:
    return None
  return found if isinstance(found, dict) else {'median': found, 'min': found, 'max': found}


def settled(results: dict[str, Any], goal: goals.Goal) -> goals.Goal:
  """The goal; without a run to decide it, as the compiler's account does, if there is that."""
  if not goal.compiled or find(results, goal) is not None:
    return goal
  other = goal._replace(
    metric=f'{goal.metric} (compiled, not run)',
    platform=goals.CPU,
    file=goals.COMPILED,
    path=goal.compiled,
    command=goals.COMPILE,
    device='',
    compiled=(),
    account=goals.COMPILED_FOR,
  )
  return goal if find(results, other) is None else other


def reached(value: float, goal: goals.Goal) -> bool:
  """Whether a number is on the right side of the bound."""
  return value >= goal.bound if goal.sign == '>=' else value <= goal.bound


def verdict(spread: dict[str, float] | None, goal: goals.Goal) -> str:
  """Verdict on a goal; one with only part of the spread on the right side is missed, and says so.

  A goal that was met says of how few rounds; a number without rounds is counted, not timed.
  """
  if spread is None:
    return NOT_MEASURED
  if all(reached(spread[end], goal) for end in ('min', 'max')):
    rounds = spread.get('rounds', _FEW)
    return MET if rounds >= _FEW else f'{MET} ({rounds} round{"s" if rounds > 1 else ""})'
  return f'{MISSED} (median met, spread not)' if reached(spread['median'], goal) else MISSED


def number(value: float) -> str:
  """Four digits that matter, without an exponent for usual sizes."""
  return f'{value:,.0f}' if abs(value) >= 1000 else f'{value:.4g}'


def shown(spread: dict[str, float] | None) -> str:
  """'median (min..max)', or the number alone."""
  if spread is None:
    return '-'
  median, least, most = (number(spread[k]) for k in ('median', 'min', 'max'))
  return median if least == most else f'{median} ({least}..{most})'


def device(results: dict[str, Any], goal: goals.Goal, spread: dict | None) -> str:
  """Where the number comes from: device, commit, load; of an account, what it was compiled for."""
  if spread is None:
    return '-'
  header = results[goal.file]['header']
  commit = f', commit {header["commit"]}' if header.get('commit') else ''
  if goal.account:
    return f'compiled for {goal.account}{commit}'
  return f'{header["device"]}{commit}, load {header["load_average"]:.1f}'


def note(results: dict[str, Any], goal: goals.Goal, spread: dict | None, digest: str) -> str:
  """Whether the number was taken of the sources with that digest."""
  stale = spread is not None and results[goal.file]['header'].get('sources') != digest
  return OLDER if stale else '-'


def render(results: dict[str, Any], digest: str) -> str:
  """The page. digest: of the sources as they are."""
  lines = ['| # | metric | goal | value | verdict | note | device | command |', '|' + '---|' * 8]
  decided = [settled(results, goal) for goal in goals.GOALS]
  counts = {MET: 0, MISSED: 0, NOT_MEASURED: 0, ELSEWHERE: 0}
  accounts = collections.Counter()
  for goal in decided:
    spread = find(results, goal)
    judged = ELSEWHERE if elsewhere(results, goal) else verdict(spread, goal)
    name = judged.partition(' (')[0]
    counts[name] += 1
    accounts[name] += bool(goal.account and spread)
    cells = (
      str(goal.number),
      goal.metric,
      f'{goal.sign} {number(goal.bound)}',
      shown(spread),
      judged,
      note(results, goal, spread, digest),
      device(results, goal, spread),
      f'`{goal.command}`',
    )
    lines.append('| ' + ' | '.join(cells) + ' |')
  of_which = lambda name: f" ({accounts[name]} by a compiler's account)" if accounts[name] else ''
  total = ', '.join(
    f'{count} {name}{of_which(name)}'
    for name, count in counts.items()
    if count or name != ELSEWHERE
  )
  used = {goal.file for goal in decided}
  other = [
    f'- `{name}`: {result["header"]["device"]}'
    for name, result in results.items()
    if name not in used and 'header' in result
  ]
  rest = '\n\nResults that decide no goal:\n\n' + '\n'.join(other) if other else ''
  return f'{_HEAD}{total}.\n\n' + '\n'.join(lines) + fitting(results) + rest + '\n'


def fitting(results: dict[str, Any]) -> str:
  """What fits where, of all results that have it; '' if none has."""
  found = [made for name, made in results.items() if name.startswith('ahead')]
  if not found:
    return ''
  compilers = {name: version for made in found for name, version in made['compilers'].items()}
  versions = ', '.join(f'{name} {version}' for name, version in compilers.items() if version)
  head = (
    'model',
    'variant',
    'px',
    'batch',
    'remat',
    'attention',
    'on',
    'split',
    'GiB',
    'of',
    'fits',
  )
  lines = ['| ' + ' | '.join(head) + ' |', '|' + '---|' * len(head)]
  for row in (row for made in found for row in made['rows']):
    gave_up = ' (gave up)' if row['arguments_gib'] is None else ''
    cells = (
      row['size'],
      row['variant'],
      row['resolution'],
      row['batch_per_device'],
      row['remat'],
      row['attention'],
      row['target'],
      row['layout'],
      f'{row["needed_gib"]:.2f}{gave_up}',
      f'{row["usable_gib"]:.1f}',
      'yes' if row['fits'] else 'NO',
    )
    lines.append('| ' + ' | '.join(map(str, cells)) + ' |')
  return f'{_FITS}{versions}.\n\n' + '\n'.join(lines)


def main() -> None:
  """Writes the page."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--results', default=str(FOLDER / 'results'), help='folder of JSON files')
  parser.add_argument('--output', default=str(FOLDER / 'README.md'))
  args = parser.parse_args()
  pathlib.Path(args.output).write_text(render(load(pathlib.Path(args.results)), sources.digest()))


if __name__ == '__main__':
  main()
