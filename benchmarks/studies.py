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
  tables['additions'] = _within(found['digits_backbones'])
  tables['correlations'] = _correlations([r for name, r in found.items() if 'digits' in name])

  def replaced(match):
    return f'<!-- {match[1]} -->\n{tables[match[1]]}\n<!-- end -->'

  return re.sub(r'<!-- (\w+) -->\n.*?<!-- end -->', replaced, text, flags=re.DOTALL)


def _within(result):
  """What is added to each backbone against that backbone alone, and how alike blocks end."""
  lines = [
    '| variant | n | frechet_distance over the backbone alone, by seed | similarity/token, last |',
    '| --- | --- | --- | --- |',
  ]
  for name in result['variants']:
    backbone, plus, _ = name.partition(' + ')
    added = studies.against(result, result['score'], backbone)[name] if plus else None
    runs = [run for run in result['runs'] if run['variant'] == name and not run['failed']]
    alike = studies.spread([run['series']['similarity/token'][-1][1] for run in runs])
    told = f'{added.mean:+.3f} ± {added.deviation:.3f}' if plus else ''
    lines.append(f'| {name} | {alike.n} | {told} | {alike.mean:.2f} |')
  return '\n'.join(lines)


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
