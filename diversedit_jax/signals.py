"""Signals on which training saves and ends: those of schedulers, of people and of closed terminals.

SLURM's `--signal=USR1@120`, `scancel`, a preempted machine, Ctrl-C, an ssh that breaks off.
"""

from collections.abc import Callable, Iterator
import contextlib
import os
import signal
import threading

import jax

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)

_LISTENING: list[list[str]] = []  # What has arrived, of all that listen.


@contextlib.contextmanager
def stop_requested() -> Iterator[Callable[[], str]]:
  """Yields a function that names the first signal that has arrived, '' while there is none.

  A second Ctrl-C ends the process at once. SIGHUP stays ignored under nohup. With several processes
  JAX itself listens to SIGTERM, so that all agree on a step to stop at; other signals are handed on
  to it. The old handlers are restored at the end. Within another of these, both hear a signal, and
  what that one has heard before is known here.
  """
  arrived = list(_LISTENING[-1]) if _LISTENING else []
  _LISTENING.append(arrived)
  several = jax.process_count() > 1

  def note(number, frame):
    del frame
    name = signal.Signals(number).name
    if number == signal.SIGINT:
      signal.signal(signal.SIGINT, signal.SIG_DFL)
    if several:
      os.kill(os.getpid(), signal.SIGTERM)
    elif not arrived:
      for heard in _LISTENING:
        heard.append(name)
      again = '; once more ends at once' if number == signal.SIGINT else ''
      # Not by the log: its stream may be in use just now.
      os.write(2, f'{name}: saving after this step, then ending{again}\n'.encode())

  numbers = [
    number
    for number in STOPPING
    if not (several and number == signal.SIGTERM)
    and not (number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN)
  ]
  if threading.current_thread() is not threading.main_thread():
    numbers = []  # Only the main thread hears signals.
  before = {number: signal.signal(number, note) for number in numbers}
  try:
    yield lambda: arrived[0] if arrived else ''
  finally:
    _LISTENING.pop()
    for number, handler in before.items():
      signal.signal(number, handler)


def ignore() -> None:
  """Ignores all of them: in a worker, which its run ends when it has saved."""
  for number in STOPPING:
    signal.signal(number, signal.SIG_IGN)
