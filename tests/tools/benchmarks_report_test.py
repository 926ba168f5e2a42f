"""The report of the benchmarks: verdicts, what fits, and that the page is of the results."""

import importlib
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / 'benchmarks'


@pytest.fixture(autouse=True)
def path(monkeypatch):
  """As when a benchmark is run."""
  monkeypatch.syspath_prepend(FOLDER)


def load(name):
  return importlib.import_module(name)


def ahead_results(*, arguments=3.0, **more):
  """As ahead.py writes them, of one row. arguments: GiB, None where the compiler gave up."""
  row = {
    'size': 'XL/2',
    'variant': 'plain',
    'resolution': 256,
    'batch_per_device': 128,
    'remat': 'full',
    'attention': 'cudnn',
    'target': 'h200',
    'layout': 'data',
    'arguments_gib': arguments,
    'needed_gib': 12.345,
    'usable_gib': 125.7,
    'fits': arguments is not None,
  }
  return result(rows=[row], compilers={'libtpu': None, 'nvcc': '12.9'}, **more)


def test_a_compilers_account_decides_where_nothing_ran_and_says_so(monkeypatch):
  report, goals = load('report'), load('goals')
  goal = goals.Goal(99, *GOAL)._replace(
    platform='gpu', file='gpu_made.json', device=' x 1', compiled=('goal_24', 'full')
  )
  monkeypatch.setattr(goals, 'GOALS', (goal,))
  verdict = lambda results: re.findall(r'^\| 99 .*$', report.render(results, ''), re.MULTILINE)[0]
  ran = result('NVIDIA H200 x 1', 'gpu', rows={'ours': 2.0})
  compiled = ahead_results(goal_24={'full': 0.3})
  assert 'not measured' in verdict({}) and 'not measured' in verdict(
    {'ahead.json': ahead_results()}
  )
  row = verdict({'ahead.json': compiled})
  assert '(compiled, not run)' in row and '| 0.3 | met |' in row and '`ahead.py`' in row
  assert '| compiled for h200 |' in row
  row = verdict({'ahead.json': compiled, 'gpu_made.json': ran})
  assert '| 2 | missed |' in row and 'compiled' not in row and '| NVIDIA H200 x 1, load' in row


def test_verdicts_by_a_compilers_account_are_counted_apart(monkeypatch):
  report, goals = load('report'), load('goals')
  goal = goals.Goal(99, *GOAL)
  made = goals._compiled(99, 'bytes', '<=', 1.0, 'v5p:2x2x1', 'traffic', 'loss')
  monkeypatch.setattr(goals, 'GOALS', (goal, made, made._replace(bound=0.1)))
  page = report.render(
    {'made.json': result(rows={'ours': 0.5}), 'traffic.json': result(loss=0.2)}, ''
  )
  account = "(1 by a compiler's account)"
  assert f'\n2 met {account}, 1 missed {account}, 0 not measured.\n' in page
  assert page.count('| compiled for v5p:2x2x1 |') == 2 and page.count('| cpu x 1, load') == 1
  assert '\n0 met, 0 missed, 3 not measured.\n' in report.render({}, '')


def test_what_fits_is_in_the_report():
  report = load('report')
  page = report.render({'ahead.json': ahead_results(), 'ahead_tpu.json': ahead_results()}, '')
  row = '| XL/2 | plain | 256 | 128 | full | cudnn | h200 | data | 12.35 | 125.7 | yes |'
  assert page.count(row) == 2 and 'nothing\nran' in page and 'Compilers: nvcc 12.9.' in page
  assert '## What fits' not in report.render({}, '')
  page = report.render({'ahead.json': ahead_results(arguments=None)}, '')
  assert '| 12.35 (gave up) | 125.7 | NO |' in page and page.count('gave up') == 2


def result(device='cpu x 1', platform='cpu', **content):
  return {'header': {'device': device, 'platform': platform, 'load_average': 0.5}, **content}


GOAL = ('a time', 'cpu', '<=', 1.0, 'made.json', ('rows', 'ours'), 'made.py')


@pytest.mark.parametrize(
  ('value', 'expected'),
  [
    ({'median': 0.8, 'min': 0.7, 'max': 0.9}, 'met'),
    ({'median': 0.8, 'min': 0.7, 'max': 0.9, 'rounds': 5}, 'met'),
    ({'median': 0.8, 'min': 0.7, 'max': 0.9, 'rounds': 2}, 'met (2 rounds)'),
    ({'median': 0.8, 'min': 0.8, 'max': 0.8, 'rounds': 1}, 'met (1 round)'),
    ({'median': 1.8, 'min': 1.8, 'max': 1.8, 'rounds': 1}, 'missed'),
    ({'median': 0.8, 'min': 0.7, 'max': 1.1}, 'missed (median met, spread not)'),
    ({'median': 1.2, 'min': 0.9, 'max': 1.3}, 'missed'),
    (1.0, 'met'),
    (1.01, 'missed'),
    (None, 'not measured'),
  ],
)
def test_verdicts_follow_from_the_numbers(value, expected, monkeypatch):
  report, goals = load('report'), load('goals')
  goal = goals.Goal(99, *GOAL)
  results = {'made.json': result(rows={'ours': value}), 'more.json': result()}
  assert report.verdict(report.find(results, goal), goal) == expected
  monkeypatch.setattr(goals, 'GOALS', (goal,))
  page = report.render(results, 'digest')
  (row,) = re.findall(r'^\| 99 .*$', page, re.MULTILINE)
  assert f'| {expected} |' in row and '`made.py`' in row
  assert '- `more.json`: cpu x 1' in page


