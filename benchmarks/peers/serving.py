"""A child process that is kept alive and told what to do, one JSON object on each line.

  parent -> child   {"do": "step", "count": 2}
  child -> parent   {"wall": 1.2, "cpu": 2.3}       or   {"error": "..."}

So two programs with their own interpreters can take turns within one measurement. The child writes
its answers to what was its standard output when it started; everything else that it prints goes to
its standard error, which the parent leaves alone. Standard library only.
"""

from collections.abc import Callable, Mapping
import json
import os
import pathlib
import subprocess
import sys
import time
import traceback
from typing import Any

PEERS = pathlib.Path(__file__).parent


def serve(handlers: Mapping[str, Callable[..., dict]]) -> None:
  """Answers requests by name until standard input ends. handlers: name -> function of the rest."""
  answers = os.fdopen(os.dup(1), 'w')
  os.dup2(2, 1)  # What libraries print must not come between the answers.
  for line in sys.stdin:
    request = json.loads(line)
    try:
      answer = handlers[request.pop('do')](**request)
    except Exception:  # The parent raises it.
      answer = {'error': traceback.format_exc()}
    print(json.dumps(answer), file=answers, flush=True)


def clocked(
  run: Callable[[], Any], count: int = 1, *, wait: Callable[[], Any] = lambda: None
) -> dict[str, float]:
  """Wall and CPU seconds of one of `count` runs. wait: for the work of all of them, at the end."""
  started = time.perf_counter(), time.process_time()
  for _ in range(count):
    run()
  wait()
  wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
  return {'wall': wall / count, 'cpu': cpu / count}


class Child:
  """A script of this folder under a Python of one's choice, with `--serve`.

  with serving.Child(python, 'torch_train.py', threads=2) as child:
    child.ask('make', size='S/2', batch=4)
    child.ask('step')['cpu']
  """

  def __init__(self, python: str, script: str, *, threads: int):
    """threads: that the child may compute with, as many as its parent uses."""
    self._words = [python, str(PEERS / script), '--serve', f'--threads={threads}']
    self._process = subprocess.Popen(
      self._words,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env=os.environ | {'OMP_NUM_THREADS': str(threads)},
    )

  def ask(self, do: str, **request: Any) -> dict[str, Any]:
    """The child's answer.

    Raises:
      RuntimeError: if the child failed or ended.
    """
    try:
      print(json.dumps({'do': do, **request}), file=self._process.stdin, flush=True)
      answer = json.loads(self._process.stdout.readline() or '{"error": "it ended"}')
    except BrokenPipeError:
      answer = {'error': 'it ended'}
    if 'error' in answer:
      raise RuntimeError(f'{" ".join(self._words)} failed at {do!r}: {answer["error"]}')
    return answer

  def close(self) -> None:
    """Ends the child by ending its input."""
    self._process.stdin.close()
    self._process.stdout.close()
    self._process.wait()

  def __enter__(self) -> 'Child':
    return self

  def __exit__(self, *_) -> None:
    self.close()


def has_torch(python: str) -> bool:
  """Whether that Python can import PyTorch."""
  done = subprocess.run([python, '-c', 'import torch'], stderr=subprocess.DEVNULL)
  return done.returncode == 0


def default_python() -> str:
  """The Python of the peers: the environment's TORCH_PYTHON, or this one."""
  return os.environ.get('TORCH_PYTHON', sys.executable)
