"""Orbax' barriers of a save, which end on every process when one of them cannot write its part.

Orbax tells nobody that writing has failed. The others would wait for that process, and it for them
at the barrier after theirs, until `AsyncOptions.timeout_secs` of 20 minutes have passed.
"""

import itertools
import sys
import time

import jax
import orbax.checkpoint as ocp

from diversedit_jax import faults, together, types

_SAVES = itertools.count(1)  # Numbers of the saves of this process, whatever folder they are in.
_ASKING = 0.1  # Seconds between two looks for what the others say.
_OF_WRITING = ('async_write_complete', 'async_commit_complete')  # A process that failed skips them.


class Barriers:
  """A `barrier_sync_fn` for Orbax, in whose threads it is called; one save at a time."""

  def __init__(self):
    self._save, self._meet = 0, ocp.multihost.get_barrier_sync_fn()

  def begin(self) -> None:
    """Begins a save; every process begins the same ones."""
    self._save = next(_SAVES)

  def __call__(self, *, key: str, timeout_ms: int) -> None:
    """Waits for all processes.

    Raises:
      UserError: one of them cannot write its part. What says that the time has passed.
    """
    unsaved, error = f'save {self._save} failed', sys.exception()
    if error is not None:  # It passes through Orbax' last barrier, to which all come.
      together.say(unsaved, faults.told(error) or faults.said(error))
    if together.all_bound() and any(name in key for name in _OF_WRITING):
      self._wait(f'save {self._save} {key}', unsaved, time.monotonic() + timeout_ms / 1000)
    else:
      self._meet(key=key, timeout_ms=timeout_ms)

  def _wait(self, here, unsaved, end):
    """Waits until all are here, which the first process finds and says."""
    first, whole = jax.process_index() == 0, f'all: {here}'
    together.say(here)
    while not together.heard(whole):
      if first and len(together.heard(here)) == jax.process_count():
        together.say(whole)
      for index, line in together.heard(unsaved).items():
        raise types.UserError(f'process {index}: {line}')
      if time.monotonic() > end:
        raise TimeoutError('timed out while waiting for the others to write a checkpoint')
      time.sleep(_ASKING)
