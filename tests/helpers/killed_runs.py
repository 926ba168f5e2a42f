"""The shipped digits config, shrunk and run as a command: started, killed, compared."""

import os
import pathlib
import subprocess
import sys
import tempfile

from helpers import command_server
import numpy as np
import orbax.checkpoint as ocp

from diversedit_jax import checkpoint, trees
from diversedit_jax.training import writers

ROOT = pathlib.Path(__file__).parents[2]
TIMING = ('steps_per_second', 'images_per_second', 'seconds')
STEPS = 60
ITEMS = {'params', 'ema', 'opt', 'ema@0.9', 'ema@std=0.05'}


def command(workdir, *flags):
  return [sys.executable, '-m', 'diversedit_jax.main', *_arguments(workdir, *flags)]


def _arguments(workdir, *flags):
  return [
    '--config=configs/digits.py',
    f'--workdir={workdir}',
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
    '--config.train.averages=0.9,std=0.05',
    '--config.diversity.layers=random',
    '--config.diversity.num_layers=2',
    *flags,
  ]


def run(workdir, *flags, before=(), **environment):
  """Runs to the end. before: words ahead of the command."""
  if not (before or environment):
    return command_server.main(_arguments(workdir, *flags))
  return subprocess.run(
    [*before, *command(workdir, *flags)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=os.environ | environment,
  )


def start(workdir, *flags, before=(), **environment):
  """Starts a run whose log nobody reads before its end. before: words ahead of the command."""
  log, name = tempfile.mkstemp()
  process = subprocess.Popen(
    [*before, *command(workdir, *flags)],
    cwd=ROOT,
    stdout=log,
    stderr=log,
    env=os.environ | environment,
  )
  os.close(log)
  process.log = pathlib.Path(name)
  return process


def ended(process):
  """Waits for a run that `start` has made; its exit status and its log."""
  status, log = process.wait(), process.log.read_text()
  process.log.unlink()
  return status, log


def start_and_wait_for(workdir, text, *flags):
  """Starts a run and returns it as soon as its log says `text`."""
  process = command_server.shared().start(
    'diversedit_jax.main', _arguments(workdir, *flags), ROOT, seconds=600
  )
  for line in process.stderr:
    if text in line:
      return process
  raise AssertionError(f'the run ended before saying {text!r}')


def arrays(workdir, step):
  """Every array of a checkpoint, read as plain trees."""
  folder = workdir / 'checkpoints' / str(step)
  with ocp.StandardCheckpointer() as reader:
    parts = {name: reader.restore(folder / name) for name in checkpoint.items(folder)}
  return {k: np.asarray(v) for k, v in trees.named_leaves(parts).items()}


def rows(workdir):
  found = writers.read_jsonl(workdir / 'metrics.jsonl')
  return [{k: v for k, v in row.items() if k not in TIMING} for row in found]


def assert_same_run(one, other):
  assert rows(one) == rows(other)
  a, b = arrays(one, STEPS), arrays(other, STEPS)
  assert a.keys() == b.keys() and {k.partition('/')[0] for k in a} == ITEMS
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
  for file in (one / 'telemetry').iterdir():
    with np.load(file) as x, np.load(other / 'telemetry' / file.name) as y:
      for name in x:
        np.testing.assert_array_equal(x[name], y[name])
