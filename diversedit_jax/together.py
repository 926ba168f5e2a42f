"""The processes of a run end together: the error of one ends all, and a lost one is named.

A process whose neighbour is gone may wait in a collective that nobody can interrupt, until JAX ends
it with a stack trace, up to 100 s later. So every process keeps a connection to the first one. A
killed process closes its own at once; of a machine that is lost the system finds out (`meeting`).
Whoever fails says so before it ends, and the first process hands it on.
"""

import atexit
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
import sys
import threading
import time

import jax

from diversedit_jax import faults, meeting

LOST = 1
"""Exit status where another process is gone; no mistake (2), so a scheduler starts all again."""

_BONDS: list['Bond'] = []  # That of this process, if it has others.
_GRACE = 1.0  # Seconds for an error that all find by themselves, each of which then tells its own.
_CAUSE = 5.0  # Seconds that a fault waits for another process's end, which may be its cause.
_PARTING = 15.0  # Seconds for the others to end, and for the traceback of this one.


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Ends all processes of a run together: call it when they have joined, around all they do.

  An exception in the block reaches the caller, and every other process is ended with its line and
  its exit status. Where another fails or is lost, this process is ended in the same way, whatever
  it does. At the end it waits until all have come to theirs.
  """
  found = meeting.met() if jax.process_count() > 1 else None
  bond = Bond(*found) if found else None
  _BONDS[:] = [bond] if bond else []
  if bond is None:
    yield
    return
  try:
    yield
  except SystemExit:  # A status of its own at the end of a mode, which all come to.
    bond.finished()
    raise
  except BaseException as error:
    bond.failed(error)
    raise
  bond.finished()


@contextlib.contextmanager
def told_early() -> Iterator[None]:
  """Tells the others an exception of the block before whatever waits for them at its end."""
  try:
    yield
  except Exception as error:
    for bond in _BONDS:
      bond.failed(error)
    raise


def all_bound() -> bool:
  """Whether what a process says reaches all others; the same on each."""
  return any(bond.whole for bond in _BONDS)


def say(topic: str, line: str = '') -> None:
  """Tells the others a line about a topic, from any thread, and waits for nobody.

  What is said without a line, the first process says to all, and another one to the first alone.
  """
  for bond in _BONDS:
    bond.say(topic, line)


def heard(topic: str) -> dict[int, str]:
  """What processes, this one too, have said about a topic, by their indices."""
  return {index: line for bond in _BONDS for index, line in bond.heard(topic).items()}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
  """Why all processes end: a line for the user, and the exit status. lost: nobody can add to it."""

  line: str
  status: int
  lost: bool = False


class Bond:
  """The connections of one process: of the first to all others, of another to the first.

  A message is a JSON object on a line: {'finished': [INDEX, ...]}, {'said': [TOPIC, INDEX, LINE]}
  or {'verdict': {...}}.
  """

  def __init__(
    self,
    index: int,
    names: Mapping[int, str],
    peers: Mapping[int, socket.socket],
    whole: bool = True,
  ):
    """Takes connections over.

    Args:
      index: of this process.
      names: of all in words.
      peers: connections by process.
      whole: whether every process has one.
    """
    self.whole = whole
    self._index, self._names, self._peers = index, names, peers
    self._changed, self._sending = threading.Condition(), threading.Lock()
    self._finished: set[int] = set()
    self._said: dict[str, dict[int, str]] = {}
    self._open, self._failing = set(peers), False
    self._verdict: Verdict | None = None
    for number in peers:
      threading.Thread(target=self._listen, args=(number,), daemon=True, name='together').start()

  def finished(self) -> None:
    """Tells that this process has come to its end; returns when all have."""
    self._hear({'finished': [self._index]})
    if self._index:
      self._send(0, {'finished': [self._index]})
    with self._changed:  # A verdict ends the process from another thread.
      self._changed.wait_for(self._all_finished)
    if not self._index:
      self._send_all({'finished': sorted(self._finished)})

  def say(self, topic: str, line: str) -> None:
    """Tells the others, through the first process, a line about a topic."""
    message = {'said': [topic, self._index, line]}
    self._hear(message)
    if self._index:
      self._send(0, message)

  def heard(self, topic: str) -> dict[int, str]:
    """What processes have said about a topic, by their indices."""
    with self._changed:
      return dict(self._said.get(topic, {}))

  def failed(self, error: BaseException) -> None:
    """Tells an error of this process; returns to raise it, unless another one's is behind it."""
    if self._failing:
      return
    line, status = faults.told(error), 130 if isinstance(error, KeyboardInterrupt) else 2
    if line is None:
      with self._changed:
        self._changed.wait_for(lambda: self._verdict, _CAUSE)
      if self._verdict is not None:
        self._end(self._verdict)
      line, status = f'{type(error).__name__}: {error}; its own output has the traceback', 1
    self._failing = True
    self._judge(Verdict(line=f'{self._names[self._index]}: {line}', status=status))
    # JAX would wait at the exit for processes that have gone.
    atexit.register(self._part, status)
    threading.Thread(target=self._late, args=(line, status), daemon=True).start()

  def _late(self, line, status):
    """Ends this process where its error does not come to its end."""
    time.sleep(_PARTING)
    self._end(Verdict(line=line, status=status))

  def _listen(self, number):
    # A line that a kill has cut short is no message.
    with contextlib.suppress(OSError, ValueError), self._peers[number].makefile('rb') as lines:
      for line in lines:
        self._hear(json.loads(line))
    with self._changed:
      self._open.discard(number)
      self._changed.notify_all()
    if number not in self._finished:
      what = f'{self._names[number]} is gone: it was killed, or its machine was lost'
      self._judge(Verdict(line=f'{what}; all others end too', status=LOST, lost=True))

  def _hear(self, message):
    if 'verdict' in message:
      self._judge(Verdict(**message['verdict']))
      return
    if 'said' in message:
      topic, index, line = message['said']
      with self._changed:
        self._said.setdefault(topic, {})[index] = line
      if not self._index and (line or not index):
        self._send_all(message)
      return
    with self._changed:
      self._finished |= set(message['finished'])
      self._changed.notify_all()

  def _all_finished(self):
    return self._finished >= {self._index, *self._peers}

  def _judge(self, verdict):
    """Takes the first verdict, hands it on, and ends this process if it does not end by itself."""
    with self._changed:
      if self._verdict is not None:
        return
      self._verdict = verdict
      self._changed.notify_all()
    if not self._index or self._failing:
      self._send_all({'verdict': dataclasses.asdict(verdict)})
    if not self._failing:  # In a thread of its own: this one sees a connection close.
      threading.Thread(target=self._follow, args=(verdict,), daemon=True).start()

  def _follow(self, verdict):
    time.sleep(0 if verdict.lost else _GRACE)
    if not self._failing:
      self._end(verdict)

  def _send_all(self, message):
    for number in self._peers:
      self._send(number, message)

  def _send(self, number, message):
    line = json.dumps(message).encode() + b'\n'
    # Threads would mix their bytes. Whoever has gone, its own thread finds out.
    with contextlib.suppress(OSError), self._sending:
      self._peers[number].sendall(line)

  def _end(self, verdict):
    os.write(2, f'error: {verdict.line}\n'.encode('utf-8', 'backslashreplace'))
    self._part(verdict.status)

  def _part(self, status):
    """Ends this process; the first one when the others have, because JAX ends them with it."""
    with self._changed:
      self._changed.wait_for(lambda: self._index or not self._open, _PARTING)
    for worker in multiprocessing.active_children():
      worker.kill()
    for stream in (sys.stdout, sys.stderr):
      with contextlib.suppress(Exception):  # The main thread may hold it.
        stream.flush()
    os._exit(status)
