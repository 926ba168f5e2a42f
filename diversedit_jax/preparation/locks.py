"""Locks between the processes that write one store; a finished store has no lock files."""

from collections.abc import Iterator
import contextlib
import pathlib

from diversedit_jax import locks, types


@contextlib.contextmanager
def store(root: pathlib.Path) -> Iterator[None]:
  """Locks the files of the whole store; waits for other holders."""
  with locks.lock(root / '.store.lock', wait=True):
    yield


@contextlib.contextmanager
def worker(root: pathlib.Path, index: int, count: int) -> Iterator[None]:
  """Locks the shards of worker `index` of `count`.

  Raises:
    UserError: another process is writing some of these shards.
  """
  name = '.worker-{}-of-{}.lock'
  own = root / name.format(index, count)
  with contextlib.ExitStack() as held:
    with store(root):
      for path in sorted(root.glob(name.format('*', '*'))):
        if path.name.endswith(f'-of-{count}.lock') and path != own:
          continue  # Another worker of the same count has other shards.
        if locks.is_held(path):
          raise types.UserError(
            f'another process writes {root} ({path.name[1:-5]}); start each worker once, and all '
            'with the same n in --shard=i/n'
          )
      held.enter_context(locks.lock(own, wait=False))
    try:
      yield
    finally:
      with store(root):
        held.close()


def remove_stale(root: pathlib.Path) -> None:
  """Removes the lock files of killed workers, and keeps those of running ones."""
  for path in root.glob('.worker-*.lock'):
    locks.is_held(path)
