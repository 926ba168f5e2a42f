"""Orbax checkpoints: `params`, `ema`, `opt` and `meta` as separate items, written asynchronously.

Each item can be restored alone and onto any mesh. A damaged checkpoint (a truncated file, a bit
that flipped; see `integrity`) is set aside with a warning and the one before it is used. Parameters
are plain nested dicts on disk, so any Orbax reader opens them.
"""

from collections.abc import Callable, Iterable, Mapping
import functools
import itertools
import os
from typing import Any

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from diversedit_jax import commits, integrity, meeting, paths, trees, types
from diversedit_jax import restore_targets as targets_lib
from diversedit_jax.data import files
from diversedit_jax.weights import forms as forms_lib

UNFINISHED = '*.orbax-checkpoint-tmp'  # Folders of checkpoints that were not written to the end.
ITEMS = ('params', 'ema', 'opt')
META = 'meta'
_looked_at = jax.jit(lambda tree: (trees.finite_sums(tree), trees.checksums(tree)))
_all_finite = jax.jit(trees.all_finite)


def steps(folder: str | os.PathLike[str]) -> list[int]:
  """Steps of the complete checkpoints in a folder of a run, oldest first; [] if there is none."""
  found = [path for path in epath.Path(folder).glob('*') if path.name.isdigit()]
  # On a disk an unfinished one has another name.
  whole = lambda path: not paths.is_bucket(path) or ocp.path.step.is_path_finalized(path)
  return sorted(int(path.name) for path in found if whole(path))


def _place(folder):
  """A folder as Orbax takes it."""
  path = epath.Path(folder)
  return path if paths.is_bucket(path) else path.resolve()


def items(folder: str | os.PathLike[str]) -> list[str]:
  """The items of arrays that a checkpoint holds: those of `ITEMS`, then the others by name."""
  found = {path.name for path in epath.Path(folder).glob('*') if path.is_dir()} - {META}
  return [*(name for name in ITEMS if name in found), *sorted(found - {*ITEMS})]


def read_meta(folder: str | os.PathLike[str]) -> dict[str, Any]:
  """What a checkpoint says beside its arrays.

  Raises:
    UserError: it cannot be read.
  """
  path = _place(folder)
  found, failure = integrity.read(
    str(path / META), lambda: _read_meta(path), lambda _: None, alone=True
  )
  if failure:
    raise types.UserError(f'{path / META} cannot be read: {failure}')
  return found[0]


def read(folder: str | os.PathLike[str], item: str) -> dict[str, np.ndarray]:
  """The arrays of one item of a checkpoint by slash-joined path, on the host.

  For weights whose network is not known, saved from whatever devices. Every process reads all.

  Args:
    folder: a checkpoint, checkpoints/STEP. item: one of `items`.

  Raises:
    UserError: it cannot be read.
  """
  folder = _place(folder)
  path = folder / item

  def attempt():
    reader = ocp.PyTreeCheckpointHandler()
    stored = reader.metadata(path).tree
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    found = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=on_host))
    # An item may have been given away alone.
    return found, _read_meta(folder)[1] if (folder / META).exists() else {}

  verify = lambda read: integrity.check({item: read[0]}, read[1])
  found, failure = integrity.read(str(path), attempt, verify, alone=True)
  if failure:
    raise types.UserError(f'{path} cannot be read: {failure}')
  return forms_lib.current(trees.named_leaves(found[0]))


def _read_meta(folder):
  """Meta of a checkpoint, and its checksums."""
  return integrity.opened(
    ocp.JsonCheckpointHandler().restore(folder / META, ocp.args.JsonRestore())
  )


class NotFinite(types.UserError):
  """The state to save holds a NaN or an infinity. step: its own. because: what of it, in words."""

  def __init__(self, step: int, because: str, good: str):
    super().__init__(
      f'checkpoint of step {step} not written: {because}; last good checkpoint: {good}'
    )
    self.step, self.because = step, because


