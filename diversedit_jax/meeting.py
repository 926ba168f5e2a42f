"""The processes of a run meet: every other connects with the first, and all tell each a text."""

from collections.abc import Mapping
import contextlib
import json
import os
import secrets
import socket
import time
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

_TEXT = 2048  # Bytes of a text that is exchanged.
_MEETING = 20.0  # Seconds in which all must have connected.
# A connection on which nothing comes is looked at after 20 s, and is gone after four silent 10 s.
_KEPT = {'TCP_KEEPIDLE': 20, 'TCP_KEEPINTVL': 10, 'TCP_KEEPCNT': 4, 'TCP_USER_TIMEOUT': 60_000}


def met() -> tuple[int, dict[int, str], dict[int, socket.socket], bool] | None:
  """Where this process can reach others: its index, all in words, connections, and if all have one.

  The first process has a connection to every other, another one to the first. None, with a
  warning, where there cannot be any. All must call it.
  """
  index, count = jax.process_index(), jax.process_count()
  me = {'index': index, 'pid': os.getpid(), 'host': socket.gethostname()}
  with contextlib.closing(listening()) if index == 0 else contextlib.nullcontext() as server:
    call = (
      ''
      if server is None
      else json.dumps(
        {'port': server.getsockname()[1], 'token': secrets.token_hex(8), 'hosts': _addresses()}
      )
    )
    call = json.loads(_decoded(multihost_utils.broadcast_one_to_all(_coded(call))))
    peers = connect(call, me) if server is None else accept(server, call['token'], count - 1)
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
  return (index, names, peers, not missing) if peers else None


def texts(mine: str) -> list[str]:
  """What each process says, by their indices; all must call it. Long texts are cut."""
  every = np.reshape(multihost_utils.process_allgather(_coded(mine)), (-1, _TEXT))
  return [_decoded(row) for row in every]


def all_agree(fine: bool) -> bool:
  """Whether it is true on every process; all must call it."""
  return bool(np.all(multihost_utils.process_allgather(np.array(fine))))


def _coded(text):
  data = np.frombuffer(text.encode('utf-8', 'replace')[:_TEXT], np.uint8)
  return np.pad(data, (0, _TEXT - len(data)))


def _decoded(row):
  return bytes(np.asarray(row, np.uint8)).rstrip(b'\0').decode('utf-8', 'ignore')


def loopback() -> str | None:
  """The name of the loopback interface by which all processes, then of one host, meet; or None."""
  host = os.environ.get('JAX_COORDINATOR_ADDRESS', '').rpartition(':')[0].strip('[]')
  return host if host in ('localhost', '127.0.0.1', '::1') else None


def listening() -> socket.socket:
  """A socket on which the first process waits for the others."""
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


def connect(call: Mapping[str, Any], me: Mapping[str, Any]) -> dict[int, socket.socket]:
  """The connection to the first process, at the first of its addresses that answers as it does."""
  for host in call['hosts']:
    with contextlib.suppress(OSError, ValueError):
      peer = socket.create_connection((host, call['port']), timeout=_MEETING / 4)
      peer.sendall(json.dumps({'token': call['token'], **me}).encode() + b'\n')
      if peer.recv(1) == b'\n':
        return {0: _kept(peer)}
      peer.close()
  return {}


def accept(server: socket.socket, token: str, others: int) -> dict[int, socket.socket]:
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
