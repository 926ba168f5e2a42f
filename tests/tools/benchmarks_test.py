"""The benchmarks: their clock, their steps, their flags, and that the peers are equal."""

import importlib
import json
import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import pytest

ROOT = pathlib.Path(__file__).parents[2]
FOLDER = ROOT / 'benchmarks'
# Of machines with an accelerator, which may lack libraries for reading data.
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
  """As when a benchmark is run."""
  monkeypatch.syspath_prepend(FOLDER)


def load(name):
  return importlib.import_module(name)


def side(name, seconds, order):
  """A side whose turns take the given seconds by the wall, one of the CPU; it says when it ran."""

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


def test_a_short_run_is_repeated_until_it_fills_the_time():
  timing, time, runs = load('timing'), load('time'), []

  def run():
    runs.append(time.sleep(0.004))
    return jnp.zeros(())

  side = timing.filled(run, seconds=0.02)
  runs.clear()
  turn = side()
  assert turn.wall >= 0.004 and len(runs) in (2, 4, 8), 'seconds are of one run'


def test_ceilings_count_what_they_do(monkeypatch):
  timing = load('timing')
  side, flops = timing.matmul(64, 'float32')
  assert flops == 2 * 64**3 and side().wall > 0
  side, moved = timing.copy(1)
  assert moved == 2 * 2**20 and side().wall > 0


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


def test_steps_of_like_shapes_share_a_state():
  steps, config = load('steps'), load('diversedit_jax.models.config')
  architecture = config.Architecture(
    input_size=(4, 4), depth=2, width=16, heads=2, patch_size=2, num_classes=steps.CLASSES
  )
  states = {}
  made = [
    steps.Step(
      architecture, config.Execution(), steps.objective('plain', diversity), 2, states=states
    )
    for diversity in (None, load('loss_overhead')._SUM)
  ]
  for step in made:
    step.run()
    step.check()
  (shared,) = states.values()
  assert int(shared.step) == 2
  assert 'diverse/loss' in made[1].metrics and 'diverse/loss' not in made[0].metrics
  assert made[0].peak_bytes > load('diversedit_jax.trees').num_bytes(shared)


def test_a_step_for_a_mesh_is_compiled_and_not_allocated():
  steps, config, sharding = (
    load(f'{prefix}{name}')
    for prefix, name in (
      ('', 'steps'),
      ('diversedit_jax.models.', 'config'),
      ('diversedit_jax.', 'sharding'),
    )
  )
  architecture = config.Architecture(
    input_size=(4, 4), depth=1, width=16, heads=2, patch_size=2, num_classes=steps.CLASSES
  )
  made = steps.Step(
    architecture,
    config.Execution(),
    steps.objective('plain'),
    2,
    allocate=False,
    mesh=sharding.make_mesh(),
    options={},
  )
  assert made.peak_bytes > 0 and not made._states and not hasattr(made, 'batch')


def test_tpus_are_asked_for_the_largest_batch_that_fits(monkeypatch):
  ahead, asked = load('ahead'), []
  monkeypatch.setattr(ahead.devices, 'find', lambda name: name)

  def row(target, case, layout):
    asked.append((target, layout, case.remat, case.batch))
    room = {'v5e:2x2': 8, 'v6e:2x2': 32}.get(target, 4) * (2 if case.remat == 'full' else 1)
    return {'fits': case.batch <= room}

  monkeypatch.setattr(ahead, 'row', row)
  list(ahead.tpus('bfloat16'))
  of = lambda target: [rest for name, layout, *rest in asked if (name, layout) == (target, 'data')]
  assert of('v6e:2x2') == [['none', 32]]
  assert of('v5e:2x2') == [['none', 32], ['none', 16], ['none', 8], ['full', 32], ['full', 16]]
  assert of('v5p:2x2x1') == [[remat, n] for remat in ('none', 'full') for n in (32, 16, 8)]


def test_memory_of_recomputation_is_over_that_without():
  ahead = load('ahead')
  row = lambda remat, gib, batch=128: {
    'target': 'h200',
    'size': 'XL/2',
    'batch_per_device': batch,
    'remat': remat,
    'needed_gib': gib,
  }
  rows = [row('none', 40.0), row('full', 10.0), row('none', 80.0, 256)]
  assert ahead.goal_24(rows) == {'none': 1.0, 'full': 0.25}


