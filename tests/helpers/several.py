"""Several real processes of a run on this machine, started as a launcher does."""

import os
import socket
import subprocess

from helpers import killed_runs

ROOT = killed_runs.ROOT
PATH = f'{ROOT}{os.pathsep}{ROOT / "tests"}'


def free_port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return str(probe.getsockname()[1])


def start(count, workdir, *flags, module='diversedit_jax.main', cwds=None, **options):
  """The processes. cwds: folder of each. options: of `Popen`."""
  command = [*killed_runs.command(workdir, *flags), '--distributed']
  command[2], command[3] = module, f'--config={ROOT}/configs/digits.py'
  shared = os.environ | options.pop('env', {}) | {'PYTHONPATH': PATH}
  shared |= {'JAX_COORDINATOR_ADDRESS': f'localhost:{free_port()}', 'JAX_NUM_PROCESSES': str(count)}
  options = {'stderr': subprocess.PIPE, 'text': True, **options}
  return [
    subprocess.Popen(
      command,
      cwd=cwds[i] if cwds else ROOT,
      env=shared | {'JAX_PROCESS_ID': str(i)},
      **options,
    )
    for i in range(count)
  ]


def ended(processes):
  """Exit statuses and logs of processes that come to their end."""
  logs = [process.communicate()[1] for process in processes]
  return [process.returncode for process in processes], logs


def until(process, text):
  """The log of a process until it says `text`."""
  log = ''
  for line in process.stderr:
    log += line
    if text in line:
      return log
  raise AssertionError(f'ended before saying {text!r}: {log[-3000:]}')
