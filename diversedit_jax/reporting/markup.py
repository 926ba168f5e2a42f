"""HTML in which no text is markup by accident: what is not `Html` is escaped, everywhere."""

from collections.abc import Iterable
import html
import json
from typing import Any

_VOID = ('br', 'img', 'input', 'link', 'meta')


class Html(str):
  """Text that is markup already."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
  """An element.

  Args:
    name: of the element.
    children: text, `Html`, None for nothing, or iterables of these.
    attributes: by name, `data_run` for data-run and `class_` for class; True has no value, False
      and None leave it out.
  """
  given = {k.rstrip('_').replace('_', '-'): v for k, v in attributes.items()}
  written = ''.join(
    f' {k}' if v is True else f' {k}="{html.escape(str(v))}"'
    for k, v in given.items()
    if v is not None and v is not False
  )
  return Html(f'<{name}{written}>' + ('' if name in _VOID else f'{join(children)}</{name}>'))


def join(parts: Any) -> Html:
  """Parts one after the other, as `tag` takes children."""
  if parts is None:
    return Html('')
  if isinstance(parts, Html):
    return parts
  if isinstance(parts, Iterable) and not isinstance(parts, str):
    return Html(''.join(map(join, parts)))
  return Html(html.escape(str(parts)))


def data(content: Any, **attributes: Any) -> Html:
  """A block of JSON for the page's script; nothing in it ends the block or is run."""
  text = json.dumps(content, allow_nan=False, separators=(',', ':')).replace('<', '\\u003c')
  return tag('script', Html(text), type='application/json', **attributes)


def table(head: Iterable[Any], rows: Iterable[Iterable[Any]], **attributes: Any) -> Html:
  """A table whose first column names its rows; too wide a one is moved within its frame.

  attributes: of the table; `rows_attributes`, a list, has those of each row.
  """
  of_rows = attributes.pop('rows_attributes', None)
  rows = list(rows)
  of_rows = of_rows or [{}] * len(rows)
  title = attributes.pop('title', 'table')
  cells = lambda row: [tag('td' if i else 'th', c, scope=None if i else 'row') for i, c in row]
  body = [tag('tr', cells(enumerate(row)), **of) for row, of in zip(rows, of_rows, strict=True)]
  top = tag('tr', [tag('th', cell, scope='col') for cell in head])
  whole = tag('table', tag('thead', top), tag('tbody', body), **attributes)
  return tag('div', whole, class_='wide', role='group', aria_label=title)
