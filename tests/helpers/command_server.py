"""Runs commands in processes that are forked from one that has imported everything.

So a command is a real one, with its own flags, exit code and output, without the seconds of its
imports. `python command_server.py` reads a JSON object a line, {'module', 'argv', 'cwd', 'seconds',
'env'}, and answers with {'code', 'out', 'err'}.
"""

import json
import os
import pathlib
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback

import jax

ROOT = pathlib.Path(__file__).parents[2]
_IMPORTED = (
  'configs.paper',
  'diversedit_jax.config_file',
  'diversedit_jax.convert.cli',
  'diversedit_jax.modes',
  'diversedit_jax.preparation.work',
  'sklearn.datasets',
)


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

  def run(
    self, module: str, argv: list[str], cwd: pathlib.Path, seconds: int = 60, **env: str | None
  ) -> dict:
    """Runs `python -m MODULE ARGV` in a folder; a variable of None is unset.

    A command that does not end in so many seconds is ended.
    """
    asked = {'module': module, 'argv': argv, 'cwd': str(cwd), 'seconds': seconds, 'env': env}
    self._process.stdin.write(json.dumps(asked) + '\n')
    self._process.stdin.flush()
    return json.loads(self._process.stdout.readline())

  def close(self) -> None:
    self._process.stdin.close()
    self._process.wait()


def _child(asked, out, err):
  os.dup2(out.fileno(), 1)
  os.dup2(err.fileno(), 2)
  os.chdir(asked['cwd'])
  for name, value in asked['env'].items():
    os.environ.pop(name, None) if value is None else os.environ.update({name: value})
  jax.config.update('jax_platforms', os.environ.get('JAX_PLATFORMS'))  # It was read at import.
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
  for line in sys.stdin:
    asked = json.loads(line)
    with tempfile.TemporaryFile('w+') as out, tempfile.TemporaryFile('w+') as err:
      child = os.fork()
      if not child:
        _child(asked, out, err)
      _, status = os.waitpid(child, 0)
      out.seek(0)
      err.seek(0)
      answer = {'code': os.waitstatus_to_exitcode(status), 'out': out.read(), 'err': err.read()}
    print(json.dumps(answer), flush=True)


if __name__ == '__main__':
  _serve()
