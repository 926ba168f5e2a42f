"""Copies a store to a disk of this host, once for all processes of the host.

The copy lies in CACHE/NAME-DIGEST, by the digest of the manifest: two stores, or two versions of
one, never share a folder. The manifest has the digests of the shards' facts, these the digests of
the files. A file gets its name when all of its bytes are there and have their digest. So a copy
that was killed goes on with the files that are missing, as does one that wants more columns.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent import futures
import contextlib
import dataclasses
import hashlib
import pathlib
import threading
import time

from absl import logging

from diversedit_jax import faults, locks, progress, types
from diversedit_jax.data import files
from diversedit_jax.data.store import layout, places, writer

_LOCK = '.copy.lock'
_POLL = 0.5  # Seconds between two looks whether another process has ended copying.
_THREADS = 8  # Files that are copied at once; each holds two pieces of 8 MiB.


@dataclasses.dataclass(frozen=True, kw_only=True)
class _File:
  """A file of the copy. path: in its folder. size: None where only its digest is known."""

  path: str
  sha256: str
  size: int | None = None


class _Ended(Exception):
  """Another file could not be copied."""


class _OtherBytes(Exception):
  """The bytes of a file are not those of the store."""


def copy(
  root: places.Root, manifest: layout.Manifest, columns: Sequence[str], cache: pathlib.Path
) -> pathlib.Path:
  """Copies what is missing of some columns; returns the folder of the copy.

  A copy of all columns is a store like any other.

  Args:
    root: folder of the store. manifest: its manifest. columns: to be copied. cache: for all copies.

  Raises:
    UserError: a file cannot be read, or has other bytes than the store says, also when it is read
      once more; or the cache cannot be written, or has too little room.
  """
  folder = cache / f'{root.name or "store"}-{manifest.digest()[:16]}'
  facts = [
    _File(path=_path(layout.facts_file, shard), sha256=sha256)
    for shard, sha256 in enumerate(manifest.shards)
  ]
  all_columns = set(columns) == set(manifest.plan.columns)
  if _is_whole(folder, facts, manifest, columns, all_columns):
    return folder
  files.make_writable(folder, f'data.cache={cache}', '; give a folder on a disk of this host')
  with _alone(folder):
    for leftover, _ in list(writer.leftovers(folder)):
      leftover.unlink(missing_ok=True)
    _copy_all(root, folder, _missing(folder, facts))
    wanted = _shards(folder, manifest, columns)
    missing = _missing(folder, wanted)
    _check_space(cache, folder, sum(file.size for file in missing))
    there = sum(file.size for file in wanted) - sum(file.size for file in missing)
    total = sum(file.size for file in wanted)
    meter = progress.Progress(f'copying {root} to {folder}', total, done=there)
    _copy_all(root, folder, missing, meter, there)
    if all_columns:
      _complete(root, folder, manifest)
  return folder


def _is_whole(folder, facts, manifest, columns, all_columns):
  return (
    not _missing(folder, facts)
    and not _missing(folder, _shards(folder, manifest, columns))
    and (not all_columns or (folder / 'manifest.json').is_file())
  )


def _path(name, *arguments):
  """Path in its folder of a file of a shard."""
  return name(pathlib.PurePosixPath(), *arguments).as_posix()


def _shards(folder, manifest, columns):
  """The files of columns, by the facts of the shards, which are there."""
  found = []
  for shard in range(manifest.plan.shards):
    facts = layout.read_facts(folder, shard).columns
    for column in columns:
      size, sha256 = facts[column]['bytes'], facts[column]['sha256']
      path = _path(layout.shard_file, column, shard)
      found.append(_File(path=path, size=size, sha256=sha256))
  return found


def _missing(folder: pathlib.Path, wanted: Iterable[_File]) -> list[_File]:
  """Those that are not there; what has its name was compared with its digest when it came."""
  return [file for file in wanted if not _is_there(folder / file.path, file)]


def _is_there(path, file):
  if not path.is_file():
    return False
  if file.size is None:  # A small one, whose digest is looked at each time.
    return layout.digest(path) == file.sha256
  return path.stat().st_size == file.size


def _check_space(cache, folder, needed):
  free = files.free_space(folder)
  if needed > free:
    others = sorted(p.name for p in cache.iterdir() if p.is_dir() and p != folder)
    held = (
      f' (it also holds {", ".join(others[:4])}{", ..." * (len(others) > 4)})' if others else ''
    )
    raise types.UserError(
      f'data.cache={cache} needs {needed / 1e9:.3f} GB for what is missing of {folder.name}, but '
      f'its disk has {free / 1e9:.3f} GB free{held}; free space there, give a folder on another '
      'disk, or leave out data.cache to read each example from where it lies'
    )


@contextlib.contextmanager
def _alone(folder: pathlib.Path) -> Iterator[None]:
  """Claims the copy; waits while another process copies, and says how far that is."""
  meter = None
  with contextlib.ExitStack() as held:
    while True:
      try:
        held.enter_context(locks.claim(folder / _LOCK, f'{folder} is copied', 'waiting for it'))
        break
      except locks.Held as error:
        if meter is None:
          logging.info('%s', error)
          meter = progress.Progress(f'waiting for the copy {folder}', done=_bytes_in(folder))
      time.sleep(_POLL)
      meter.at(_bytes_in(folder))
    yield


def _bytes_in(folder):
  sizes = []
  for path in folder.rglob('*'):
    with contextlib.suppress(OSError):  # It has got its name meanwhile.
      sizes.append(path.stat().st_size)
  return sum(sizes)


def _copy_all(root, folder, missing, meter=None, done=0):
  """Copies files in several threads; the first that fails ends all."""
  ended, lock = threading.Event(), threading.Lock()

  def add(count):
    nonlocal done
    with lock:
      done += count
      if meter is not None:
        meter.at(done)

  def work(file):
    try:
      _copy_twice(root, folder, file, add, ended)
    except BaseException:
      ended.set()
      raise

  with futures.ThreadPoolExecutor(_THREADS) as pool:
    copies = [pool.submit(work, file) for file in missing]
    try:
      futures.wait(copies)
    finally:  # Also if the user interrupts.
      ended.set()
  failures = [copied.exception() for copied in copies if copied.exception()]
  for failure in sorted(failures, key=lambda failure: isinstance(failure, _Ended)):
    raise failure


def _copy_twice(root, folder, file, add, ended):
  """Copies a file, once more if its bytes are not those of the store, or reading failed so."""
  for last in (False, True):
    try:
      _copy_file(root / file.path, folder / file.path, file, add, ended)
      return
    except OSError as error:
      if last or not faults.passes(error):
        raise
      logging.warning('%s: %s; reading it once more', root / file.path, error)
    except _OtherBytes as error:
      logging.warning('%s: %s', root / file.path, error)
      if last:
        raise types.UserError(
          f'{root / file.path}: {error}, read twice; copy the store there once more from where it '
          f'was made; `python -m diversedit_jax.prepare --verify --output={root}` says what else '
          'is wrong'
        ) from error


def _copy_file(source, target, file: _File, add: Callable[[int], None], ended: threading.Event):
  hashed, count = hashlib.sha256(), 0
  with files.atomic(target) as temporary:
    with open(temporary, 'wb') as out:
      if ended.is_set():
        raise _Ended
      for piece in places.pieces(source, file.size):
        hashed.update(piece)
        out.write(piece)
        count += len(piece)
        add(len(piece))
        if ended.is_set():
          raise _Ended
    if hashed.hexdigest() != file.sha256:
      add(-count)
      raise _OtherBytes(
        f'found {count} bytes of SHA-256 {hashed.hexdigest()[:16]}..., the store says '
        f'{f"{file.size} of " if file.size is not None else ""}{file.sha256[:16]}...'
      )


def _complete(root, folder, manifest):
  """Writes the files of a whole store, the manifest last."""
  if (folder / 'manifest.json').is_file():
    return
  labels = _File(path='labels.npy', sha256=manifest.labels)
  _copy_all(root, folder, [labels])
  with files.atomic(folder / 'skipped.csv') as temporary:
    temporary.write_bytes((root / 'skipped.csv').read_bytes())
  layout.write_json(folder / 'plan.json', manifest.plan)
  layout.write_json(folder / 'manifest.json', manifest)
