"""Runs of the shipped digits config, shrunk: exact continuation, SIGTERM, NaN, damage.

Processes are real and are killed for real; what they left must continue bit for bit.
"""

import json
import pathlib
import re
import signal
import subprocess
import sys

import numpy as np
import pytest

from diversedit_jax import checkpoint, trees
from diversedit_jax.training import writers

ROOT = pathlib.Path(__file__).parents[2]
TIMING = ('steps_per_second', 'images_per_second', 'seconds')
STEPS = 60


def command(workdir, *flags):
  small = [
    '--config.model.depth=2',
    '--config.model.width=16',
    '--config.model.heads=2',
    '--config.train.batch_size=16',
    f'--config.train.steps={STEPS}',
    '--config.optimizer.warmup_steps=5',
    '--config.log.every=7',
    '--config.log.telemetry_every=20',
    '--config.log.tensorboard=False',
    '--config.checkpoint.every=10',
    '--config.checkpoint.keep=10',
    '--config.preview.every=0',
    '--config.diversity.layers=random',
    '--config.diversity.num_layers=2',
  ]
  return [
    sys.executable,
    '-m',
    'diversedit_jax.main',
    '--config=configs/digits.py',
    f'--workdir={workdir}',
    *small,
    *flags,
  ]


def run(workdir, *flags):
  return subprocess.run(command(workdir, *flags), cwd=ROOT, capture_output=True, text=True)


def start_and_wait_for(workdir, text, *flags):
  """Starts a run and returns it as soon as its log says `text`."""
  process = subprocess.Popen(
    command(workdir, *flags), cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
  )
  for line in process.stderr:
    if text in line:
      return process
  raise AssertionError(f'the run ended before saying {text!r}')


def arrays(workdir, step):
  """Every array of a checkpoint, read as plain trees."""
  import orbax.checkpoint as ocp

  folder = workdir / 'checkpoints' / str(step)
  with ocp.StandardCheckpointer() as reader:
    parts = {name: reader.restore(folder / name) for name in ('params', 'ema', 'opt')}
  return {k: np.asarray(v) for k, v in trees.named_leaves(parts).items()}


def rows(workdir):
  found = writers.read_jsonl(workdir / 'metrics.jsonl')
  return [{k: v for k, v in row.items() if k not in TIMING} for row in found]


def assert_same_run(one, other):
  assert rows(one) == rows(other)
  a, b = arrays(one, STEPS), arrays(other, STEPS)
  assert a.keys() == b.keys() and len(a) > 50
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  for file in (one / 'telemetry').iterdir():
    with np.load(file) as x, np.load(other / 'telemetry' / file.name) as y:
      np.testing.assert_array_equal(x['token'], y['token'])


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('straight') / 'run'
  done = run(workdir)
  assert done.returncode == 0, done.stderr
  return workdir, done.stderr


def test_run_reports_progress_and_describes_itself(straight):
  workdir, log = straight
  assert re.search(r'step 28/60 \(47%\) \| loss [\d.]+ .*diverse/weight .*steps/s.*ETA', log)
  assert 'first step after' in log
  assert 'async_checkpointer' not in log
  assert [row['step'] for row in rows(workdir)] == [7, 14, 20, 21, 28, 35, 40, 42, 49, 56, 60, 60]
  assert json.loads((workdir / 'config.json').read_text())['train']['steps'] == STEPS
  assert 'jax' in json.loads((workdir / 'versions.json').read_text())[0]
  assert {
    'loss',
    'velocity',
    'diverse/orth',
    'diverse/mi',
    'diverse/disp',
    'diverse/weight',
  } <= set(rows(workdir)[0])


def test_killed_run_continues_bit_for_bit(straight, tmp_path):
  workdir = tmp_path / 'run'
  process = start_and_wait_for(workdir, 'step 35/')
  process.send_signal(signal.SIGKILL)
  process.wait()
  saved = checkpoint.Checkpoints(workdir / 'checkpoints').latest()
  assert saved is not None and saved < STEPS
  done = run(workdir)
  assert done.returncode == 0, done.stderr
  assert f'continuing at step {saved}' in done.stderr
  assert_same_run(straight[0], workdir)


def test_sigterm_saves_exits_0_and_continues_bit_for_bit(straight, tmp_path):
  workdir = tmp_path / 'run'
  process = start_and_wait_for(workdir, 'step 21/')
  process.send_signal(signal.SIGTERM)
  log = process.stderr.read()
  assert process.wait() == 0
  step = int(re.search(r'SIGTERM: saved step (\d+)', log).group(1))
  assert 21 <= step < STEPS
  assert run(workdir).returncode == 0
  assert_same_run(straight[0], workdir)


def test_truncated_newest_checkpoint_costs_steps_not_the_run(straight, tmp_path):
  workdir = tmp_path / 'run'
  process = start_and_wait_for(workdir, 'step 42/')
  process.send_signal(signal.SIGTERM)
  log = process.stderr.read()
  process.wait()
  newest = int(re.search(r'SIGTERM: saved step (\d+)', log).group(1))
  for file in (workdir / 'checkpoints' / str(newest) / 'params').rglob('*'):
    if file.is_file() and file.stat().st_size > 1000:
      file.write_bytes(file.read_bytes()[:500])
  done = run(workdir)
  assert done.returncode == 0, done.stderr
  assert f'checkpoints/{newest} cannot be read' in done.stderr
  assert re.search(r'continuing at step \d+', done.stderr)
  assert (workdir / 'damaged_checkpoints' / str(newest)).is_dir()
  assert_same_run(straight[0], workdir)


def test_finished_run_says_so_and_can_be_prolonged(straight):
  workdir, _ = straight
  before = rows(workdir)
  done = run(workdir)
  assert done.returncode == 0 and 'nothing to do: the run is at step 60 of 60' in done.stderr
  assert rows(workdir) == before


def test_non_finite_loss_stops_the_run_and_names_step_term_and_checkpoint(tmp_path):
  workdir = tmp_path / 'run'
  done = run(workdir, '--config.optimizer.learning_rate=1e15', '--config.optimizer.warmup_steps=0')
  assert done.returncode == 1
  message = done.stderr.strip().splitlines()[-1]
  assert re.match(
    r'error: step \d+: .*(velocity|grad_norm) is (nan|inf).*last good checkpoint: none', message
  )
  assert 'Traceback' not in done.stderr


def test_other_config_in_the_same_workdir_is_refused_before_compiling(straight):
  workdir, _ = straight
  done = run(workdir, '--config.model.width=32')
  assert done.returncode == 1
  assert 'model.width: stored 16, given 32' in done.stderr
  assert 'first step' not in done.stderr
