"""Pictures in a `.zip` or in one or several `.tar`, read in place without unpacking.

The layouts are those of folders (see `naming`), and the tar of tars of ILSVRC-2012, in which
`n01440764.tar` stands for a folder of that name. A path may go on inside the archive, as in
`cifar10.tar/train`: then the collection is that folder alone.
"""

from collections.abc import Sequence
import dataclasses
import functools
import io
import os
import struct
import zlib

import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.data.pictures import base, labelling, naming, several, tars, zips

_OPEN = 256  # Archives that are kept open.
_MARGIN = 4096  # Bytes that surely inflate to a head.


class SharedFile:
  """A file that several threads may read, and that other processes open when they first read.

  Args:
    path: path of the file.
    keep: whether it stays open between reads; a process may have some 1,000 files open.

  Raises:
    UserError: the file cannot be opened, or has changed since this object was made.
  """

  def __init__(self, path: str, keep: bool = True):
    self.path, self._keep = os.path.abspath(path), keep
    self._facts = None
    self._check(self.opened())

  def __getstate__(self):
    return {'path': self.path, '_keep': self._keep, '_facts': self._facts}

  def read(self, offset: int, size: int) -> bytes:
    """Bytes from `offset` on, fewer than `size` only at the end of the file.

    Raises:
      OSError: the disk fails.
      UserError: the file has become shorter.
    """
    file, parts = self._file if self._keep else self.opened(), []
    while size and (part := os.pread(file.fileno(), size, offset)):
      parts.append(part)
      size, offset = size - len(part), offset + len(part)
    if size:
      self._check(file)
    return b''.join(parts)

  @functools.cached_property
  def _file(self):
    return self.opened()

  def opened(self) -> io.FileIO:
    """The file, opened anew; refused if it is another by now."""
    try:
      file = io.FileIO(self.path)
    except OSError as error:
      raise types.UserError(f'{self.path}: cannot be read: {error.strerror}') from error
    self._check(file)
    return file

  def _check(self, file):
    status = os.fstat(file.fileno())
    facts = status.st_size, status.st_mtime_ns
    self._facts = self._facts or facts
    if facts != self._facts:
      raise types.UserError(
        f'{self.path} has changed since its pictures were listed; run the same command again'
      )


@dataclasses.dataclass(eq=False)
class TarPictures(base.Pictures):
  """See `base.Pictures`.

  files: the archives.
  places: (position in `files`, offset of the first byte) of each picture, int64 [n, 2].
  """

  name: str
  listing: base.Listing
  files: Sequence[SharedFile]
  places: np.ndarray

  def read(self, index: int) -> bytes:
    """See `base.Pictures`."""
    file, offset = self.places[index].tolist()
    return _read(self.files[file], offset, int(self.listing.sizes[index]))


@dataclasses.dataclass(eq=False)
class ZipPictures(base.Pictures):
  """See `base.Pictures`. entries: `zips.ENTRY` records, in the order of the listing."""

  name: str
  listing: base.Listing
  file: SharedFile
  entries: np.ndarray

  def read(self, index: int) -> bytes:
    """See `base.Pictures`."""
    return _inflated(self.file, self.entries[index], int(self.listing.sizes[index]))


def open_tar(
  path: str | os.PathLike[str], classes: Sequence[str] | None = None, labels: str | None = None
) -> TarPictures:
  """The pictures in a `.tar`, in a folder of one, or in several; only headers are read.

  Several are named as 'DIR', 'DIR/*.tar' or 'DIR/train-{0000..0146}.tar'. If each is named by a
  WordNet id, this is its class; otherwise they are the shards of one collection.
  Links, devices and files of more than 1 GiB are skipped by name.

  Raises:
    UserError: the archive is missing, compressed, cut off or damaged; or as `naming.arrange`.
  """
  said, names = labelling.read(labels), several.files(path, '.tar')
  archive, inner = split_path(path) if names is None else (None, '')
  archives = [archive] if names is None else names
  files = [SharedFile(name, keep=len(archives) <= _OPEN) for name in archives]
  scanned = [tars.scan(name) for name in archives]
  shards = False
  if names is not None:
    stems = [os.path.basename(name)[: -len('.tar')] for name in names]
    shards = not all(map(naming.is_wordnet, stems))
    scanned = [
      m.named(lambda n, s=stem: f'{s}/{n}') for m, stem in zip(scanned, stems, strict=True)
    ]
  members = tars.Members(
    [(name, size, (k, at)) for k, m in enumerate(scanned) for name, size, at in m.found],
    [skipped for m in scanned for skipped in m.skipped],
    [folder for m in scanned for folder in m.folders],
  )
  peek = lambda place, size, whole: _read(files[place[0]], place[1], size)
  listing, order = _listing(members, inner, classes, path, said, peek, shards)
  places = np.array([members.found[i][2] for i in order], np.int64).reshape(-1, 2)
  return TarPictures(_name('tar', archive or os.fspath(path), inner), listing, files, places)