def _barrier(name: str) -> None:
  multihost_utils.sync_global_devices(name)


class Checkpoints:
  """The checkpoints of one run, `directory/STEP/{params,ema,opt,meta}`."""

  def __init__(
    self,
    directory: str,
    *,
    more: Iterable[str] = (),
    keep: int = 3,
    keep_every: int | None = None,
    read_only: bool = False,
  ):
    """Opens or creates the directory.

    Args:
      directory: folder of the run's checkpoints.
      more: items of arrays beside `ITEMS`.
      keep: how many of the latest to keep.
      keep_every: also keep every checkpoint whose step is a multiple of this, for ever.
      read_only: nothing is saved; the directory, which may be another's, stays as it is.
    """
    self.directory = _place(directory)
    self._barriers = commits.Barriers()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      keep_period=keep_every,
      cleanup_tmp_directories=not read_only,
      create=not read_only,  # All that is written before a save; Orbax' own `read_only` warns.
      enable_async_checkpointing=not read_only,
      async_options=ocp.AsyncOptions(barrier_sync_fn=self._barriers),
    )
    # Named here, so that what a checkpoint holds can be asked before it is read.
    handlers = {name: ocp.StandardCheckpointHandler() for name in (*ITEMS, *more)}
    handlers[META] = ocp.JsonCheckpointHandler()
    self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)
    self._unsaved = ''  # Why the last save failed, until `wait` has told it.
    self._open = False  # Whether a save was begun of which it is not known how it ended.

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def latest(self) -> int | None:
    """The newest complete checkpoint, or None."""
    return max(self.steps(), default=None)

  def save(self, step: int, items: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Starts to write a checkpoint; returns when the arrays have been copied off the device.

    If it cannot be written, to a full disk say, an error is logged, now, by `look`, or before the
    next one is written, and the checkpoints before it stay; `wait` tells it too.

    Raises:
      NotFinite: if an item holds a NaN or an infinity; nothing is written.
    """
    seen = {name: _looked_at(tree) for name, tree in items.items()}
    # Training waits for this, so numbers are looked at one by one only where their sums overflow.
    bad = [name for name, (fine, _) in seen.items() if not (fine or _all_finite(items[name]))]
    if bad:
      raise NotFinite(step, f'{", ".join(bad)} not finite', self.name(self.latest()))
    saves = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    sealed = integrity.sealed(meta, {name: sums for name, (_, sums) in seen.items()})
    args = ocp.args.Composite(**saves, meta=ocp.args.JsonSave(sealed))
    self._unsaved = ''
    self.settle()
    saved, self._open = [], True
    self._barriers.begin()
    self._attempt(lambda: saved.append(self._manager.save(step, args=args)))
    if saved == [False]:
      raise types.UserError(f'Orbax declined to save step {step}; found {self.steps()}')
    if self._unsaved:
      logging.error('%s; training goes on', self._unsaved)

  def preempted(self, step: int) -> bool:
    """True once all processes of a multi-host run have agreed to stop at this step."""
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Blocks until everything that was started is on disk (UserError if it could not be)."""
    self._attempt(self._manager.wait_until_finished)
    self._raise()

  def look(self) -> None:
    """Logs an error if the last save has failed by now; waits for none. All processes call it."""
    if self._open and meeting.all_agree(not self._manager.is_saving_in_progress()):
      self.settle()

  def settle(self) -> None:
    """Blocks until nothing is written any more; logs an error if it could not be."""
    self._open = False
    self._attempt(self._manager.wait_until_finished)
    if self._unsaved:
      logging.error('%s; training goes on', self._unsaved)
    self._unsaved = ''

  def close(self) -> None:
    """Waits for this process alone, then ends the manager's threads (UserError as `wait`)."""
    self._note(integrity.failure(self._manager.wait_until_finished))
    integrity.failure(self._manager.close)  # Orbax says the same again.
    self._raise()

  def _attempt(self, action: Callable[[], Any]) -> None:
    """Does a part of saving, and notes what disks and networks say against it, on all processes.

    Orbax raises later, for what it did before. Its list then lacks the checkpoint that the failed
    one would have replaced.
    """
    failure = integrity.failure(action)
    if meeting.all_agree(not failure):
      return
    if jax.process_index() == 0:
      for unfinished in self.directory.glob(UNFINISHED):
        unfinished.rmtree()  # It takes the space that the next one needs.
    _barrier('unsaved')
    self._manager.reload()
    self._note(failure or 'another process could not write its part')

  def _note(self, failure):
    if failure:
      last = self.name(max(steps(self.directory), default=None))
      self._unsaved = f'a checkpoint could not be written: {failure}; last good checkpoint: {last}'

  def _raise(self):
    unsaved, self._unsaved = self._unsaved, ''
    if unsaved:
      raise types.UserError(f'{unsaved}, from which the same command goes on')

  def name(self, step: int | None) -> str:
    """The path of a checkpoint for messages, or 'none'."""
    return 'none' if step is None else str(self.directory / str(step))

  def restore(self, targets: Mapping[str, Any], step: int | None = None) -> tuple[int, dict, dict]:
    """Reads the wanted items of one checkpoint, and its meta.

    Args:
      targets: by item, see `restore_targets`.
      step: step of the checkpoint; None takes the newest that can be read, warning about any that
        cannot.

    Returns:
      (step, items, meta).

    Raises:
      UserError: if there is no such checkpoint, or all are damaged, or reading fails for a reason
        that is not the checkpoint's and does not pass.
    """
    known = self.steps()
    if step is not None and step not in known:
      raise types.UserError(f'no checkpoint of step {step} in {self.directory}; found {known}')
    failures = []
    for candidate in known[::-1] if step is None else [step]:
      name = self.name(candidate)
      read = functools.partial(self._read, candidate, targets)
      verify = lambda found: integrity.check(found[0], found[2])
      found, failure = integrity.read(f'checkpoint {name}', read, verify)
      if not failure:
        items, meta, _, fits = found
        return candidate, {n: forms_lib.restored(x, fits[n].wanted) for n, x in items.items()}, meta
      failures.append(f'{candidate}: {failure}')
      hope = '; trying the one before it' if step is None else ''
      logging.warning('checkpoint %s cannot be read (%s)%s', name, failure, hope)
    if failures:
      raise types.UserError(f'no readable checkpoint in {self.directory}: ' + '; '.join(failures))
    raise types.UserError(f'no checkpoint in {self.directory}')

  def set_aside(self, steps: Iterable[int]) -> None:
    """Renames checkpoints that cannot be read, so that their steps can be written again."""
    for step in steps if jax.process_index() == 0 else ():
      source = self.directory / str(step)
      folder, numbers = self.directory.parent / 'damaged_checkpoints', itertools.count(1)
      target = folder / str(step)
      while target.exists():
        target = folder / f'{step}-{next(numbers)}'
      files.move(source, target)
      logging.warning('moved the unreadable checkpoint of step %d to %s', step, target)
    _barrier('set_aside')
    self._manager.reload()

  def _read(self, step, targets):
    """Items as stored, meta, checksums and how the targets fit.

    By handlers, which do not wait for processes that have failed.

    Raises:
      UserError: other arrays were asked for. Whatever Orbax and TensorStore raise.
    """
    folder = self.directory / str(step)
    found, (meta, sums) = {}, _read_meta(folder)
    metadata = self._manager.item_metadata(step)
    there = {name: metadata[name] for name in items(folder) if name in targets}
    held = {name: None if its is None else its.tree for name, its in there.items()}
    fits = targets_lib.fit(targets, held, sums, self.name(step))
    for name, fit in fits.items():
      args = ocp.args.StandardRestore(fit.stored)
      found[name] = ocp.StandardCheckpointHandler().restore(folder / name, args=args)
    return found, meta, sums, fits
