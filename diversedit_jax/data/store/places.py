"""Files of a store in a bucket, read by their names and by ranges of bytes.

TensorStore reads them, which comes with Orbax: it finds the credentials of the machine, tries again
what failed for a moment, and sends many requests at once.
"""

from collections.abc import Iterator
import errno
import functools
import hashlib
import os
import pathlib
from typing import Any

from absl import logging

from diversedit_jax import paths, types

_REQUESTS = 128  # At once; each takes some 50 ms.
_QUIET = 20.0  # Seconds without an answer, of which nothing is said.
_PATIENCE = 300.0  # Seconds for one request, with all that TensorStore tries.
_PIECE = 8 * 2**20  # Bytes that are held at once.
_LISTS = {'gs': 'gcloud storage ls', 's3': 'aws s3 ls'}


class Place:
  """A file or folder in a bucket, with what is needed here of `pathlib.Path`."""

  def __init__(self, url: str):
    scheme, _, path = url.partition('://')
    self._scheme, self._path = scheme, path.rstrip('/')

  def __truediv__(self, name: str) -> 'Place':
    return Place(f'{self}/{name}')

  def __str__(self) -> str:
    return f'{self._scheme}://{self._path}'

  @property
  def name(self) -> str:
    """The last part of the path."""
    return self._path.rpartition('/')[2]

  def relative_to(self, root: 'Place') -> pathlib.PurePosixPath:
    """The path from a folder above."""
    return pathlib.PurePosixPath(self._path).relative_to(root._path)

  def is_file(self) -> bool:
    """Whether there is an object of this name."""
    try:
      self.read(0, 0).result()
    except FileNotFoundError:
      return False
    return True

  def read_bytes(self) -> bytes:
    """The whole object; see `Reading.result`."""
    return self.read().result()

  def files(self) -> list[str]:
    """Names of all objects below, from here."""
    bucket, key = self._split()
    inside = f'{key}/'.encode()
    found = _told(self, lambda: bucket.list(_below(inside)).result(timeout=_PATIENCE))
    found = [name.removeprefix(inside) for name in found if name.startswith(inside)]
    return [name.decode('utf-8', 'surrogateescape') for name in found]

  def read(self, begin: int = 0, end: int | None = None) -> 'Reading':
    """Begins to read a range of bytes."""
    bucket, key = self._split()
    whole = begin == 0 and end is None
    span = None if whole else slice(begin, end)
    return Reading(self, _told(self, lambda: bucket.read(key, byte_range=span)))

  def _split(self):
    bucket, _, key = self._path.partition('/')
    return _told(self, lambda: _bucket(f'{self._scheme}://{bucket}/')), key


class Reading:
  """Bytes that are on their way."""

  def __init__(self, place: Place, future: Any):
    self._place, self._future = place, future

  def result(self) -> bytes:
    """The bytes; none where the object ends before the last of them.

    Raises:
      FileNotFoundError: there is no such object.
      UserError: the bucket cannot be read.
    """
    try:
      found = _told(self._place, self._waited_for)
    except _BehindTheEnd:
      return b''
    if found.state != 'value':
      raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._place))
    return found.value

  def _waited_for(self):
    try:
      return self._future.result(timeout=_QUIET)
    except TimeoutError:
      logging.warning('%s: no answer for %.0f s; still trying', self._place, _QUIET)
    return self._future.result(timeout=_PATIENCE)


class _BehindTheEnd(Exception):
  """Bytes that an object does not have."""


def _told(place, action):
  """What an action of TensorStore returns; its errors become a UserError with the way on."""
  try:
    return action()
  except TimeoutError as error:
    said, cause = f'no answer within {_PATIENCE:.0f} s', error
  except (ValueError, RuntimeError, OSError) as error:
    said, cause = ' '.join(str(error).split())[:300], error
    if said.startswith('OUT_OF_RANGE') or 'Unexpected Content-Range' in said:
      raise _BehindTheEnd from error
  way = _LISTS.get(str(place).partition(':')[0])
  way = f'; `{way} {place}` shows whether this machine may read it' if way else ''
  raise types.UserError(f'{place} cannot be read: {said}{way}') from cause


Root = pathlib.Path | Place
"""A folder on a disk or in a bucket."""


def root(folder: str | pathlib.Path | Place) -> Root:
  """The folder that a path, or a URL of one in a bucket, names.

  Raises:
    UserError: another URL.
  """
  if isinstance(folder, Place):
    return folder
  if paths.is_bucket(folder):
    return Place(str(folder))
  if '://' in str(folder):
    raise types.UserError(f'{folder}: stores are read from a folder, from gs:// or from s3://')
  return pathlib.Path(folder)


def pieces(path: Root, size: int | None, each: int = _PIECE) -> Iterator[bytes]:
  """The first `size` bytes of a file, `each` at a time; there are fewer if it is shorter.

  In a bucket the next piece is read meanwhile.

  size: None for all bytes at once.

  Raises:
    OSError, UserError: it cannot be read.
  """
  if size is None:
    yield path.read_bytes()
  elif isinstance(path, Place):
    begin = lambda start: path.read(start, min(start + each, size)) if start < size else None
    coming = begin(0)
    for start in range(0, size, each):
      now, coming = coming, begin(start + each)
      yield now.result()
  else:
    with open(path, 'rb') as file:
      for start in range(0, size, each):
        yield file.read(min(each, size - start))


def measure(path: Root, size: int) -> tuple[int, str]:
  """Bytes and SHA-256 of a file. size: expected bytes; of a longer object one more is counted.

  Raises:
    OSError, UserError: it cannot be read.
  """
  hashed, count = hashlib.sha256(), 0
  for piece in pieces(path, size):
    hashed.update(piece)
    count += len(piece)
  if isinstance(path, Place):
    count += len(path.read(size, size + 1).result())
    return count, hashed.hexdigest()
  return path.stat().st_size, hashed.hexdigest()


def files(root: Root) -> list[str]:
  """Names of all files below a folder, from there."""
  if isinstance(root, Place):
    return root.files()
  return [path.relative_to(root).as_posix() for path in root.rglob('*') if path.is_file()]


def _below(prefix):
  """The names that begin with a prefix that ends with '/'."""
  import tensorstore

  return tensorstore.KvStore.KeyRange(prefix, prefix[:-1] + b'0')  # The letter after '/'.


@functools.cache
def _bucket(url):
  # Imported where it is used: most runs read from a disk.
  import tensorstore

  from diversedit_jax import buckets

  limit = {'limit': _REQUESTS}
  context = tensorstore.Context({'gcs_request_concurrency': limit, 's3_request_concurrency': limit})
  return buckets.opened(url, context)
