"""What docs/studies.md and README.md say of the studies is what their results hold."""

import importlib
import pathlib
import re

import pytest

from diversedit_jax.analysis import studies

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def page(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  return importlib.import_module('studies')


def test_the_tables_are_those_of_the_results(page):
  text = page.PAGE.read_text()
  assert page.filled(text) == text, 'python benchmarks/studies.py makes them anew'
  assert {*re.findall(r'<!-- (\w+_\w+) -->', text)} == set(page.results())


def test_every_study_has_its_seeds_scores_and_costs(page):
  for name, result in page.results().items():
    assert result['variants'] and result['floors'], name
    assert all('seconds_per_step' in facts for facts in result['variants'].values()), name
    for run in result['runs']:
      assert run['failed'] or run['scores'][result['score']][-1][0] == result['steps'], name


def test_the_readme_has_the_numbers_of_digits_in_parts(page):
  readme = (ROOT / 'README.md').read_text()
  result = page.results()['digits_parts']
  for name, values in studies.scores(result, 'frechet_distance').items():
    found = studies.spread(values)
    assert f'{name}** {found.mean:.2f} ± {found.deviation:.2f}' in readme, name
  assert 'docs/studies/digits_parts.svg' in readme
