"""Runs of the shipped digits config, shrunk: exact continuation, signals, NaN, damage.

Processes are real and are killed for real; what they left must continue bit for bit.
"""

import json
import re
import shutil
import signal

from helpers import killed_runs
import pytest

from diversedit_jax import checkpoint
from diversedit_jax.training import goodput, writers


@pytest.fixture(scope='module')
def straight(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('straight') / 'run'
  # A trace changes no bit: the runs that are compared with this one have none. Nor does the order
  # of sets, which is another here than in runs that are forked.
  done = killed_runs.run(workdir, '--config.log.profile=30:31', PYTHONHASHSEED='1')
  assert done.returncode == 0, done.stderr
  return workdir, done.stderr


def _goodput(workdir):
  return goodput.summary(writers.read_jsonl(workdir / goodput.FILE))


def test_run_reports_progress_and_describes_itself(straight):
  workdir, log = straight
  assert re.search(r'step 28/60 \(47%\) \| loss [\d.]+ .*diverse/weight .*steps/s.*ETA', log)
  assert 'first step after' in log
  assert len(list(workdir.glob('tensorboard/plugins/profile/*/*.xplane.pb'))) == 1
  assert 'async_checkpointer' not in log
  assert [row['step'] for row in killed_runs.rows(workdir)] == [
    7,
    14,
    20,
    20,
    21,
    28,
    35,
    40,
    40,
    42,
    49,
    56,
    60,
    60,
    60,
  ]
  assert json.loads((workdir / 'config.json').read_text())['train']['steps'] == killed_runs.STEPS
  assert 'jax' in json.loads((workdir / 'versions.json').read_text())[0]
  assert {
    'loss',
    'velocity',
    'diverse/orth',
    'diverse/mi',
    'diverse/disp',
    'diverse/weight',
  } <= set(killed_runs.rows(workdir)[0])


def test_run_that_is_ended_and_killed_continues_bit_for_bit(straight, tmp_path):
  """SIGTERM saves and exits as told; SIGKILL costs what came after the last checkpoint."""
  workdir, told = tmp_path / 'run', '--stopped_status=75'
  process = killed_runs.start_and_wait_for(workdir, 'step 7/', told)
  process.send_signal(signal.SIGTERM)
  log = process.stderr.read()
  assert process.wait() == 75
  step = int(re.search(r'SIGTERM: saved step (\d+)', log).group(1))
  assert 7 <= step < killed_runs.STEPS and _goodput(workdir)['lost_steps'] == 0
  process = killed_runs.start_and_wait_for(workdir, 'step 35/', told)
  process.send_signal(signal.SIGKILL)
  process.wait()
  saved = checkpoint.Checkpoints(workdir / 'checkpoints').latest()
  assert saved is not None and step < saved < killed_runs.STEPS
  done = killed_runs.run(workdir, told)
  assert done.returncode == 0, done.stderr  # Finished.
  assert f'continuing at step {saved}' in done.stderr
  ended, killed, whole = goodput.starts(writers.read_jsonl(workdir / goodput.FILE))
  assert (ended.first, ended.last, ended.ended) == (0, step, 'SIGTERM')
  assert killed.first == step and 35 <= killed.last < killed_runs.STEPS and not killed.ended
  assert (whole.first, whole.last, whole.ended) == (saved, killed_runs.STEPS, 'finished')
  # What the run itself told of is told at its end.
  assert f'goodput {_goodput(workdir)["goodput"]:.1%} of ' in done.stderr
  assert _goodput(workdir)['lost_steps'] == max(killed.last - saved, 0)
  killed_runs.assert_same_run(straight[0], workdir)


def test_truncated_newest_checkpoint_costs_steps_not_the_run(straight, tmp_path):
  workdir = tmp_path / 'run'
  shutil.copytree(straight[0], workdir)
  newest = workdir / 'checkpoints' / str(killed_runs.STEPS)
  for file in (newest / 'params').rglob('*'):
    if file.is_file() and file.stat().st_size > 1000:
      file.write_bytes(file.read_bytes()[:500])
  done = killed_runs.run(workdir)
  assert done.returncode == 0, done.stderr
  assert f'checkpoints/{newest.name} cannot be read' in done.stderr
  assert 'continuing at step 50' in done.stderr
  assert (workdir / 'damaged_checkpoints' / newest.name).is_dir()
  killed_runs.assert_same_run(straight[0], workdir)


def test_what_a_kill_left_undone_at_the_step_of_a_checkpoint_is_done_by_the_next_start(
  straight, tmp_path
):
  workdir = tmp_path / 'run'
  shutil.copytree(straight[0], workdir)
  for file in (workdir / 'telemetry').glob(f'*-{killed_runs.STEPS:08d}.npz'):
    file.unlink()
  path = workdir / 'metrics.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  undone = next(i for i, line in enumerate(lines) if '"step": 60' in line and 'similarity/' in line)
  path.write_text(''.join(lines[:undone]))
  done = killed_runs.run(workdir)
  assert done.returncode == 0, done.stderr
  assert 'step 60: what was left undone after it is done now' in done.stderr
  killed_runs.assert_same_run(straight[0], workdir)


def test_finished_run_says_so_and_is_left_as_it_is(straight):
  workdir, _ = straight
  before = killed_runs.rows(workdir)
  done = killed_runs.run(workdir)
  assert done.returncode == 0 and 'nothing to do: the run is at step 60 of 60' in done.stderr
  assert killed_runs.rows(workdir) == before


def test_non_finite_loss_stops_the_run_and_names_step_term_and_checkpoint(tmp_path):
  workdir = tmp_path / 'run'
  done = killed_runs.run(
    workdir, '--config.optimizer.learning_rate=1e15', '--config.optimizer.warmup_steps=0'
  )
  assert done.returncode == 2
  message = done.stderr.strip().splitlines()[-1]
  assert re.match(
    r'error: step \d+: .*(velocity|grad_norm) is (nan|inf).*last good checkpoint: none\. .*'
    r'--continue_with=optimizer.learning_rate --config.optimizer.learning_rate=5e\+14 or',
    message,
  )
  assert 'Traceback' not in done.stderr
