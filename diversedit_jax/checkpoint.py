"""Orbax checkpoints: `params`, `ema`, `opt` and `meta` as separate items, written asynchronously.

Each item can be restored alone and onto any mesh. A checkpoint that cannot be read (a truncated
file, say) is set aside with a warning and the one before it is used. Parameters are plain nested
dicts on disk, so any Orbax reader opens them.
"""

from collections.abc import Iterable, Mapping
import contextlib
import dataclasses
import os
from typing import Any

from absl import logging
from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
import orbax.checkpoint as ocp

from diversedit_jax import faults, trees, types

UNFINISHED = '*.orbax-checkpoint-tmp'  # Folders of checkpoints that were not written to the end.
ITEMS = ('params', 'ema', 'opt')
META = 'meta'
# What a busy or closed store says; the checkpoint behind it may be whole.
_NOT_DAMAGE = ('RESOURCE_EXHAUSTED', 'UNAVAILABLE', 'DEADLINE_EXCEEDED', 'PERMISSION_DENIED')
_finite_sums, _all_finite = jax.jit(trees.finite_sums), jax.jit(trees.all_finite)


def restore_target(tree: Any, shardings: Any) -> Any:
  """The restore target of a tree of arrays or shapes: shape, dtype and sharding of each leaf."""
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
  )


def steps(folder: str | os.PathLike[str]) -> list[int]:
  """Steps of the complete checkpoints in a folder of a run, oldest first; [] if there is none."""
  return sorted(int(path.name) for path in epath.Path(folder).glob('*') if path.name.isdigit())


def read(folder: str | os.PathLike[str], item: str) -> dict[str, np.ndarray]:
  """The arrays of one item of a checkpoint by slash-joined path, on the host.

  For weights whose network is not known, saved from whatever devices. Every process reads all.

  Args:
    folder: a checkpoint, checkpoints/STEP. item: one of `ITEMS`.

  Raises:
    UserError: it cannot be read.
  """
  path = epath.Path(folder).resolve() / item
  try:
    reader = ocp.PyTreeCheckpointHandler()
    stored = reader.metadata(path).tree
    on_host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
    found = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=on_host))
  except Exception as error:  # Orbax and TensorStore raise many types for a damaged file.
    text = ' '.join(f'{type(error).__name__}: {error}'.split())[:200]
    raise types.UserError(f'{path} cannot be read: {text}') from error
  return trees.named_leaves(found)


@dataclasses.dataclass(frozen=True)
class OneOf:
  """Restore targets of one item, of which that is read which the checkpoint has."""

  forms: tuple[Any, ...]


class NotFinite(types.UserError):
  """The state to save holds a NaN or an infinity."""


def all_processes(fine: bool) -> bool:
  """True if it is true on every process."""
  return bool(np.all(multihost_utils.process_allgather(np.array(fine))))


def _barrier(name: str) -> None:
  multihost_utils.sync_global_devices(name)


