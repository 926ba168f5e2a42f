"""The section of scores: tables, what makes them doubtful, and their protocol cards."""

from collections.abc import Mapping, Sequence
import json
from typing import Any

from diversedit_jax.evaluation import card
from diversedit_jax.experiment import flat_config
from diversedit_jax.reporting import curves, markup, records, runs, tables

_CARDS = 8  # Protocols of a run.
# Facts of a protocol that no comparison depends on.
_INDIFFERENT = ('seconds', 'seconds_of_scoring', 'samples_made_before', 'checkpoint', 'step')
_INDIFFERENT += ('parameters', 'depth', 'width', 'method', 'versions', 'device')


def section(report: Sequence[runs.Run]) -> list[markup.Html]:
  """Tables of scores by the file that they stand in, with what makes them doubtful."""
  by_file: dict[str, list[tuple[runs.Run, Mapping[str, Any]]]] = {}
  for run in report:
    for file, content in run.facts['scores'].items():
      if not file.startswith(records.DURING):
        by_file.setdefault(file, []).append((run, content))
  found = [part for file, contents in by_file.items() for part in _scores(report, file, contents)]
  cards = _cards(report)
  if len(cards) > tables.ACROSS:
    cards = [markup.tag('details', markup.tag('summary', 'Protocols'), cards, class_='inner')]
  return [*found, *cards]


def _scores(report, file, contents) -> list[markup.Html]:
  names = list(dict.fromkeys(name for _, content in contents for name in content['scores']))
  how = {'samples': 'num_samples', 'weights': 'weights', 'step': 'step', 'NFE': 'nfe'}
  rows, told = [], {}
  for run, content in contents:
    protocol = content['protocol']
    rows.append(
      [
        tables.named(report, run),
        *(curves.number(content['scores'].get(name, '–')) for name in names),
        *(curves.number(protocol.get(key, '–')) for key in how.values()),
        card.guidance(protocol),
      ]
    )
    for line in content.get('warnings', []):
      told.setdefault(line, []).append(run.name)
  head = ['run', *map(tables.words, names), *how, 'guidance']
  of_rows = [{'data_run': run.number} for run, _ in contents]
  warned = [
    markup.tag('li', line, f' ({tables.listed(of, report)})' if len(report) > 1 else None)
    for line, of in told.items()
  ]
  return [
    markup.tag('h3', file),
    markup.table(head, rows, rows_attributes=of_rows, title=f'Scores in {file}'),
    unlike([content['protocol'] for _, content in contents]),
    _references(report, contents),
    markup.tag('ul', warned, class_='warned') if warned else None,
  ]


def _references(report, contents) -> markup.Html | None:
  """What distances are to, where that differs between runs; None where it does not."""
  told = []
  for network in dict.fromkeys(k for _, content in contents for k in content.get('references', {})):
    by_digest: dict[str, list[str]] = {}
    words = {}
    for run, content in contents:
      if facts := content.get('references', {}).get(network):
        # The digest of mu and sigma, if known: one reference has files with and without pictures.
        digest = facts.get('statistics_sha256') or facts['sha256']
        by_digest.setdefault(digest, []).append(run.name)
        held = f', {facts["holds"]}' if facts.get('holds') else ''
        words[digest] = f'{facts["name"]} ({digest[:8]}{held})'
    if len(by_digest) > 1:
      parts = [f'{words[k]} for {tables.listed(of, report)}' for k, of in by_digest.items()]
      told.append(f'{network}: {"; ".join(parts)}')
  if not told:
    return None
  line = 'Their distances are to different references and do not compare: '
  return markup.tag('p', line + ' '.join(told) + '.', class_='warned')


def unlike(protocols: Sequence[Mapping[str, Any]]) -> markup.Html | None:
  """What differs between protocols, so that their numbers do not compare; None for nothing."""
  flat = [flat_config.flatten(protocol) for protocol in protocols]
  keys = [
    key
    for key in dict.fromkeys(key for one in flat for key in one)
    if key.partition('.')[0] not in _INDIFFERENT
    and len({json.dumps(one.get(key)) for one in flat}) > 1
  ]
  if not keys:
    return None
  return markup.tag('p', f'Their protocols differ in {", ".join(keys)}.', class_='warned')


def _cards(report) -> list[markup.Html]:
  """Protocols: of each final file, and of the last online evaluation."""
  found = []
  for run in report:
    files = run.facts['scores']
    shown = [file for file in files if not file.startswith(records.DURING)][-_CARDS:]
    shown += [file for file in files if file.startswith(records.DURING)][-1:]
    for file in shown:
      rows = flat_config.flatten(files[file]['protocol']).items()
      warned = [markup.tag('li', line) for line in files[file].get('warnings', [])]
      title = f'{run.name}: {file}' if len(report) > 1 else file
      found.append(
        markup.tag(
          'details',
          markup.tag('summary', f'Protocol of {title}'),
          markup.tag('ul', warned, class_='warned') if warned else None,
          markup.table(
            ['', ''], [[k, tables.as_text(v)] for k, v in rows], title=f'Protocol of {title}'
          ),
          data_run=run.number,
        )
      )
    if len(files) > len(shown):
      of = f' of {run.name}' if len(report) > 1 else ''
      words = f'Protocols{of}: {len(shown)} of {len(files)} are shown; eval/ of the run has all.'
      found.append(markup.tag('p', words, class_='faint', data_run=run.number))
  return found
