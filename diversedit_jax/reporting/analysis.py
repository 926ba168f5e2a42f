"""What `--mode=analyze` found, and figures that other modes made."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from diversedit_jax.experiment import flat_config
from diversedit_jax.reporting import curves, markup, over_steps, runs, tables

_MOST = 60  # Numbers of analysis.json in the table.


def section(report: Sequence[runs.Run], notes: list[str]) -> list[markup.Html]:
  """CKA as maps, numbers of analysis.json, figures. notes: gets what cannot be shown."""
  return [
    *over_steps.cka(report),
    *_numbers(report),
    *over_steps.figures(report, notes),
  ]


def _numbers(report) -> list[markup.Html]:
  """The numbers of analysis/analysis.json by their keys, as far as they are single ones."""
  found = [_single(run.analysis) for run in report]
  keys = list(dict.fromkeys(key for of_one in found for key in of_one))
  if not keys:
    return []
  table = {k: [curves.number(of_one.get(k, '–')) for of_one in found] for k in keys[:_MOST]}
  parts = [markup.tag('h3', 'analysis.json'), tables.compared(report, table, 'analysis.json')]
  if len(keys) > _MOST:
    words = f'{_MOST} of {len(keys)} numbers are shown; analysis/analysis.json has all.'
    parts.append(markup.tag('p', words, class_='faint'))
  return parts


def _single(content: Mapping[str, Any]) -> dict[str, Any]:
  """Values that are one number or word each; short lists of them as a whole."""
  flat = flat_config.flatten(content)
  short = lambda v: json.dumps(v) if isinstance(v, list) else v
  fits = lambda v: (
    isinstance(v, str | int | float)
    or (isinstance(v, list) and len(v) <= 8 and all(isinstance(x, str | int | float) for x in v))
  )
  return {key: short(value) for key, value in flat.items() if fits(value)}