def open_zip(
  path: str | os.PathLike[str], classes: Sequence[str] | None = None, labels: str | None = None
) -> ZipPictures:
  """The pictures, stored or deflated, in a `.zip` or a folder of one; only its directory is read.

  Links, encrypted members and files of more than 1 GiB are skipped by name.

  Raises:
    UserError: the archive is missing, cut off or damaged; or as `naming.arrange`.
  """
  said = labelling.read(labels)
  archive, inner = split_path(path)
  file = SharedFile(archive)
  members = zips.scan(archive)
  peek = lambda place, *part: _inflated(file, np.array(place, zips.ENTRY), *part)
  listing, order = _listing(members, inner, classes, path, said, peek)
  entries = np.array([members.found[i][2] for i in order], zips.ENTRY)
  return ZipPictures(_name('zip', archive, inner), listing, file, entries)


def split_path(path: str | os.PathLike[str]) -> tuple[str, str]:
  """Splits a path into the archive and the folder in it: 'a.tar/b/c' -> ('a.tar', 'b/c').

  Raises:
    UserError: there is no such file.
  """
  archive, inner = os.fspath(path).rstrip('/'), ''
  while archive and not os.path.lexists(archive):
    archive, _, part = archive.rpartition('/')
    inner = f'{part}/{inner}' if inner else part
  if not os.path.isfile(archive):
    found = 'a folder' if os.path.isdir(path) else 'nothing'
    raise types.UserError(f'{path}: no such file; found {found} there')
  return archive, tars.clean(inner)


def _listing(members, inner, classes, path, labels, peek, shards=False):
  """The listing of the members in a folder, and their positions among all that were found."""
  prefix = f'{inner}/' if inner else ''
  within = [i for i, entry in enumerate(members.found) if entry[0].startswith(prefix)]
  skipped = [s for s in members.skipped if s.name.startswith(prefix)]
  if inner and not within and not skipped:
    tops = {name.partition('/')[0] for name, *_ in members.found if '/' in name}
    raise types.UserError(
      f'{path}: the archive has no folder {inner!r}{trees.did_you_mean(inner, tops)}'
    )
  listing, order, _ = naming.arrange(
    [(members.found[i][0].removeprefix(prefix), members.found[i][1]) for i in within],
    [dataclasses.replace(s, name=s.name.removeprefix(prefix)) for s in skipped],
    [folder.removeprefix(prefix) for folder in members.folders if folder.startswith(prefix)],
    classes,
    os.fspath(path),
    peek=lambda i, size: _peek(peek, *members.found[within[i]][1:], size),
    labels=labels,
    shards=shards,
  )
  return listing, np.array(within, np.int64)[order]


def _peek(peek, size, place, wanted):
  return peek(place, min(size, wanted), wanted >= size)


def _inflated(file, entry, size, whole=True):
  """The first `size` bytes of a member of a zip; the `whole` member is compared with its checksum.

  Raises:
    BadPicture: it is damaged.
  """
  offset = int(entry['offset'])
  header = _read(file, offset, zips.LOCAL_HEADER)
  if not header.startswith(zips.LOCAL_MAGIC):
    raise base.BadPicture('its header in the archive is damaged')
  offset += zips.LOCAL_HEADER + sum(struct.unpack_from('<HH', header, 26))
  stored = int(entry['stored'])
  data = _read(file, offset, stored if whole else min(stored, size + _MARGIN))
  if entry['deflated']:
    try:
      data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + whole)
    except zlib.error as error:
      raise base.BadPicture(f'damaged in the archive: {error}') from error
  if not whole:
    return data[:size]
  if len(data) != size or zlib.crc32(data) != entry['checksum']:
    raise base.BadPicture('damaged in the archive: its checksum differs')
  return data


def _read(file, offset, size):
  data = file.read(offset, size)
  if len(data) != size:
    raise base.BadPicture('the archive ends before it does')
  return data


def _name(kind, archive, inner):
  stem = os.path.basename(archive.rstrip('/'))
  stem = stem[: -len(kind) - 1] if stem.lower().endswith(f'.{kind}') else stem
  return '/'.join([kind, stem, *([inner] if inner else [])])
