"""The costs on the page of methods are those of the results that are kept."""

import importlib
import json
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def methods(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  return importlib.import_module('methods')


def test_costs_are_those_of_the_results(methods):
  rows = json.loads((ROOT / 'benchmarks' / 'results' / 'methods.json').read_text())['methods']
  page = methods.PAGE.read_text()
  assert methods.with_costs(page, rows) == page
  alone = [name for name in methods.costs(rows) if '+' not in name]
  assert all(f'\n| {name} | ' in page for name in alone)


@pytest.mark.parametrize('cost', ['', '1.10 (1.20) '])
def test_empty_cells_stay(methods, cost):
  rows = {'reg': {'ratio_median': 1.32, 'ratio_predicted': 1.59}}
  page = f'| part | needs | claims | costs |\n| `reg` | encoder | | {cost}|'
  assert methods.with_costs(page, rows).endswith('\n| `reg` | encoder | | 1.32 (1.59) |')
