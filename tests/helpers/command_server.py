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
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
import types

import jax

ROOT = pathlib.Path(__file__).parents[2]
_IMPORTED = (
  'configs.paper',
  'diversedit_jax.config_file',
  'diversedit_jax.convert.cli',
  'diversedit_jax.modes',
  'diversedit_jax.preparation.work',
  'sklearn.svm',
)
# JAX read them when it was imported.
_READ_AT_IMPORT = ('JAX_PLATFORMS', 'JAX_COMPILATION_CACHE_DIR')


class Process:
  """A command that was started; the part of `subprocess.Popen` that tests need.

  stderr: what it says, as it says it.
  """

  def __init__(self, server, asked):
    self._folder = tempfile.TemporaryDirectory()
    self._out = pathlib.Path(self._folder.name, 'out')
    pipe = os.path.join(self._folder.name, 'err')
    os.mkfifo(pipe)
    self._server = server
    self.pid = server.ask(asked | {'out': str(self._out), 'err': pipe})['pid']
    self.stderr = pathlib.Path(pipe).open(errors='backslashreplace')  # noqa: SIM115

  def send_signal(self, number: int) -> None:
    os.kill(self.pid, number)

  def wait(self) -> int:
    """Reads no more of what it says; its exit status, or a negative signal."""
    threading.Thread(target=self.stderr.read, daemon=True).start()
    return self._server.ask({'wait': self.pid})['code']

  def communicate(self) -> tuple[str, str]:
    """Waits; all that it printed, and what it said since it was last read."""
    said = self.stderr.read()
    self.returncode = self._server.ask({'wait': self.pid})['code']
    return self._out.read_text(errors='backslashreplace'), said


class Server:
  """The process that forks; `run` is one command in it."""

  def __init__(self):
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
    return json.loads(self._process.stdout.readline())

  def start(
    self, module: str, argv: list[str], cwd: pathlib.Path, seconds: int = 60, **env: str | None
  ) -> Process:
    """Starts `python -m MODULE ARGV` in a folder; a variable of None is unset.

    A command that does not end in so many seconds is ended.
    """
    env = {name: value for name, value in (os.environ | env).items() if value is not None}
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


def _run(asked):
  """What the forked process does. It ends at once: an interpreter that takes apart what it shares
  with its parent copies all of it.
  """
  for number, path in enumerate((os.devnull, asked['out'], asked['err'])):
    file = os.open(path, os.O_RDWR if not number else os.O_WRONLY | os.O_CREAT)
    os.dup2(file, number)
    os.close(file)
  os.chdir(asked['cwd'])
  os.environ.clear()
  os.environ.update(asked['env'])
  for name in _READ_AT_IMPORT:
    jax.config.update(name.lower(), os.environ.get(name))
  signal.alarm(asked['seconds'])
  sys.path[:] = [asked['cwd'], *sys.path[1:]]  # As `python -m` has it.
  sys.argv = [asked['module'], *asked['argv']]
  code = 0
  try:
    runpy.run_module(asked['module'], run_name='__main__', alter_sys=True)
  except SystemExit as stop:
    code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
  except BaseException:
    traceback.print_exc()
    code = 1
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(code)


def _serve():
  for module in _IMPORTED:
    __import__(module)
  gc.collect()
  gc.freeze()  # What is imported stays, and is not looked through by each command at its end.
  for line in sys.stdin:
    asked = json.loads(line)
    if 'wait' in asked:
      _, status = os.waitpid(asked['wait'], 0)
      answer = {'code': os.waitstatus_to_exitcode(status)}
    else:
      answer = {'pid': os.fork()}
      if not answer['pid']:
        _run(asked)
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  _serve()
