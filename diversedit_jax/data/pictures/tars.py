"""Members of a `.tar`, and of the `.tar`s in it, from their headers alone.

`tarfile` takes a damaged header for the end of the archive, so the end is looked at here: whatever
is no end mark, followed by zeros, is damage.
"""

from collections.abc import Iterator
import dataclasses
import os
import tarfile

from diversedit_jax import progress, types
from diversedit_jax.data.pictures import base, naming

_BLOCK = 512
_COMPRESSED = {
  b'\x1f\x8b': 'gzip',
  b'\xfd7zXZ\0': 'xz',
  b'BZh': 'bzip2',
  b'\x28\xb5\x2f\xfd': 'zstd',
}
# What damaged headers make `tarfile` raise.
_DAMAGE = (
  tarfile.TarError,
  OSError,
  ValueError,
  ArithmeticError,
  LookupError,
  EOFError,
  MemoryError,
  RecursionError,
)


@dataclasses.dataclass(frozen=True)
class Members:
  """What an archive holds.

  found: (name, bytes, place) of what may be a picture. skipped: what is none. folders: their names.
  """

  found: list[tuple]
  skipped: list[base.Skipped]
  folders: list[str]


def compression(start: bytes) -> str | None:
  """The program that compressed a file, from its first bytes; None if none did."""
  return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


def scan(path: str) -> Members:
  """All members; places are offsets of their first bytes.

  Raises:
    UserError: compressed, damaged or cut off; the last good member is named.
  """
  members = Members([], [], [])
  with open(path, 'rb', buffering=0) as file:
    whole = _Window(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    _refuse_compressed(whole, path)
    listing = progress.Progress(f'listing {path}', whole.size)
    for member in _headers(whole, path):
      listing.at(member.offset)
      name = clean(member.name)
      if not _is_archive(member, name):
        _take(members, name, member, 0)
        continue
      members.folders.append(name[:-4])
      where = f'{path}: {member.name}'
      inner = whole.part(member.offset_data, member.size)
      _refuse_compressed(inner, where)
      for picture in _headers(inner, where):
        listing.at(inner.start + picture.offset)
        _take(members, f'{name[:-4]}/{clean(picture.name)}', picture, inner.start)
  return members


def clean(name: str) -> str:
  """The name of a member without './' and doubled or leading slashes."""
  return '/'.join(part for part in name.split('/') if part not in ('', '.'))


class _Window:
  """A part of a file, as a file that `tarfile` can read."""

  def __init__(self, descriptor, start, size):
    self.descriptor, self.start, self.size, self.position = descriptor, start, size, 0

  def part(self, offset, size):
    return _Window(self.descriptor, self.start + offset, size)

  def read(self, count):
    count = max(0, min(count, self.size - self.position))
    data = os.pread(self.descriptor, count, self.start + self.position)
    self.position += len(data)
    return data

  def seek(self, position):
    self.position = position

  def tell(self):
    return self.position


def _headers(window, where) -> Iterator[tarfile.TarInfo]:
  """Members in their order; the whole window must be a sound archive."""
  good, current, end = None, None, 0
  try:
    archive = tarfile.TarFile(fileobj=window, encoding='utf-8')
    while (member := archive.next()) is not None:
      good, current = current, member.name  # `tarfile` has seen the end of the one before.
      archive.members.clear()  # It would hold a million headers.
      if member.size < 0 or archive.offset <= end:
        raise ValueError('a negative size')
      end = archive.offset
      yield member
    good = current
    problem = _after(window, archive.offset)
  except _DAMAGE as error:
    problem = ' '.join(str(error).split()) or type(error).__name__
  if problem:
    last = f'the last good member is {good!r}' if good else 'no member is good'
    raise types.UserError(
      f'{where} is no tar, or is damaged or cut off: {problem}; {last}. Fetch or make it again'
    )


def _after(window, offset):
  """What is wrong with the end of an archive, which begins with a block of zeros."""
  window.seek(offset)
  mark = window.read(_BLOCK)
  if len(mark) < _BLOCK:
    return f'it has no end mark at byte {offset}'
  if any(mark):
    return f'no header at byte {offset}'
  while data := window.read(1 << 20):
    if data.count(0) != len(data):
      return f'after its end mark at byte {offset} there is something else'
  return None


def _take(members, name, member, start):
  if '..' in name.split('/'):
    reason = 'its name leaves the archive'
  elif member.isdir():
    members.folders.append(name)
    return
  elif member.issym() or member.islnk():
    reason = f'a link to {member.linkname}'
  elif member.issparse():
    reason = 'a file with holes'
  elif not member.isreg():
    reason = 'neither a file nor a folder'
  else:
    reason = naming.refusal(name, member.size)
  if reason:
    members.skipped.append(naming.skip(name, reason))
  else:
    members.found.append((name, member.size, start + member.offset_data))


def _is_archive(member, name):
  plain = member.isreg() and not member.issparse() and not naming.hidden(name)
  return plain and name.lower().endswith('.tar')


def _refuse_compressed(window, where):
  if program := compression(window.read(8)):
    raise types.UserError(
      f'{where} is compressed by {program}, so its pictures cannot be read one by one; unpack it '
      f'first, as in `{program} --decompress --keep FILE`, and name the .tar that appears'
    )
  window.seek(0)