class Checkpoints:
  """The checkpoints of one run, `directory/STEP/{params,ema,opt,meta}`."""

  def __init__(
    self,
    directory: str,
    *,
    keep: int = 3,
    keep_every: int | None = None,
    read_only: bool = False,
  ):
    """Opens or creates the directory.

    Args:
      directory: folder of the run's checkpoints.
      keep: how many of the latest to keep.
      keep_every: also keep every checkpoint whose step is a multiple of this, for ever.
      read_only: nothing is saved; the directory, which may be another's, stays as it is.
    """
    self.directory = epath.Path(directory).resolve()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      keep_period=keep_every,
      cleanup_tmp_directories=not read_only,
      create=not read_only,  # All that is written before a save; Orbax' own `read_only` warns.
      enable_async_checkpointing=not read_only,
    )
    # Named here, so that what a checkpoint holds can be asked before it is read.
    handlers = {name: ocp.StandardCheckpointHandler() for name in ITEMS}
    handlers[META] = ocp.JsonCheckpointHandler()
    self._manager = ocp.CheckpointManager(self.directory, options=options, item_handlers=handlers)

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints, oldest first."""
    return sorted(self._manager.all_steps())

  def latest(self) -> int | None:
    """The newest complete checkpoint, or None."""
    return max(self.steps(), default=None)

  def save(self, step: int, items: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Starts to write a checkpoint; returns when the arrays have been copied off the device.

    Raises:
      NotFinite: if an item holds a NaN or an infinity; nothing is written.
      UserError: the checkpoint, or the one before it, could not be written, to a full disk say.
    """
    quick = {name: _finite_sums(tree) for name, tree in items.items()}
    # Training waits for this, so numbers are looked at one by one only where their sums overflow.
    bad = [name for name, fine in quick.items() if not (fine or _all_finite(items[name]))]
    if bad:
      raise NotFinite(
        f'checkpoint of step {step} not written: {", ".join(bad)} not finite; '
        f'last good checkpoint: {self.name(self.latest())}'
      )
    saves = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
    args = ocp.args.Composite(**saves, meta=ocp.args.JsonSave(dict(meta)))
    with self._failure_told():
      saved = self._manager.save(step, args=args)
    if not saved:
      raise types.UserError(f'Orbax declined to save step {step}; found {self.steps()}')

  def preempted(self, step: int) -> bool:
    """True once all processes of a multi-host run have agreed to stop at this step."""
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Blocks until everything that was started is on disk (UserError if it could not be)."""
    with self._failure_told():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits, then releases the manager's threads (UserError as `wait`)."""
    with self._failure_told():
      try:
        self._manager.wait_until_finished()
      finally:
        self._manager.close()

  @contextlib.contextmanager
  def _failure_told(self):
    """Turns what the disk says into a UserError; Orbax raises it later, for what it did before."""
    try:
      yield
    except Exception as error:
      line = faults.told(error)
      if line is None:
        raise
      last = self.name(max(steps(self.directory), default=None))
      raise types.UserError(
        f'a checkpoint could not be written: {line}; last good checkpoint: {last}, from which the '
        'same command goes on'
      ) from error

  def name(self, step: int | None) -> str:
    """The path of a checkpoint for messages, or 'none'."""
    return 'none' if step is None else str(self.directory / str(step))

  def restore(self, targets: Mapping[str, Any], step: int | None = None) -> tuple[int, dict, dict]:
    """Reads the wanted items of one checkpoint, and its meta.

    Args:
      targets: item name -> tree of `jax.ShapeDtypeStruct` with shardings, from `restore_target`, or
        `OneOf` several.
      step: step of the checkpoint; None takes the newest that can be read, warning about any that
        cannot.

    Returns:
      (step, items, meta).

    Raises:
      UserError: if there is no such checkpoint, or none can be read.
    """
    known = self.steps()
    if step is not None and step not in known:
      raise types.UserError(f'no checkpoint of step {step} in {self.directory}; found {known}')
    candidates = known[::-1] if step is None else [step]
    failures = []
    for candidate in candidates:
      try:
        found = self._read(candidate, self._fitting(candidate, targets))
        failure = ''
      except types.UserError:
        raise
      except Exception as error:  # Orbax and TensorStore raise many types for a damaged file.
        text = f'{type(error).__name__}: {error}'
        if any(word in text for word in _NOT_DAMAGE):
          raise
        failure = ' '.join(text.split())[:200]
      if all_processes(not failure):
        return candidate, *found
      failures.append(f'{candidate}: {failure or "unreadable to another process"}')
      hope = '; trying the one before it' if step is None else ''
      logging.warning('checkpoint %s cannot be read (%s)%s', self.name(candidate), failure, hope)
    if failures:
      raise types.UserError(f'no readable checkpoint in {self.directory}: ' + '; '.join(failures))
    raise types.UserError(f'no checkpoint in {self.directory}')

  def set_aside(self, steps: Iterable[int]) -> None:
    """Renames checkpoints that cannot be read, so that their steps can be written again."""
    for step in steps if jax.process_index() == 0 else ():
      source = self.directory / str(step)
      target = self.directory.parent / 'damaged_checkpoints' / str(step)
      target.parent.mkdir(parents=True, exist_ok=True)
      if target.exists():
        target = target.parent / f'{step}-{sum(1 for _ in target.parent.iterdir())}'
      source.rename(target)
      logging.warning('moved the unreadable checkpoint of step %d to %s', step, target)
    _barrier('set_aside')
    self._manager.reload()

  def _fitting(self, step, targets):
    """The targets in the form that a checkpoint has.

    Raises:
      UserError: it has other arrays, by name, before anything is read.
    """
    metadata, fitting = self._manager.item_metadata(step), {}
    shapes = lambda tree: {k: tuple(v.shape) for k, v in trees.named_leaves(tree).items()}
    wrong = []
    for item, target in targets.items():
      forms, stored = target.forms if isinstance(target, OneOf) else (target,), metadata[item]
      fitting[item] = forms[0]
      if stored is None:
        continue  # Unreadable metadata is damage, which reading will find.
      found = shapes(stored.tree)
      fitting[item] = next((form for form in forms if shapes(form) == found), forms[0])
      wanted = shapes(fitting[item])
      wrong += [
        f'{item}/{k}: found {found.get(k, "nothing")}, expected {wanted.get(k, "nothing")}'
        for k in sorted({*found, *wanted})
        if found.get(k) != wanted.get(k)
      ]
    if wrong:
      more = f' and {len(wrong) - 5} more' if len(wrong) > 5 else ''
      raise types.UserError(
        f'checkpoint {self.name(step)} does not fit the config: {"; ".join(wrong[:5])}{more}'
      )
    return fitting

  def _read(self, step, targets):
    wanted = {name: ocp.args.StandardRestore(target) for name, target in targets.items()}
    found = self._manager.restore(
      step, args=ocp.args.Composite(**wanted, meta=ocp.args.JsonRestore())
    )
    return {name: found[name] for name in targets}, found[META]
