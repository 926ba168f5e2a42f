"""Members of a `.zip` from its directory, which lies at its end."""

import os
import stat
import struct
import zipfile

import numpy as np

from diversedit_jax import progress, types
from diversedit_jax.data.pictures import naming, tars

ENTRY = np.dtype(
  [('offset', np.int64), ('stored', np.int64), ('checksum', np.uint32), ('deflated', np.bool_)]
)
"""Place of a member: of its own header, its bytes in the archive, their CRC-32 when inflated."""

LOCAL_HEADER, LOCAL_MAGIC = 30, b'PK\x03\x04'
_ENCRYPTED, _SIZES_FOLLOW = 1, 8
_END, _END64 = 22, 76  # Bytes of the end record, and of those of Zip64 before it.
# What damaged directories make `zipfile` raise.
_DAMAGE = (
  zipfile.BadZipFile,
  OSError,
  ValueError,
  ArithmeticError,
  LookupError,
  EOFError,
  MemoryError,
  NotImplementedError,
  struct.error,
)


def scan(path: str) -> tars.Members:
  """All members; places are `ENTRY` tuples.

  Raises:
    UserError: damaged or cut off; the last good member is named.
  """
  members = tars.Members([], [], [])
  listing = progress.Progress(f'listing {path}', os.path.getsize(path))
  with open(path, 'rb') as file:
    try:
      archive = zipfile.ZipFile(file)
      infos = archive.infolist()
      _check_count(file, len(infos))
      _check_places(file, infos, archive.start_dir)
    except _DAMAGE as error:
      raise types.UserError(
        f'{path} is no zip, or is damaged or cut off: {error}; {_last_good(file)}. Fetch or make '
        'it again'
      ) from error
  for member in infos:
    listing.at(member.header_offset)
    _take(members, member)
  return members


def _take(members, member):
  name = tars.clean(member.filename)
  if '..' in name.split('/'):
    reason = 'its name leaves the archive'
  elif member.is_dir():
    members.folders.append(name)
    return
  elif stat.S_ISLNK(member.external_attr >> 16):
    reason = 'a link'
  elif member.flag_bits & _ENCRYPTED:
    reason = 'encrypted'
  elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    reason = f'compressed by method {member.compress_type}, expected stored or deflated'
  else:
    reason = naming.refusal(name, member.file_size)
  if reason:
    members.skipped.append(naming.skip(name, reason))
    return
  deflated = member.compress_type == zipfile.ZIP_DEFLATED
  place = (member.header_offset, member.compress_size, member.CRC, deflated)
  members.found.append((name, member.file_size, place))


def _check_count(file, found):
  """`zipfile` takes a damaged length in the directory for one long entry, and loses the others."""
  size = os.fstat(file.fileno()).st_size
  start = max(0, size - _END - 65535 - _END64)  # A comment may follow the end record.
  tail = os.pread(file.fileno(), size - start, start)
  end = tail.rindex(b'PK\x05\x06')
  (count,) = struct.unpack_from('<H', tail, end + 10)
  if tail[max(0, end - _END64) : end].startswith(b'PK\x06\x06'):
    (count,) = struct.unpack_from('<Q', tail, end - _END64 + 32)
  if (count - found) % 65536:  # Old writers let the count of 16 bits overflow.
    raise ValueError(f'its directory has {found} entries, not {count}')


def _check_places(file, infos, end):
  """Members lie before the directory; the first and the last of them are looked at."""
  for member in infos:
    if member.header_offset < 0 or member.header_offset + member.compress_size > end:
      raise ValueError(f'{member.filename!r} lies outside of it')
  offsets = sorted(member.header_offset for member in infos)
  for offset in (*offsets[:1], *offsets[-1:]):
    if os.pread(file.fileno(), 4, offset) != LOCAL_MAGIC:
      raise ValueError(f'no member at byte {offset}')


def _last_good(file):
  """Says which member is the last whole one, as far as their own headers tell."""
  size, offset, last = os.fstat(file.fileno()).st_size, 0, None
  while (header := os.pread(file.fileno(), LOCAL_HEADER, offset)).startswith(LOCAL_MAGIC):
    if len(header) < LOCAL_HEADER:
      break
    flags, stored, name, extra = struct.unpack_from('<6xH10xI4xHH', header)
    end = offset + LOCAL_HEADER + name + extra + stored
    if flags & _SIZES_FOLLOW or end > size:
      break
    last = os.pread(file.fileno(), name, offset + LOCAL_HEADER).decode('utf-8', 'replace')
    offset = end
  return f'the last good member is {last!r}' if last else 'no member is known to be good'