def test_a_goal_at_least_wants_the_least_of_the_spread():
  report, goals = load('report'), load('goals')
  goal = goals.Goal(99, *GOAL)._replace(sign='>=')
  assert report.verdict({'median': 1.5, 'min': 1.1, 'max': 2.0}, goal) == 'met'
  assert report.verdict({'median': 1.5, 'min': 0.9, 'max': 2.0}, goal).startswith('missed (')


def test_a_number_from_another_device_is_none():
  report, goals = load('report'), load('goals')
  goal = goals.Goal(99, *GOAL)
  on_gpu = {'made.json': result('NVIDIA H200 x 1', 'gpu', rows={'ours': 0.5})}
  assert report.find(on_gpu, goal) is None
  assert report.find(on_gpu, goal._replace(platform='gpu'))['median'] == 0.5
  assert report.find({'made.json': result(rows={})}, goal) is None


@pytest.mark.parametrize(
  ('wanted', 'device', 'same'),
  [
    ('H200 x 1', 'NVIDIA H200 x 1', True),
    ('H200 x 1', 'NVIDIA H100 80GB HBM3 x 1', False),
    ('H200 x 1', 'NVIDIA H200 x 8', False),
    (' x 1', 'NVIDIA H100 80GB HBM3 x 1', True),
    (' x 8', 'NVIDIA H200 x 8', True),
    (' x 8', 'NVIDIA H200 x 1', False),
  ],
)
def test_a_bound_of_one_device_judges_no_other(wanted, device, same, monkeypatch):
  report, goals = load('report'), load('goals')
  goal = goals.Goal(99, *GOAL)._replace(platform='gpu', device=wanted)
  results = {'made.json': result(device, 'gpu', rows={'ours': 0.5})}
  assert (report.find(results, goal) is not None) == same
  monkeypatch.setattr(goals, 'GOALS', (goal,))
  assert f'| {"met" if same else "other device"} |' in report.render(results, '')


def test_goals_of_a_gpu_say_how_many_and_images_a_second_say_which():
  goals = load('goals')
  for goal in goals.GOALS:
    if goal.platform == 'cpu':
      assert not goal.device
    elif goal.number == 23:
      assert goal.device == ' x 8'
    else:
      absolute = goal.metric.endswith(': img/s')
      assert goal.device == ('H200 x 1' if absolute else ' x 1'), goal.metric


def test_numbers_of_older_sources_are_noted(tmp_path, monkeypatch):
  report, goals, sources = load('report'), load('goals'), load('sources')
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


def test_goals_of_a_cpu_are_in_what_their_scripts_wrote():
  """In every result that says of which sources it is; older ones are due to be taken again."""
  report, goals = load('report'), load('goals')
  results, checked = report.load(FOLDER / 'results'), 0
  for goal in goals.GOALS:
    found = results.get(goal.file)
    if goal.platform == 'cpu' and found is not None and 'sources' in found['header']:
      assert report.find(results, goal) is not None, f'{goal.file} has no {goal.path}'
      checked += 1
  assert checked >= 3


def test_every_goal_is_in_the_report_with_a_command_that_exists():
  report, goals = load('report'), load('goals')
  assert {goal.number for goal in goals.GOALS} == set(range(1, 26))
  page = report.render({}, '')
  assert page.count('| not measured |') == len(goals.GOALS)
  pieces = set(re.findall(r'^piece (\w+)', (FOLDER / 'gpu.sh').read_text(), re.MULTILINE))
  for goal in goals.GOALS:
    script, *words = goal.command.split()
    if goal.platform == 'gpu':
      assert script == 'gpu.sh' and '_'.join(words) in pieces, goal.command
      assert goal.file == f'gpu_{"_".join(words)}.json'


def test_the_report_in_the_folder_is_of_the_results_in_the_folder():
  """But for the note of older sources, which any change of a source brings on."""
  report = load('report')
  page, results = (FOLDER / 'README.md').read_text(), report.load(FOLDER / 'results')
  plain = lambda page: page.replace(f'| {report.OLDER} |', '| - |')
  assert plain(page) == plain(report.render(results, '')), 'run `python benchmarks/report.py`'


def test_results_hold_no_folder_of_a_machine():
  for file in (FOLDER / 'results').glob('*.json'):
    assert not re.search(r'"/(tmp|home|root|work|usr)', file.read_text()), file.name
