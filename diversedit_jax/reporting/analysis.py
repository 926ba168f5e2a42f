"""What `--mode=analyze` found: CKA as maps, its other numbers as charts, and its figures."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from diversedit_jax.experiment import flat_config
from diversedit_jax.reporting import charts, markup, over_steps, runs, scores, tables

_MOST = 24  # Charts of a part.


def section(report: Sequence[runs.Run], notes: list[str]) -> list[markup.Html]:
  """CKA between blocks, the parts of analysis.json, figures. notes: gets what cannot be shown."""
  names = list(dict.fromkeys(name for run in report for name in run.analysis))
  parts = [(name, drawn) for name in names if (drawn := _drawn(report, name))]
  if len(report) == 1:
    grid = markup.tag('div', [drawn for _, drawn in parts], class_='charts') if parts else None
    found = [grid, *(_protocol(report, name) for name, _ in parts)]
  else:
    found = [_part(report, name, drawn) for name, drawn in parts]
  return [*over_steps.cka(report), *found, *over_steps.figures(report, notes)]


def _drawn(report, name) -> list[markup.Html]:
  """The charts of a part."""
  panels = [(run, p) for run in report for p in _curves(run.analysis.get(name, {}))]
  return _of_one(panels) if len(report) == 1 else _of_several(panels)


def _part(report, name, drawn) -> markup.Html:
  more = f'{_MOST} of {len(drawn)} charts are shown.' if len(drawn) > _MOST else None
  return markup.tag(
    'details',
    markup.tag('summary', f'{name}: {len(drawn)} chart{"s" * (len(drawn) > 1)}'),
    markup.tag('div', drawn[:_MOST], class_='charts'),
    markup.tag('p', more, class_='faint') if more else None,
    scores.unlike(_protocols(report, name)),
    _protocol(report, name),
    class_='inner',
  )


def _protocols(report, name):
  return [run.analysis[name].get('protocol', {}) for run in report if name in run.analysis]


def _protocol(report, name) -> markup.Html:
  """The protocol of a part, that of the first run that has it."""
  rows = flat_config.flatten(_protocols(report, name)[0]).items()
  of = next(run.name for run in report if name in run.analysis)
  title = f'Protocol of {name}' + (f' of {of}' if len(report) > 1 else '')
  table = markup.table(['', ''], [[k, tables.as_text(v)] for k, v in rows], title=title)
  return markup.tag('details', markup.tag('summary', title), table)


def _curves(part) -> Iterator[tuple[str, Mapping[str, Any]]]:
  """Panels that are lines over numbers, after the names of their figures."""
  for stem, figure in part.get('figures', {}).items():
    for panel in figure.get('panels', []):
      if panel.get('kind') == 'curves' and not panel.get('stacked'):
        yield stem, panel


def _of_one(panels) -> list[markup.Html]:
  """A chart for each panel, with a line for each of its series."""
  drawn = []
  for _, (_, panel) in panels:
    lines = [_line(name, panel['x'], values) for name, values in panel['series'].items()]
    if reference := panel.get('reference'):
      level, name = reference
      lines.append(_line(name, panel['x'], [level] * len(panel['x'])))
    drawn += _chart(_title(panel), panel, _numbered(lines), own_names=True)
  return drawn


def _of_several(panels) -> list[markup.Html]:
  """A chart for each series of each panel, with a line for each run."""
  by_series: dict[tuple[str, str, str], list] = {}
  for run, (stem, panel) in panels:
    for name, values in panel['series'].items():
      by_series.setdefault((stem, _title(panel), name), []).append((run, panel, values))
  drawn = []
  for (_, title, name), found in by_series.items():
    lines = [_line(run.name, panel['x'], values, run.number) for run, panel, values in found]
    drawn += _chart(f'{title}, {name}' if name else title, found[0][1], lines, own_names=False)
  return drawn


def _chart(title, panel, lines, own_names):
  lines = [line for line in lines if len(line.xs)]
  if not lines:
    return []
  words = {'along': panel.get('x_label', ''), 'note': panel.get('y_label', '')}
  return [charts.chart(title, lines, **words, own_names=own_names)]


def _title(panel) -> str:
  return panel.get('title', '').replace('\n', ', ')


def _line(name, x, values, number=0) -> charts.Line:
  there = [(at, value) for at, value in zip(x, values, strict=False) if value is not None]
  xs, ys = np.array(there, np.float64).reshape(-1, 2).T
  return charts.Line(name=name, number=number, xs=xs, ys=ys)


def _numbered(lines):
  return [
    charts.Line(name=line.name, number=i, xs=line.xs, ys=line.ys) for i, line in enumerate(lines)
  ]
