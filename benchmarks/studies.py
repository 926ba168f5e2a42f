"""Puts what the studies came to into docs/studies.md: a table each, and correlations over all runs.

  python -m diversedit_jax.main --config=configs/studies/digits_parts.py --mode=study \
    --workdir=runs/studies/digits_parts --output=docs/studies
  python benchmarks/studies.py

Reads docs/studies/*.json, which the first command writes, and nothing else.
"""

import json
import pathlib
import re

from diversedit_jax.analysis import studies

_DOCS = pathlib.Path(__file__).parents[1] / 'docs'
PAGE = _DOCS / 'studies.md'


def results() -> dict[str, dict]:
  """What each study came to, by name."""
  return {file.stem: json.loads(file.read_text()) for file in sorted(_DOCS.glob('studies/*.json'))}


def filled(text: str) -> str:
  """The page with its tables made anew; each stands between `<!-- NAME -->` and `<!-- end -->`."""
  found = results()
  tables = {name: studies.markdown(result) for name, result in found.items()}
  tables['correlations'] = _correlations([r for name, r in found.items() if 'digits' in name])

  def replaced(match):
    return f'<!-- {match[1]} -->\n{tables[match[1]]}\n<!-- end -->'

  return re.sub(r'<!-- (\w+) -->\n.*?<!-- end -->', replaced, text, flags=re.DOTALL)


def _correlations(found):
  lines = [
    '| last value of | score | rank correlation | p | runs |',
    '| --- | --- | --- | --- | --- |',
  ]
  for row in studies.correlations(found):
    lines.append('| {series} | {score} | {rho:+.2f} | {p:.2g} | {n} |'.format(**row))
  return '\n'.join(lines)


def main() -> None:
  """Writes the page."""
  PAGE.write_text(filled(PAGE.read_text()))


if __name__ == '__main__':
  main()
