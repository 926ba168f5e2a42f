"""Numbers of a study: scores of variants with their spread, at equal steps, time and compute.

Every run was scored at the same steps. Its score between two of them is taken from the straight
line through them, so that runs can be compared after equally many seconds or FLOPs of training as
well: as many as the variant that needs the fewest spends in all. Variants with the same seed have
the same data in the same order and the same noise, so their differences are taken seed by seed.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import numpy as np

EQUAL = ('steps', 'time', 'compute')
_COST = {'time': 'seconds_per_step', 'compute': 'flops_per_step'}


@dataclasses.dataclass(frozen=True)
class Spread:
  """A mean and its spread. deviation: the sample's; None if there is one number only."""

  mean: float
  deviation: float | None
  n: int


def spread(values: Sequence[float]) -> Spread | None:
  """The mean and the sample's standard deviation; None of nothing."""
  if not values:
    return None
  deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
  return Spread(float(np.mean(values)), deviation, len(values))


def at(curve: Sequence[tuple[float, float]], step: float) -> float | None:
  """The value of [(step, value), ...] at a step, linear in between; None beyond the ends."""
  steps, values = zip(*curve, strict=True) if curve else ((), ())
  if not steps or not steps[0] <= step <= steps[-1] + 1e-9:
    return None
  return float(np.interp(step, steps, values))


def equal_steps(results: Mapping[str, Any], what: str) -> dict[str, float]:
  """At which step each variant has cost as much as the others, by name.

  Args:
    results: see `modes.study`.
    what: one of `EQUAL`.

  Returns:
    Steps, not rounded; nothing where a cost is unknown.
  """
  last = results['steps']
  if what == 'steps':
    return {name: float(last) for name in results['variants']}
  costs = {name: one.get(_COST[what]) for name, one in results['variants'].items()}
  if None in costs.values():
    return {}
  least = min(costs.values())
  return {name: last * least / cost for name, cost in costs.items()}


def scores(results: Mapping[str, Any], score: str, what: str = 'steps') -> dict[str, list[float]]:
  """The score of each run at equal steps, time or compute, by variant; failed runs have none."""
  steps = equal_steps(results, what)
  return {
    name: [
      value
      for run in results['runs']
      if run['variant'] == name and name in steps and not run.get('failed')
      if (value := at(run['scores'].get(score, []), steps[name])) is not None
    ]
    for name in results['variants']
  }


def against(results: Mapping[str, Any], score: str, base: str) -> dict[str, Spread | None]:
  """How much higher each other variant scores than `base` after the last step, seed by seed."""
  others = [name for name in results['variants'] if name != base]
  final = {
    (run['variant'], run['seed']): value
    for run in results['runs']
    if not run.get('failed')
    if (value := at(run['scores'].get(score, []), results['steps'])) is not None
  }
  return {
    name: spread(
      [final[name, s] - final[base, s] for n, s in final if n == name and (base, s) in final]
    )
    for name in others
  }


def correlations(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Spearman's rank correlation of each series' last value with each score, over all runs.

  p takes runs for independent, which those of one variant are not: it is smaller than it should be.

  Returns:
    Rows of 'series', 'score', 'rho', 'p' (two-sided) and 'n', where four runs or more have both.
  """
  from scipy import stats

  runs = [run for result in results for run in result['runs'] if not run.get('failed')]
  pairs = {}
  for run in runs:
    for series, values in run['series'].items():
      for score, curve in run['scores'].items():
        if values and curve:
          pairs.setdefault((series, score), []).append((values[-1][1], curve[-1][1]))
  rows = []
  for (series, score), points in sorted(pairs.items()):
    x, y = zip(*points, strict=True)
    if len(points) < 4 or len(set(x)) == 1 or len(set(y)) == 1:
      continue
    rho, p = stats.spearmanr(x, y)
    row = {'series': series, 'score': score, 'rho': float(rho), 'p': float(p), 'n': len(points)}
    rows.append(row)
  return rows


def markdown(results: Mapping[str, Any]) -> str:
  """The table of a study in Markdown; its last row has the scores of real data."""
  main, floors = results['score'], results['floors']
  others = sorted({score for run in results['runs'] for score in run['scores']} - {main})
  others = [score for score in others if not score.endswith('_std')]
  by_cost = {what: scores(results, main, what) for what in EQUAL}
  by_score = {name: scores(results, name) for name in others}
  difference = against(results, main, next(iter(results['variants'])))
  lines = [
    ['variant', 'n', f'{main}, equal steps', 'equal time', 'equal compute', 'difference by seed']
    + [*others, 's/step', 'GFLOP/step', 'diverged']
  ]
  lines += [['---'] * len(lines[0])]
  for name, facts in results['variants'].items():
    cells = [_text(spread(by_cost[what][name])) for what in EQUAL]
    cells += [_text(difference.get(name), sign='+')]
    cells += [_text(spread(by_score[other][name])) for other in others]
    seconds, flops = facts.get('seconds_per_step'), facts.get('flops_per_step')
    cells += ['' if seconds is None else f'{seconds:.3g}']
    cells += ['' if flops is None else f'{flops / 1e9:.3g}']
    failed = sum(bool(run.get('failed')) for run in results['runs'] if run['variant'] == name)
    lines.append([name, str(len(by_cost['steps'][name])), *cells, str(failed or '')])
  if floors:
    real = {score: f'{floor:.4g}' for score, floor in floors.items()}
    cells = [real.get(main, ''), '', '', '', *(real.get(other, '') for other in others)]
    lines.append(['*real data*', '', *cells, '', '', ''])
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _text(found, sign=''):
  if found is None:
    return ''
  spread = '' if found.deviation is None else f' ± {found.deviation:.2g}'
  return f'{found.mean:{sign}.4g}{spread}'
