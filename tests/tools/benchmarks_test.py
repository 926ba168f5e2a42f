"""The benchmarks: their clock, their flags, and that the peers compute what we compute."""

import importlib
import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'benchmarks'
# These run on machines with an accelerator, which may lack libraries for reading data.
WITHOUT_INPUT = (
  'train_step',
  'loss_overhead',
  'sampling',
  'startup',
  'checkpoint',
  'kernels',
  'evaluation',
  'devices',
  'scaling',
  'ahead',
)
INPUT = ('grain', 'tensorflow', 'array_record')
TORCH = os.environ.get('TORCH_PYTHON', sys.executable)


@pytest.fixture(autouse=True)
def path(monkeypatch):
  """Makes a benchmark's neighbours importable, as when it is run."""
  monkeypatch.syspath_prepend(FOLDER)


def load(name):
  return importlib.import_module(name)


def side(name, seconds, order):
  """Returns a side whose turns take these seconds by the wall; it adds its name when it runs."""

  def turn():
    order.append(name)
    return load('timing').Turn(wall=seconds.pop(0), cpu=1.0)

  return turn


def test_spread_of_a_turn_by_turn_measurement():
  timing, order = load('timing'), []
  a, b = side('a', [9.0, 2.0, 4.0, 6.0], order), side('b', [9.0, 1.0, 8.0, 2.0], order)
  turns = timing.alternate({'a': a, 'b': b}, rounds=3)
  assert order == ['a', 'b'] * 4
  assert timing.summary(turns['a'])['wall'] == {'median': 4.0, 'min': 2.0, 'max': 6.0, 'rounds': 3}
  ratio = timing.ratio(turns['a'], turns['b'])
  # Rounds 2/1, 4/8, 6/2; the warm-up is not among them.
  assert ratio['wall'] == {
    'median': 2.0,
    'min': 0.5,
    'max': 3.0,
    'of_medians': 4.0 / 2.0,
    'rounds': 3,
  }
  assert ratio['cpu'] == {'median': 1.0, 'min': 1.0, 'max': 1.0, 'of_medians': 1.0, 'rounds': 3}


def test_a_round_of_slices_is_their_mean_in_either_order():
  timing, order = load('timing'), []
  # A machine that slows down by a second at every turn: 1, 2 | 3, 4 and then 5, 6 | 7, 8.
  a = side('a', [0.0, 1.0, 4.0, 5.0, 8.0], order)
  b = side('b', [0.0, 2.0, 3.0, 6.0, 7.0], order)
  turns = timing.alternate({'a': a, 'b': b}, rounds=2, slices=2)
  assert ''.join(order) == 'ab' + 'abba' * 2
  assert turns['a'] == turns['b'] == [timing.Turn(2.5, 1.0), timing.Turn(6.5, 1.0)]
  ratio = timing.ratio(turns['a'], turns['b'])['wall']
  assert ratio['min'] == ratio['max'] == 1.0, 'a steady drift is not in the ratio'


def test_clock_counts_work_and_not_sleep():
  timing, time = load('timing'), load('time')
  asleep = timing.clocked(lambda: time.sleep(0.1))()
  assert asleep.wall >= 0.1 and asleep.cpu < 0.05

  def work():
    until = time.process_time() + 0.1
    while time.process_time() < until:
      pass
    return jnp.zeros(())

  busy = timing.clocked(work, repeat=2)()
  assert 0.1 <= busy.cpu < 0.2, 'seconds are of one run, not of all'


def test_an_accelerator_is_given_all_runs_before_it_is_waited_for(monkeypatch):
  timing, seen = load('timing'), []
  monkeypatch.setattr(timing.jax, 'block_until_ready', lambda made: seen.append('wait'))
  run = lambda: seen.append('run')
  for backend, expected in (
    ('gpu', ['run'] * 3 + ['wait']),
    ('cpu', ['run', 'wait'] * 3 + ['wait']),
  ):
    monkeypatch.setattr(timing.jax, 'default_backend', lambda backend=backend: backend)
    seen.clear()
    timing.clocked(run, repeat=3)()
    assert seen == expected


def test_fit_finds_the_two_terms_of_the_paper():
  loss_overhead = load('loss_overhead')
  cost = {k: 3.0 * k + 0.5 * k * (k - 1) / 2 for k in (2, 5, 10, 24)}
  found = loss_overhead.fit(cost)
  assert found['linear'] == pytest.approx(3) and found['pair'] == pytest.approx(0.5)
  assert found['pairs_over_linear'] == pytest.approx(0.5 * 276 / (3 * 24))
  hours = {k: h - loss_overhead.PAPER_HOURS[0] for k, h in loss_overhead.PAPER_HOURS.items() if k}
  paper = loss_overhead.fit(hours)
  assert paper['linear'] == pytest.approx(0.162, abs=5e-4)
  assert paper['pair'] == pytest.approx(0.0215, abs=5e-5)


def test_gpu_script_parses_and_its_flags_are_known_without_input_libraries():
  """Every flag in gpu.sh is one that its script has; the libraries are hidden from the scripts."""
  assert subprocess.run(['bash', '-n', FOLDER / 'gpu.sh']).returncode == 0
  code = '\n'.join(
    [
      'import importlib, contextlib, io, sys',
      'class Missing:',
      '  def find_spec(self, name, path=None, target=None):',
      f'    if name.partition(".")[0] in {INPUT!r}:',
      '      raise ModuleNotFoundError(f"no {name} on this machine")',
      'sys.meta_path.insert(0, Missing())',
      f'sys.path.insert(0, {str(FOLDER)!r})',
      f'for name in {WITHOUT_INPUT!r}:',
      '  sys.argv, out = [name, "--help"], io.StringIO()',
      '  with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):',
      '    importlib.import_module(name).main()',
      '  print("SCRIPT", name, out.getvalue().replace(chr(10), " "))',
      'sys.exit("torch was imported" if "torch" in sys.modules else 0)',
    ]
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  assert done.returncode == 0, done.stderr
  told = dict(re.findall(r'^SCRIPT (\w+) (.*)$', done.stdout, re.MULTILINE))
  script = re.sub(r'\\\n', ' ', (FOLDER / 'gpu.sh').read_text())
  arrays = dict(re.findall(r'^(\w+)=\(?(.*?)\)?$', script, re.MULTILINE))
  checked = 0
  for name, words in re.findall(r'^piece (\w+) (.*)$', script, re.MULTILINE):
    for _ in range(2):
      words = re.sub(r'"?\$\{?(\w+)(?:\[@\]\})?"?', lambda m: arrays[m[1]], words)
    file, *flags = words.split()
    for flag in flags if file.removesuffix('.py') in told else ():
      assert flag.partition('=')[0] in told[file.removesuffix('.py')], f'{name}: {flag}'
      checked += 1
  assert checked > 50


def test_peers_compute_the_same():
  if not load('peers.serving').has_torch(TORCH):
    pytest.skip('no torch in $TORCH_PYTHON or here')
  done = subprocess.run(
    [sys.executable, FOLDER / 'peers' / 'check.py', f'--torch_python={TORCH}', '--json=/dev/null'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  assert done.returncode == 0, done.stdout + done.stderr
