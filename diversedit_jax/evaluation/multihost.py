"""Files that the first process writes and all processes read: checks that all see the same."""

from collections.abc import Callable
import pathlib
import time

from jax.experimental import multihost_utils
import numpy as np

from diversedit_jax import meeting, types

_PATIENCE_SECONDS = 10.0  # A network file system may show a new file late.


def check_same(seen: int, path: pathlib.Path) -> None:
  """Refuses, on all processes, what they see differently.

  Args:
    seen: what this process finds, as a number.
    path: where it looked.

  Raises:
    UserError: if another process finds another number.
  """
  seen_P = np.reshape(multihost_utils.process_allgather(np.int32(seen)), -1)
  if (seen_P != seen_P[0]).any():
    raise _different(path)


def wait_for(there: Callable[[], bool], path: pathlib.Path) -> None:
  """Returns when all processes are here and see what the first one has written.

  Args:
    there: whether this process sees it.
    path: where it looks.

  Raises:
    UserError: on all processes, if it stays out of sight of one of them.
  """
  meeting.all_agree(True)
  last = time.monotonic() + _PATIENCE_SECONDS
  while not (found := there()) and time.monotonic() < last:
    time.sleep(0.1)
  if not meeting.all_agree(found):
    raise _different(path)


def from_first(number: int) -> int:
  """The first process's number, on every process."""
  return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


def _different(path):
  return types.UserError(
    f'processes see different files under {path}; the workdir must be one that all see'
  )
