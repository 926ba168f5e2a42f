"""The processes of a run end together: the error of one ends all, and a lost one is named.

A process whose neighbour is gone may wait in a collective that nobody can interrupt, until JAX ends
it with a stack trace, up to 100 s later. So every process keeps a connection to the first one. A
killed process closes its own at once; of a machine that is lost the system finds out (`_KEPT`).
Whoever fails says so before it ends, and the first process hands it on.
"""

import atexit
from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
import json
import multiprocessing
import os
import secrets
import socket
import sys
import threading
import time

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from diversedit_jax import faults

LOST = 1
"""Exit status where another process is gone; no mistake (2), so a scheduler starts all again."""

_BONDS: list['Bond'] = []  # That of this process, if it has others.
_TEXT = 2048  # Bytes of a text that is exchanged.
_MEETING = 20.0  # Seconds in which all must have connected.
_GRACE = 1.0  # Seconds for an error that all find by themselves, each of which then tells its own.
_CAUSE = 5.0  # Seconds that a fault waits for another process's end, which may be its cause.
_PARTING = 15.0  # Seconds for the others to end, and for the traceback of this one.
# A connection on which nothing comes is looked at after 20 s, and is gone after four silent 10 s.
_KEPT = {'TCP_KEEPIDLE': 20, 'TCP_KEEPINTVL': 10, 'TCP_KEEPCNT': 4, 'TCP_USER_TIMEOUT': 60_000}


@contextlib.contextmanager
def together() -> Iterator[None]:
  """Ends all processes of a run together: call it when they have joined, around all they do.

  An exception in the block reaches the caller, and every other process is ended with its line and
  its exit status. Where another fails or is lost, this process is ended in the same way, whatever
  it does. At the end it waits until all have come to theirs.
  """
  bond = _met() if jax.process_count() > 1 else None
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


def texts(mine: str) -> list[str]:
  """What each process says, by their indices; all must call it. Long texts are cut."""
  every = np.reshape(multihost_utils.process_allgather(_coded(mine)), (-1, _TEXT))
  return [_decoded(row) for row in every]


def _coded(text):
  data = np.frombuffer(text.encode('utf-8', 'replace')[:_TEXT], np.uint8)
  return np.pad(data, (0, _TEXT - len(data)))


def _decoded(row):
  return bytes(np.asarray(row, np.uint8)).rstrip(b'\0').decode('utf-8', 'ignore')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
  """Why all processes end: a line for the user, and the exit status. lost: nobody can add to it."""

  line: str
  status: int
  lost: bool = False


class Bond:
  """The connections of one process: of the first to all others, of another to the first.

  A message is a JSON object on a line: {'finished': [INDEX, ...]} or {'verdict': {...}}.
  """

  def __init__(self, index: int, names: Mapping[int, str], peers: Mapping[int, socket.socket]):
    """index: of this process. names: of all in words. peers: connections by process."""
    self._index, self._names, self._peers = index, names, peers
    self._changed = threading.Condition()
    self._finished: set[int] = set()
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
    with contextlib.suppress(OSError):  # It has gone; its own thread finds out.
      self._peers[number].sendall(json.dumps(message).encode() + b'\n')

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


def _met() -> Bond | None:
  """Connections of this process with others; None, with a warning, where there cannot be any."""
  index, count = jax.process_index(), jax.process_count()
  me = {'index': index, 'pid': os.getpid(), 'host': socket.gethostname()}
  with contextlib.closing(_listening()) if index == 0 else contextlib.nullcontext() as server:
    call = (
      ''
      if server is None
      else json.dumps(
        {'port': server.getsockname()[1], 'token': secrets.token_hex(8), 'hosts': _addresses()}
      )
    )
    call = json.loads(_decoded(multihost_utils.broadcast_one_to_all(_coded(call))))
    peers = _connect(call, me) if server is None else _accept(server, call['token'], count - 1)
  everybody = texts(json.dumps(me | {'met': bool(peers)}))
  facts = [json.loads(text) for text in everybody]
  names = {
    f['index']: f'process {f["index"]} of {count} (pid {f["pid"]} on {f["host"]})' for f in facts
  }
  missing = [names[f['index']] for f in facts if not f['met']]
  if missing:
    logging.warning(
      '%s cannot be reached at %s, port %d: if it is lost, the others end when JAX notices, after '
      'up to 100 s',
      ', '.join(missing),
      ', '.join(call['hosts']),
      call['port'],
    )
  return Bond(index, names, peers) if peers else None


def loopback() -> str | None:
  """The name of the loopback interface by which all processes, then of one host, meet; or None."""
  host = os.environ.get('JAX_COORDINATOR_ADDRESS', '').rpartition(':')[0].strip('[]')
  return host if host in ('localhost', '127.0.0.1', '::1') else None


def _listening():
  here = loopback()
  if here is not None:  # No other host can reach it.
    family = socket.AF_INET6 if ':' in here else socket.AF_INET
    return socket.create_server((here, 0), family=family)
  try:
    return socket.create_server(('', 0), family=socket.AF_INET6, dualstack_ipv6=True)
  except (OSError, ValueError):  # Without IPv6.
    return socket.create_server(('', 0))


def _addresses() -> list[str]:
  """Where others may find this process: the coordinator's name, its own addresses and its name."""
  found = [os.environ.get('JAX_COORDINATOR_ADDRESS', '').rpartition(':')[0].strip('[]')]
  for family, outside in ((socket.AF_INET, '192.0.2.1'), (socket.AF_INET6, '2001:db8::1')):
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
      probe.connect((outside, 9))  # Chooses an address of this machine, and sends nothing.
      found.append(probe.getsockname()[0])
  return [*dict.fromkeys(filter(None, [*found, socket.gethostname()]))]


def _connect(call, me) -> dict[int, socket.socket]:
  """The connection to the first process, at the first of its addresses that answers as it does."""
  for host in call['hosts']:
    with contextlib.suppress(OSError, ValueError):
      peer = socket.create_connection((host, call['port']), timeout=_MEETING / 4)
      peer.sendall(json.dumps({'token': call['token'], **me}).encode() + b'\n')
      if peer.recv(1) == b'\n':
        return {0: _kept(peer)}
      peer.close()
  return {}


def _accept(server, token, others) -> dict[int, socket.socket]:
  """Connections of the others that come in time."""
  peers, until = {}, time.monotonic() + _MEETING
  while len(peers) < others and (rest := until - time.monotonic()) > 0:
    server.settimeout(rest)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
      peer, _ = server.accept()
      peer.settimeout(_MEETING / 4)
      hello = json.loads(_line(peer))
      if hello['token'] == token:
        peer.sendall(b'\n')
        peers[hello['index']] = _kept(peer)
  return peers


def _line(peer):
  """Bytes up to the end of a line; no more are read."""
  data = b''
  while not data.endswith(b'\n') and (more := peer.recv(1)) and len(data) < _TEXT:
    data += more
  return data


def _kept(peer) -> socket.socket:
  peer.settimeout(None)
  peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
  for name, value in _KEPT.items():
    if hasattr(socket, name):
      peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
  return peer