def test_dispatch_is_the_callers_own_time_and_the_mean_of_a_round(monkeypatch):
  steps, timing = load('steps'), load('timing')
  step = object.__new__(steps.Step)
  step._states, step.run = {}, lambda: None
  for platform, clock in (('cpu', 'thread_time'), ('gpu', 'perf_counter')):
    # Calls of 1 and 3, then of 2 and 6 milliseconds.
    ticks = iter([0.0, 0.001, 1.0, 1.003, 2.0, 2.002, 3.0, 3.006])
    monkeypatch.setattr(timing.jax, 'default_backend', lambda platform=platform: platform)
    monkeypatch.setattr(steps.time, clock, lambda ticks=ticks: next(ticks))
    found = step.dispatch_ms(rounds=2, calls=2)
    assert found == pytest.approx({'median': 3.0, 'min': 2.0, 'max': 4.0, 'rounds': 2})


def test_a_loss_that_is_not_finite_is_refused():
  steps = load('steps')
  step = object.__new__(steps.Step)
  step.metrics = {'loss': jnp.asarray(jnp.nan)}
  with pytest.raises(FloatingPointError, match='nan'):
    step.check()


def test_gpu_script_parses():
  done = subprocess.run(['bash', '-n', FOLDER / 'gpu.sh'], capture_output=True, text=True)
  assert done.returncode == 0 and not done.stderr and os.access(FOLDER / 'gpu.sh', os.X_OK)


def test_flags_of_the_gpu_scripts_are_known_without_input_libraries(capsys):
  """All of gpu.sh's own words are flags that the script has; there are no such libraries here."""
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


def test_a_child_takes_turns_and_says_what_went_wrong(tmp_path, monkeypatch):
  serving = load('peers.serving')
  (tmp_path / 'echo.py').write_text(
    'import os, serving\n'
    'def fail(): raise KeyError("lost")\n'
    'def echo(x): print("noise"); return {"x": x, "threads": os.environ["OMP_NUM_THREADS"]}\n'
    'serving.serve({"echo": echo, "fail": fail, "end": lambda: os._exit(3)})\n'
  )
  (tmp_path / 'serving.py').write_text(pathlib.Path(serving.__file__).read_text())
  monkeypatch.setattr(serving, 'PEERS', tmp_path)
  with serving.Child(sys.executable, 'echo.py', threads=3) as child:
    assert child.ask('echo', x=[1, 2]) == {'x': [1, 2], 'threads': '3'}
    with pytest.raises(RuntimeError, match="KeyError: 'lost'"):
      child.ask('fail')
    assert child.ask('echo', x=None)['x'] is None, 'it lives on'
    with pytest.raises(RuntimeError, match='it ended'):
      child.ask('end')


def test_written_results_name_the_commit_and_no_paths(tmp_path, capsys):
  common = load('common')
  parser = common.parser('', 'made')
  common.add_peer_flags(parser)
  args = parser.parse_args(['--torch_python=/somewhere/python', f'--json={tmp_path / "a.json"}'])
  common.write(args.json, {'arguments': common.arguments(args)})
  written = json.loads((tmp_path / 'a.json').read_text())
  assert written['arguments'] == {'threads': 1}
  assert {'platform', 'commit', 'versions', 'load_average'} <= written['header'].keys()
  assert written['header']['sources'] == load('sources').digest()


def test_several_gpus_and_a_peer_elsewhere_are_refused(monkeypatch):
  common, steps = load('common'), load('steps')
  monkeypatch.setattr(steps.jax, 'device_count', lambda: 2)
  steps.one_device()
  common.check_peer('cpu')
  with pytest.raises(SystemExit, match='the peer computes on cuda, this program on cpu'):
    common.check_peer('cuda')
  monkeypatch.setattr(steps.jax, 'default_backend', lambda: 'gpu')
  common.check_peer('cuda:0')
  with pytest.raises(SystemExit, match='2 devices, expected one: set CUDA_VISIBLE_DEVICES'):
    steps.one_device()
  with pytest.raises(SystemExit, match='the peer computes on cpu'):
    common.check_peer('cpu')


def test_devices_are_compared_turn_by_turn():
  devices = load('devices')
  one = {'devices': 1, 'rates': [10.0, 20.0]}
  found = devices.compare(one, {'devices': 8, 'rates': [9.0, 19.0]})
  assert found['devices'] == 8 and found['each_over_one']['min'] == pytest.approx(0.9)
  assert found['each_over_one']['max'] == pytest.approx(0.95)


def test_losses_over_pairs_that_are_timed_are_the_same():
  loss_overhead = load('loss_overhead')
  f_LNTD = jnp.asarray(loss_overhead.features(4, (2, 3, 8)))
  values = {name: float(loss(f_LNTD)) for name, loss in loss_overhead.COMPILED.items()}
  assert values == pytest.approx(dict.fromkeys(values, values['running sum']), rel=1e-4)
