"""Line charts: SVG whose lines stretch with the page, and numbers beside it that do not.

The figures stand without a script; `page.js` adds the readout, the keys and the logarithmic scale.
Colours and dashes are classes, `c0` to `c7` and `d0` to `d2`, so that 24 lines differ.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from diversedit_jax.reporting import curves, markup

COLOURS, DASHES = 8, 3
_SIZE = 1000  # Height and width, in the SVG's own units.
_POINTS, _POINTS_OF_ALL = 1000, 4000  # At most: a line's, all lines' of a chart.
_FEW, _FEW_LINES = 40, 8  # Points are marked where there are so few.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
  """A line of a chart. xs, ys: finite [n], n > 0. number: decides colour and dashes."""

  name: str
  number: int
  xs: np.ndarray
  ys: np.ndarray


def look(number: int) -> str:
  """Classes of the line, the swatch and whatever else has the colour of this number."""
  return f'c{number % COLOURS} d{number // COLOURS % DASHES}'


def swatch(number: int) -> markup.Html:
  """The piece of line that stands for a colour and its dashes."""
  path = markup.tag('path', d='M0 4h20', class_=f'line {look(number)}')
  return markup.tag('svg', path, class_='swatch', viewBox='0 0 20 8', aria_hidden='true')


def chart(
  title: str,
  lines: Sequence[Line],
  *,
  along: str = 'step',
  unit: str = '',
  note: str = '',
  ends: tuple[float, float] | None = None,
  own_names: bool = False,
) -> markup.Html:
  """A figure with a line for each run.

  Args:
    title: what is drawn. lines: at least one. along: the quantity from left to right.
    unit: of the values. note: a sentence below the title. ends: of the axis, to be shared.
    own_names: whether the lines are no runs and need a legend here.
  """
  limit = max(4, min(_POINTS, _POINTS_OF_ALL // len(lines)))
  thinned = [(line, *curves.thin(line.xs, line.ys, limit)) for line in lines]
  low, high = (f(f(ys) for _, _, ys in thinned) for f in (min, max))
  first, last = ends or (min(x[0] for _, x, _ in thinned), max(x[-1] for _, x, _ in thinned))
  whole = all((line.xs == line.xs.round()).all() for line in lines)
  across = curves.between(float(first), float(last), 4 if whole else 7, whole=whole)
  up = curves.linear(float(low), float(high))
  log = curves.logarithmic(float(low), float(high)) if low > 0 and high > low else None
  words = _in_words(title, lines, along, unit)
  plot = markup.tag(
    'div',
    _labels('up', up, shown=True),
    _labels('up log', log, shown=False) if log else None,
    markup.tag(
      'svg',
      _grid('grid lin', up, shown=True),
      _grid('grid log', log, shown=False) if log else None,
      [_path(*one, across, up, len(lines) <= _FEW_LINES, own_names) for one in thinned],
      viewBox=f'0 0 {_SIZE} {_SIZE}',
      preserveAspectRatio='none',
      role='img',
      aria_label=words,
    ),
    _labels('across', across, shown=True),
    markup.tag('span', along, class_='along', aria_hidden='true'),
    class_='plot',
  )
  return markup.tag(
    'figure',
    markup.tag(
      'figcaption',
      markup.tag('h3', title, markup.tag('small', f' {unit}') if unit else None),
      markup.tag('p', note) if note else None,
      legend([(line.name, line.number) for line in lines]) if own_names else None,
    ),
    plot,
    _numbers(title, lines, along, limit, own_names),
    _data(along, thinned, across, up, log, own_names),
    class_='chart',
  )


def legend(names: Sequence[tuple[str, int]]) -> markup.Html:
  """What the lines are."""
  entries = [markup.tag('span', swatch(number), name) for name, number in names]
  return markup.tag('p', entries, class_='legend')


def _in_words(title, lines, along, unit) -> str:
  """What a reader who does not see the figure is told."""
  unit = f' {unit}' if unit else ''
  told = [
    f'{line.name} from {line.ys[0]:.4g} to {line.ys[-1]:.4g}{unit}, '
    f'{along} {line.xs[0]:,g} to {line.xs[-1]:,g}'
    for line in lines[:6]
  ]
  more = f'; and {len(lines) - 6} more' if len(lines) > 6 else ''
  return f'Line chart of {title} over {along}: {"; ".join(told)}{more}.'


def _path(line, xs, ys, across, up, marked, own_names):
  x = np.asarray(across.at(xs) * _SIZE).round().astype(int)
  y = np.asarray((1 - up.at(ys)) * _SIZE).round().astype(int)
  points = list(zip(x.tolist(), y.tolist(), strict=True))
  d = 'M' + 'L'.join(f'{a} {b}' for a, b in points)
  few = marked and len(points) <= _FEW
  drawn = markup.tag('path', d=d, class_=f'line {look(line.number)}')
  dots = ''.join(f'M{a} {b}h0' for a, b in points)
  dotted = markup.tag('path', d=dots, class_=f'dots c{line.number % COLOURS}') if few else None
  return markup.tag('g', drawn, dotted, data_run=None if own_names else line.number)


def _grid(kind, axis, *, shown):
  d = ''.join(f'M0 {round((1 - axis.at(tick)) * _SIZE)}h{_SIZE}' for tick in axis.ticks)
  return markup.tag('path', d=d, class_=kind if shown else f'{kind} off')


def _labels(kind, axis, *, shown):
  side = 'left' if kind == 'across' else 'bottom'
  places = [(curves.short(tick), float(axis.at(tick))) for tick in axis.ticks]
  spans = [markup.tag('span', text, style=f'{side}:{100 * at:.4g}%') for text, at in places]
  return markup.tag('div', spans, class_=kind if shown else f'{kind} off', aria_hidden='true')


def _numbers(title, lines, along, limit, own_names):
  """The table of a chart: what a reader without the figure, or without a script, has."""
  rows = []
  for line in lines:
    low, high = line.ys.argmin(), line.ys.argmax()
    at = lambda i, line=line: f'{line.ys[i]:.4g} at {line.xs[i]:,g}'
    rows.append([line.name, at(0), at(low), at(high), at(-1)])
  head = ['', 'first', 'lowest', 'highest', 'last']
  of_rows = [{'data_run': None if own_names else line.number} for line in lines]
  table = markup.table(head, rows, rows_attributes=of_rows, title=f'{title} by {along}')
  most = max(len(line.xs) for line in lines)
  thinned = f'Of up to {most:,} points, a line is drawn with at most {limit:,}; extremes are kept.'
  return markup.tag(
    'details',
    markup.tag('summary', 'Numbers'),
    table,
    markup.tag('p', thinned, class_='faint') if most > limit else None,
  )


def _data(along, thinned, across, up, log, own_names):
  rounded = lambda values: [float(f'{v:.5g}') for v in values.tolist()]
  whole = lambda values: [int(v) if v == round(v) else v for v in values.tolist()]
  return markup.data(
    {
      'along': along,
      'across': [across.low, across.high],
      'up': [up.low, up.high],
      'log': [log.low, log.high] if log else None,
      'lines': [
        {
          'name': line.name,
          'number': line.number,
          'own': own_names,
          'x': whole(xs),
          'y': rounded(ys),
        }
        for line, xs, ys in thinned
      ],
    }
  )
