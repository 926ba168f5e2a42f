"""The costs on the page of methods are those of the results that are kept."""

import importlib
import json
import pathlib

ROOT = pathlib.Path(__file__).parents[2]


def test_costs_are_those_of_the_results(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  methods = importlib.import_module('methods')
  rows = json.loads((ROOT / 'benchmarks' / 'results' / 'methods.json').read_text())['methods']
  page = methods.PAGE.read_text()
  assert methods.with_costs(page, rows) == page
  alone = [name for name in methods.costs(rows) if '+' not in name]
  assert all(f'\n| {name} | ' in page for name in alone)
