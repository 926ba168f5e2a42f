"""Processes that see different files refuse together instead of waiting for one another."""

import os
import pathlib
import socket
import subprocess
import sys

from jax.experimental import multihost_utils
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.evaluation import multihost

ROOT = pathlib.Path(__file__).parents[2]
REFUSAL = 'processes see different files under .*; the workdir must be one that all see'


def beside(monkeypatch, sees):
  """A second process, which gives `sees(x)` where this one gives x."""
  gathered = lambda x: np.stack([np.asarray(x), np.asarray(sees(x), np.asarray(x).dtype)])
  monkeypatch.setattr(multihost_utils, 'process_allgather', gathered)


def test_what_all_see_alike_is_fine(tmp_path, monkeypatch):
  multihost.check_same(1, tmp_path)
  beside(monkeypatch, lambda x: x)
  multihost.check_same(1, tmp_path)
  beside(monkeypatch, lambda x: x + 1)
  with pytest.raises(types.UserError, match=REFUSAL):
    multihost.check_same(1, tmp_path)


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


TWO = """
import os, pathlib, sys
import jax
jax.distributed.initialize(num_processes=2, process_id=int(os.environ['JAX_PROCESS_ID']))
from diversedit_jax import types
from diversedit_jax.evaluation import multihost
multihost._PATIENCE_SECONDS = 0.5
file = pathlib.Path(sys.argv[1]) / 'x.json'
multihost.check_same(int(file.is_file()), file.parent)
if jax.process_index() == 0:
  file.write_text('{"a": 1}')
try:
  if sys.argv[2] == 'wait':
    multihost.wait_for(file.is_file, file.parent)
  multihost.meeting.all_agree(True)
  multihost.check_same(int(file.is_file()), file.parent)
except types.UserError as error:
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
  variables = {'JAX_COORDINATOR_ADDRESS': address, 'PYTHONPATH': str(ROOT)}
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
