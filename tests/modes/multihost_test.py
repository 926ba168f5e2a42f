"""Processes that see different files refuse together instead of waiting for one another."""

import os
import pathlib
import socket
import subprocess
import sys

from helpers import picture_eval
from jax.experimental import multihost_utils
import numpy as np
import pytest

from diversedit_jax import modes, types
from diversedit_jax.evaluation import samples
from diversedit_jax.modes import multihost
from diversedit_jax.sampling import generate

tiny_inception, files = picture_eval.tiny_inception, picture_eval.files
pytestmark = pytest.mark.usefixtures('compilation_cached')
HERE = pathlib.Path(__file__).parent
REFUSAL = 'processes see different files under .*; the workdir must be one that all see'


def beside(monkeypatch, sees):
  """A second process, which gives `sees(x)` where this one gives x."""
  gathered = lambda x: np.stack([np.asarray(x), np.asarray(sees(x), np.asarray(x).dtype)])
  monkeypatch.setattr(multihost_utils, 'process_allgather', gathered)


def evaluate(files, workdir):
  return modes.evaluate.run(
    picture_eval.make(files), str(workdir), str(files / 'weights.safetensors')
  )


@pytest.mark.parametrize('seen', [0, 1, 2])
def test_what_all_see_alike_is_fine(tmp_path, monkeypatch, seen):
  multihost.check_same(seen, tmp_path)
  beside(monkeypatch, lambda x: x)
  multihost.check_same(seen, tmp_path)
  beside(monkeypatch, lambda x: x + 1)
  with pytest.raises(types.UserError, match=REFUSAL):
    multihost.check_same(seen, tmp_path)


def test_a_file_may_come_late_but_must_come_everywhere(tmp_path, monkeypatch):
  looks = iter([False, False, True])
  multihost.wait_for(lambda: next(looks), tmp_path)
  assert not list(looks)
  monkeypatch.setattr(multihost, '_PATIENCE_SECONDS', 0)
  with pytest.raises(types.UserError, match=REFUSAL):
    multihost.wait_for(lambda: False, tmp_path)
  answers = iter([True, False])  # It is there, and does not see the file.
  beside(monkeypatch, lambda x: next(answers))
  with pytest.raises(types.UserError, match=REFUSAL):
    multihost.wait_for(lambda: True, tmp_path)


def test_scores_that_another_process_has_already_are_refused_before_sampling(
  files, tmp_path, monkeypatch
):
  monkeypatch.setattr(generate.Generator, '__call__', lambda *_, **__: pytest.fail('sampled'))
  # What a process finds is gathered as int32: 0 for no file, 1 for one of this protocol.
  beside(monkeypatch, lambda x: x + 1 if np.asarray(x).dtype == np.int32 else x)
  with pytest.raises(types.UserError, match=REFUSAL):
    evaluate(files, tmp_path)


def test_samples_out_of_sight_are_refused_before_they_are_scored(files, tmp_path, monkeypatch):
  monkeypatch.setattr(multihost, '_PATIENCE_SECONDS', 0)
  monkeypatch.setattr(samples.Parts, 'append', lambda *_: None)  # As if on another machine.
  with pytest.raises(types.UserError, match=REFUSAL):
    evaluate(files, tmp_path)
  assert not list(tmp_path.rglob('fid.json'))


TWO = """
import os, pathlib, sys
import jax
jax.distributed.initialize(num_processes=2, process_id=int(os.environ['JAX_PROCESS_ID']))
from diversedit_jax.modes import evaluate, multihost
multihost._PATIENCE_SECONDS = 0.5
file = pathlib.Path(sys.argv[1]) / 'x.json'
assert not evaluate._is_of(file, {'a': 1}, 'scores')
if jax.process_index() == 0:
  file.write_text('{"a": 1}')
try:
  if sys.argv[2] == 'wait':
    multihost.wait_for(file.is_file, file.parent)
  multihost.checkpoint.all_processes(True)
  assert evaluate._is_of(file, {'a': 1}, 'scores')
except evaluate.types.UserError as error:
  print(error)
"""


@pytest.mark.slow
@pytest.mark.parametrize('shared', [True, False])
@pytest.mark.parametrize('check', ['wait', 'same'])
def test_two_processes(tmp_path, shared, check):
  """Two processes on one folder go on; with a folder each, both refuse and neither waits."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    address = f'localhost:{probe.getsockname()[1]}'
  variables = {'JAX_COORDINATOR_ADDRESS': address, 'PYTHONPATH': str(HERE.parents[1])}
  folders = [tmp_path / ('all' if shared else str(i)) for i in range(2)]
  for folder in folders:
    folder.mkdir(exist_ok=True)
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', TWO, str(folder), check],
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | variables | {'JAX_PROCESS_ID': str(i)},
    )
    for i, folder in enumerate(folders)
  ]
  told = [process.communicate(timeout=120)[0] for process in processes]
  assert [process.returncode for process in processes] == [0, 0]
  assert [('the workdir must be one that all see' in text) for text in told] == [not shared] * 2
