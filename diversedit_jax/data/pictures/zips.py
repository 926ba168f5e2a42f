"""Members of a `.zip`, from the directory at its end."""

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
"""Place of a member.

offset: offset of its local header. stored: bytes in the archive. checksum: CRC-32 of the inflated
bytes. deflated: whether it is compressed.
"""

LOCAL_HEADER, LOCAL_MAGIC = 30, b'PK\x03\x04'
_ENCRYPTED, _UTF8 = 1, 0x800  # Bits of the flags.
_END, _END64 = 22, 76  # Bytes of the end record, and of the Zip64 records before it.


def scan(path: str) -> tars.Members:
  """All members; places are `ENTRY` tuples.

  Raises:
    UserError: the archive is damaged or cut off.
  """
  members = tars.Members([], [], [])
  listing = progress.Progress(f'listing {path}', os.path.getsize(path))
  with open(path, 'rb') as file:
    try:
      archive = zipfile.ZipFile(file)
      infos = archive.infolist()
      _check(file, infos, archive.start_dir)
    except Exception as error:  # Damaged directories make `zipfile` raise almost anything.
      raise types.UserError(
        f'{path} is no zip, or is damaged or cut off: {error}. Download or make it again'
      ) from error
  for member in infos:
    listing.at(member.header_offset)
    _take(members, member)
  return tars.with_slashes(members)


def name_of(member: zipfile.ZipInfo) -> str:
  """The name of a member: in UTF-8 where its bytes are that, else in code page 437.

  Archivers of macOS and others write UTF-8 without saying so, which `zipfile` takes for code page
  437, the encoding of old.
  """
  if member.flag_bits & _UTF8:
    return member.filename
  try:
    return member.filename.encode('cp437').decode('utf-8')
  except UnicodeError:
    return member.filename


def _take(members, member):
  name = tars.clean(name_of(member))
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
    reason = None
  if reason:
    members.skipped.append(naming.skip(name, reason))
    return
  deflated = member.compress_type == zipfile.ZIP_DEFLATED
  place = (member.header_offset, member.compress_size, member.CRC, deflated)
  members.found.append((name, member.file_size, place))


def _check(file, infos, directory):
  """Refuses a directory with another number of members than it states, or with bad places.

  `zipfile` takes a damaged length in the directory for one long entry, and loses those after it.
  """
  size = os.fstat(file.fileno()).st_size
  start = max(0, size - _END - 65535 - _END64)  # A comment may follow the end record.
  tail = os.pread(file.fileno(), size - start, start)
  end = tail.rindex(b'PK\x05\x06')
  (count,) = struct.unpack_from('<H', tail, end + 10)
  if tail[max(0, end - _END64) : end].startswith(b'PK\x06\x06'):
    (count,) = struct.unpack_from('<Q', tail, end - _END64 + 32)
  if (count - len(infos)) % 65536:  # Old writers let the count of 16 bits overflow.
    raise ValueError(f'its directory has {len(infos)} entries, not {count}')
  for member in infos:
    if member.header_offset < 0 or member.header_offset + member.compress_size > directory:
      raise ValueError(f'{member.filename!r} lies outside of it')
