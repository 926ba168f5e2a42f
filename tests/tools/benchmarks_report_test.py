"""The report of the benchmarks: its verdicts, and that the page follows from the results."""

import importlib
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / 'benchmarks'
GOAL = ('a time', 'cpu', '<=', 1.0, 'made.json', ('rows', 'ours'), 'made.py')


@pytest.fixture
def report(monkeypatch):
  """The module, with its neighbours importable as when it is run."""
  monkeypatch.syspath_prepend(FOLDER)
  return importlib.import_module('report')


@pytest.fixture
def goals(report):
  return importlib.import_module('goals')


def result(device='cpu x 1', platform='cpu', **content):
  return {'header': {'device': device, 'platform': platform, 'load_average': 0.5}, **content}


def spread(median, low, high, **more):
  return {'median': median, 'min': low, 'max': high, **more}


@pytest.mark.parametrize(
  ('sign', 'value', 'expected'),
  [
    ('<=', spread(0.8, 0.7, 0.9), 'met'),
    ('<=', spread(0.8, 0.7, 0.9, rounds=2), 'met (2 rounds)'),
    ('<=', spread(0.8, 0.7, 1.1), 'missed (median met, spread not)'),
    ('<=', spread(1.2, 0.9, 1.3), 'missed'),
    ('<=', 1.0, 'met'),
    ('<=', None, 'not measured'),
    ('>=', spread(1.5, 1.1, 2.0), 'met'),
    ('>=', spread(1.5, 0.9, 2.0), 'missed (median met, spread not)'),
  ],
)
def test_verdicts_follow_from_the_numbers(report, goals, monkeypatch, sign, value, expected):
  monkeypatch.setattr(goals, 'GOALS', (goals.Goal(99, *GOAL)._replace(sign=sign),))
  page = report.render({'made.json': result(rows={'ours': value})}, 'digest')
  (row,) = re.findall(r'^\| 99 .*$', page, re.MULTILINE)
  assert f'| {expected} |' in row and '`made.py`' in row


@pytest.mark.parametrize(
  ('wanted', 'device', 'same'),
  [
    ('H200 x 1', 'NVIDIA H200 x 1', True),
    ('H200 x 1', 'NVIDIA H100 80GB HBM3 x 1', False),
    ('H200 x 1', 'NVIDIA H200 x 8', False),
    (' x 1', 'NVIDIA H100 80GB HBM3 x 1', True),
  ],
)
def test_a_bound_of_one_device_judges_no_other(report, goals, monkeypatch, wanted, device, same):
  goal = goals.Goal(99, *GOAL)
  results = {'made.json': result(device, 'gpu', rows={'ours': 0.5})}
  assert report.find(results, goal) is None  # The bound of a CPU.
  monkeypatch.setattr(goals, 'GOALS', (goal._replace(platform='gpu', device=wanted),))
  assert f'| {"met" if same else "other device"} |' in report.render(results, '')


def test_a_compilers_numbers_count_where_nothing_ran_and_are_marked(report, goals, monkeypatch):
  goal = goals.Goal(99, *GOAL)._replace(
    platform='gpu', file='gpu_made.json', device=' x 1', compiled=('goal_24', 'full')
  )
  monkeypatch.setattr(goals, 'GOALS', (goal,))
  compiled = result(rows=[], compilers={'nvcc': '12.9'}, goal_24={'full': 0.3})
  ran = result('NVIDIA H200 x 1', 'gpu', rows={'ours': 2.0})
  page = report.render({'ahead.json': compiled}, '')
  assert '(compiled, not run)' in page and '| 0.3 | met |' in page
  assert "\n1 met (1 by a compiler's account), 0 missed, 0 not measured.\n" in page
  page = report.render({'ahead.json': compiled, 'gpu_made.json': ran}, '')
  assert '| 2 | missed |' in page and '(compiled, not run)' not in page


def test_numbers_of_older_sources_are_noted(report, goals, tmp_path, monkeypatch):
  sources = importlib.import_module('sources')
  files = {
    'benchmarks/made.py': True,
    'diversedit_jax/models/sit.py': True,
    'configs/x.py': True,
    'benchmarks/goals.py': False,
    'benchmarks/results/made.json': False,
    'tests/a_test.py': False,
  }
  for name in files:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text('before')
  monkeypatch.setattr(goals, 'GOALS', (goals.Goal(99, *GOAL),))
  for name, measured in files.items():
    results = {'made.json': result(rows={'ours': 0.5})}
    results['made.json']['header']['sources'] = sources.digest(tmp_path)
    assert report.OLDER not in report.render(results, sources.digest(tmp_path)).split('| 99 |')[1]
    (tmp_path / name).write_text('after')
    page = report.render(results, sources.digest(tmp_path)).split('| 99 |')[1]
    assert (report.OLDER in page) == measured, name


def test_every_goal_has_a_command_that_exists(report, goals):
  assert report.render({}, '').count('| not measured |') == len(goals.GOALS)
  pieces = set(re.findall(r'^piece (\w+)', (FOLDER / 'gpu.sh').read_text(), re.MULTILINE))
  for goal in goals.GOALS:
    script, *words = goal.command.split()
    if goal.platform == 'gpu':
      assert script == 'gpu.sh' and '_'.join(words) in pieces, goal.command
      assert goal.file == f'gpu_{"_".join(words)}.json'


def test_the_report_in_the_folder_is_of_the_results_in_the_folder(report):
  """Except for the note of older sources, which any change of a source brings about."""
  page, results = (FOLDER / 'README.md').read_text(), report.load(FOLDER / 'results')
  plain = lambda page: page.replace(f'| {report.OLDER} |', '| - |')
  assert plain(page) == plain(report.render(results, '')), 'run `python benchmarks/report.py`'


def test_results_hold_no_folder_of_a_machine():
  for file in (FOLDER / 'results').glob('*.json'):
    assert not re.search(r'"/(tmp|home|root|work|usr)', file.read_text()), file.name
