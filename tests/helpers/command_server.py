"""Runs commands in processes that are forked from one that has imported everything.

So a command is a real one, with its own flags, exit code and output, without the seconds of its
imports. `python command_server.py` reads a JSON object a line: {'module', 'argv', 'cwd', 'seconds',
'env', 'out', 'err'} starts a command, and is answered with {'pid'}; {'wait': PID} is answered with
{'code'} when it has ended.
"""

import atexit
import functools
import gc
import json
import os
import pathlib
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types

import jax
import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
_IMPORTED = (
  'configs.paper',
  'diversedit_jax.config_file',
  'diversedit_jax.convert.cli',
  'diversedit_jax.modes',
  'diversedit_jax.preparation.work',
  'sklearn.svm',
)
# What is read when JAX and Flax are imported, by the beginnings of names: some are given to JAX
# again, and others must be those of the server, but for a few that are read when they are needed.
_READ_AT_IMPORT = ('JAX_', 'NNX_')
_AGAIN = ('JAX_PLATFORMS', 'JAX_COMPILATION_CACHE_DIR')
_LATER = ('JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')


class Process:
  """A command that was started; the part of `subprocess.Popen` that tests need.

  stderr: what it says, as it says it. returncode: None until it was waited for.
  """

  def __init__(self, server, asked):
    self._folder = tempfile.TemporaryDirectory()
    self._out, pipe = (pathlib.Path(self._folder.name, name) for name in ('out', 'err'))
    os.mkfifo(pipe)
    # Opened before there is a writer, or a command that ends early would be waited for forever.
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    self._server, self.returncode = server, None
    self.pid = server.ask(asked | {'out': str(self._out), 'err': str(pipe)})['pid']
    os.set_blocking(reader, True)
    self.stderr = os.fdopen(reader, errors='backslashreplace')

  def send_signal(self, number: int) -> None:
    os.kill(self.pid, number)

  def wait(self) -> int:
    """Reads no more of what it says; its exit status, or a negative signal."""
    if self.returncode is None:
      self.communicate()
    return self.returncode

  def communicate(self) -> tuple[str, str]:
    """Waits; all that it printed, and what it said since it was last read."""
    with self._folder, self.stderr:
      said = self.stderr.read()
      self.returncode = self._server.ask({'wait': self.pid})['code']
      return self._out.read_text(errors='backslashreplace'), said


class Server:
  """The process that forks; `run` is one command in it."""

  def __init__(self):
    self._environ = dict(os.environ)
    self._process = subprocess.Popen(
      [sys.executable, __file__],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT)},
    )

  def ask(self, asked: dict) -> dict:
    self._process.stdin.write(json.dumps(asked) + '\n')
    self._process.stdin.flush()
    answer = self._process.stdout.readline()
    if not answer:
      raise RuntimeError('the server of commands has ended; what it said is above')
    return json.loads(answer)

  def start(
    self, module: str, argv: list[str], cwd: pathlib.Path, seconds: int = 60, **env: str | None
  ) -> Process:
    """Starts `python -m MODULE ARGV` in a folder; a variable of None is unset.

    A command that does not end in so many seconds is ended.

    Raises:
      ValueError: a variable that is read once, at import, is not that of the server.
    """
    env = {name: value for name, value in (os.environ | env).items() if value is not None}
    for name in env.keys() | self._environ.keys():
      if name.startswith(_READ_AT_IMPORT) and name not in (*_AGAIN, *_LATER):
        here, there = env.get(name), self._environ.get(name)
        if here != there:
          raise ValueError(f'{name}={here} of a command, but {there} when its server was started')
    return Process(
      self, {'module': module, 'argv': argv, 'cwd': str(cwd), 'seconds': seconds, 'env': env}
    )

  def run(self, *args, **kwargs) -> dict:
    """Runs what `start` starts; its exit status, what it printed and what it said."""
    process = self.start(*args, **kwargs)
    out, err = process.communicate()
    return {'code': process.returncode, 'out': out, 'err': err}

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


@functools.cache
def shared() -> Server:
  """The server of all tests of this process."""
  server = Server()
  atexit.register(server.close)
  return server


def main(argv: list[str], *, seconds: int = 600, **env: str | None) -> types.SimpleNamespace:
  """Runs `python -m diversedit_jax.main ARGV` in the project, as `subprocess.run` would."""
  done = shared().run('diversedit_jax.main', argv, ROOT, seconds, **env)
  return types.SimpleNamespace(returncode=done['code'], stdout=done['out'], stderr=done['err'])


def _run(asked, out, err, environ):
  """Does what was asked, in the forked process, which ends here.

  out, err: its files. environ: variables that imports have set.
  """
  code = 1
  try:
    signal.alarm(asked['seconds'])
    for number, file in enumerate((os.open(os.devnull, os.O_RDONLY), out, err)):
      os.dup2(file, number)
      os.close(file)
    os.chdir(asked['cwd'])
    os.environ.clear()
    os.environ.update(environ | asked['env'])
    for name in _AGAIN:
      jax.config.update(name.lower(), os.environ.get(name))
    random.seed()  # As a process of its own would have them.
    np.random.seed()  # noqa: NPY002
    sys.path[:] = [asked['cwd'], *sys.path[1:]]  # As `python -m` has it.
    sys.argv = [asked['module'], *asked['argv']]
    runpy.run_module(asked['module'], run_name='__main__', alter_sys=True)
    code = 0
  except SystemExit as stop:
    code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
  except BaseException:
    traceback.print_exc()
  finally:
    # What an interpreter does at its end, but for taking all modules apart: that would copy what is
    # shared with the server.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve():
  before = dict(os.environ)
  for module in _IMPORTED:
    __import__(module)
  environ = {name: value for name, value in os.environ.items() if name not in before}
  gc.collect()
  gc.freeze()  # What is imported stays, and is not looked through by each command at its end.
  for line in sys.stdin:
    asked = json.loads(line)
    if 'wait' in asked:
      _, status = os.waitpid(asked['wait'], 0)
      answer = {'code': os.waitstatus_to_exitcode(status)}
    else:
      out = os.open(asked['out'], os.O_WRONLY | os.O_CREAT)
      err = os.open(asked['err'], os.O_WRONLY)
      answer = {'pid': os.fork()}
      if not answer['pid']:
        _run(asked, out, err, environ)
      os.close(out)
      os.close(err)
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  _serve()
