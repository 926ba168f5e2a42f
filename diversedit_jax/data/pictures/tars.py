"""Members of a `.tar`, and of the `.tar`s in it, from their headers alone.

`tarfile` takes a damaged header for the end of the archive, so the end is checked here: anything
but an end mark followed by zeros is damage.
"""

from collections.abc import Callable, Iterator
import dataclasses
import os
import tarfile

from diversedit_jax import progress, types
from diversedit_jax.data.pictures import base, naming, system

_BLOCK = 512
_COMPRESSED = {
  b'\x1f\x8b': 'gzip',
  b'\xfd7zXZ\0': 'xz',
  b'BZh': 'bzip2',
  b'\x28\xb5\x2f\xfd': 'zstd',
}


@dataclasses.dataclass(frozen=True)
class Members:
  """What an archive holds.

  found: (name, bytes, place) of files that can be read.
  skipped: what else there is, by name.
  folders: names of the folders.
  """

  found: list[tuple]
  skipped: list[base.Skipped]
  folders: list[str]

  def named(self, rename: Callable[[str], str]) -> 'Members':
    """The same under other names."""
    return Members(
      [(rename(name), *rest) for name, *rest in self.found],
      [dataclasses.replace(s, name=rename(s.name)) for s in self.skipped],
      [rename(folder) for folder in self.folders],
    )


def compression(start: bytes) -> str | None:
  """The program that compressed a file, by its first bytes; None if it is not compressed."""
  return next((name for magic, name in _COMPRESSED.items() if start.startswith(magic)), None)


def scan(path: str) -> Members:
  """All members; the place of a member is the offset of its first byte.

  Raises:
    UserError: the archive is compressed, damaged or cut off.
  """
  members = Members([], [], [])
  # Unbuffered: headers lie far apart.
  with open(path, 'rb', buffering=0) as file:
    listing = progress.Progress(f'listing {path}', os.path.getsize(path))
    for archive, member in _headers(file, path):
      listing.at(member.offset)
      name = clean(member.name)
      if not _is_archive(member, name):
        _take(members, name, member, 0)
        continue
      members.folders.append(name[:-4])
      inner, start = archive.extractfile(member).raw, member.offset_data
      for _, picture in _headers(inner, f'{path}: {member.name}'):
        listing.at(start + picture.offset)
        _take(members, f'{name[:-4]}/{clean(picture.name)}', picture, start)
  return with_slashes(members)


def clean(name: str) -> str:
  """The name of a member without './' and without doubled or leading slashes."""
  return '/'.join(part for part in name.split('/') if part not in ('', '.'))


def with_slashes(members: Members) -> Members:
  """Members whose names have the separators of Windows, if none has a slash, with slashes."""
  names = [*(name for name, *_ in members.found), *members.folders]
  if any('/' in name for name in names) or not any('\\' in name for name in names):
    return members
  # Folders are written as empty files whose names end in the separator.
  folders = [name[:-1] for name, size, _ in members.found if name.endswith('\\') and not size]
  found = [entry for entry in members.found if not (entry[0].endswith('\\') and not entry[1])]
  turned = Members(found, members.skipped, [*members.folders, *folders])
  return turned.named(lambda name: clean(name.replace('\\', '/')))


def _headers(file, where) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
  """Yields the archive with each of its members in their order; the whole file must be sound."""
  end = 0
  try:
    if program := compression(file.read(8)):
      raise types.UserError(
        f'{where} is compressed by {program}, so its pictures cannot be read one by one; run '
        f'`{program} --decompress --keep FILE` and give the .tar file that this makes'
      )
    file.seek(0)
    archive = tarfile.TarFile(fileobj=file, encoding='utf-8')
    while (member := archive.next()) is not None:
      archive.members.clear()  # It would hold a million headers.
      if member.size < 0 or archive.offset <= end:
        raise ValueError(f'a negative size at byte {end}')
      end = archive.offset
      yield archive, member
    problem = _after(file, archive.offset)
  except types.UserError:
    raise
  except Exception as error:  # Damaged headers make `tarfile` raise almost anything.
    problem = ' '.join(str(error).split()) or type(error).__name__
  if problem:
    raise types.UserError(
      f'{where} is no tar, or is damaged or cut off: {problem}. Download or make it again'
    )


def _after(file, offset):
  """What is wrong with the end of an archive, which must be blocks of zeros; None if nothing."""
  file.seek(offset)
  mark = file.read(_BLOCK)
  if len(mark) < _BLOCK:
    return f'it has no end mark at byte {offset}'
  if any(mark):
    return f'no header at byte {offset}'
  while data := file.read(1 << 20):
    if data.count(0) != len(data):
      return f'its end mark at byte {offset} is followed by other data'
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
    members.found.append((name, member.size, start + member.offset_data))
    return
  members.skipped.append(naming.skip(name, reason))


def _is_archive(member, name):
  plain = member.isreg() and not member.issparse() and not system.foreign(name)
  return plain and name.lower().endswith('.tar')
