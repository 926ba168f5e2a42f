"""A file that grows: on a disk as it does, in a bucket sent whole now and then."""

import os
import pathlib
import tempfile
import time

from absl import logging

from diversedit_jax import paths
from diversedit_jax.data import files

_INTERVAL = 30.0  # Seconds between two uploads.
_SHARE = 0.05  # Share of the time that uploads may take.


class Growing:
  """A file of bytes to which more is written at its end.

  On a disk it is there once it is flushed. In a bucket, where an object is written whole, it is
  uploaded now and then, so that uploads are a small part of the time, and at the end. If one fails,
  a warning says so, and the next has everything.

  Raises:
    OSError: from every method, if it cannot be written on the disk.
    files.Unsent: from `close`, if the last upload fails.
  """

  def __init__(self, path: pathlib.Path, *, new: bool):
    """new: whether the file must not be there yet."""
    self._path, self._due = path, 0.0
    self._uploaded = 0  # Bytes.
    if paths.is_bucket(path):
      self._file = tempfile.NamedTemporaryFile(buffering=0)  # noqa: SIM115
      if not new and path.exists():
        self._uploaded = self._file.write(path.read_bytes())
    else:
      path.parent.mkdir(parents=True, exist_ok=True)
      self._file = path.open('xb' if new else 'ab', buffering=0)

  def write(self, data: bytes) -> None:
    """Writes at the end, all or nothing."""
    end, rest = self._file.seek(0, os.SEEK_END), data
    try:
      while rest:
        rest = rest[self._file.write(rest) :]
    except OSError:
      self._file.truncate(end)
      raise

  def flush(self) -> None:
    """Brings what was written on its way."""
    self._file.flush()
    if time.monotonic() >= self._due:
      self.sync()

  def sync(self) -> None:
    """Uploads what is not in the bucket yet."""
    if failure := self._sent():
      logging.warning('%s; it is tried again', failure)

  def unsent(self) -> bytes:
    """What the bucket lacks, and the end of this process would lose."""
    if not paths.is_bucket(self._path):
      return b''
    self._file.seek(self._uploaded)
    return self._file.read()

  def close(self) -> None:
    """Closes the file, which is then whole."""
    try:
      failure = self._sent()
    finally:
      self._file.close()
    if failure:
      raise files.Unsent(failure)

  def _sent(self):
    """Uploads, unless the bucket has everything; what went wrong, in words."""
    self._file.flush()
    unsent = len(self.unsent())
    if not unsent:
      return ''
    before, failure = time.monotonic(), ''
    try:
      files.upload(self._file.name, self._path)
      self._uploaded += unsent
    except files.Unsent as error:
      failure = str(error)
    now = time.monotonic()
    self._due = now + max(_INTERVAL, (now - before) / _SHARE)
    return failure
