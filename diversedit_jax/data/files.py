"""Files that appear whole or not at all, also at a power cut: written beside, synced, renamed."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import uuid


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """A temporary path in the folder of `path`; renamed to `path` if the block ends well.

  Missing folders are made. After an exception the temporary file is removed and an older file at
  `path` is untouched. The temporary name keeps the suffix, which writers read the format from.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}')
  try:
    yield temporary
    _sync(temporary)
    os.replace(temporary, path)
    with contextlib.suppress(OSError):  # Some network file systems have no folders to sync.
      _sync(path.parent)
  finally:
    temporary.unlink(missing_ok=True)


def _sync(path):
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
