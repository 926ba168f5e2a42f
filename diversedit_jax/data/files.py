"""Files that appear whole or not at all, even after a power cut: written aside, synced, renamed."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import uuid


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path`, which is renamed to `path` if the block ends well.

  Missing folders are made. After an exception the temporary file is removed and an older file at
  `path` stays as it was. The temporary name keeps the suffix: writers choose the format by it.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}')
  try:
    yield temporary
    _sync(temporary)
    os.replace(temporary, path)
    with contextlib.suppress(OSError):  # Some network file systems cannot sync a folder.
      _sync(path.parent)
  finally:
    temporary.unlink(missing_ok=True)


def _sync(path):
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
