"""Pictures in class folders: ROOT/CLASS/**/FILE, listed once, read by name."""

from collections.abc import Sequence
import errno
import os
import stat

from diversedit_jax import types
from diversedit_jax.data.pictures import base, naming


class FolderPictures(base.Pictures):
  """See `base.Pictures`; names are relative to the folder that holds the class folders."""

  def __init__(self, name: str, root: str, listing: base.Listing):
    self.name, self.listing = name, listing
    self._root = root

  def read(self, index: int) -> bytes:
    """See `base.Pictures`."""
    return read_file(os.path.join(self._root, self.listing.names[index]))


def open_folder(
  path: str | os.PathLike[str], classes: Sequence[str] | None = None
) -> FolderPictures:
  """The pictures of class folders, by the rule of `naming`; links are followed.

  A link that leads nowhere, or back to a folder that it lies in, and a folder that cannot be read
  are skipped by name.

  Raises:
    UserError: no such folder, or as `naming.arrange`.
  """
  root = os.path.abspath(path)
  if not os.path.isdir(root):
    found = 'a file' if os.path.exists(root) else 'nothing'
    raise types.UserError(f'{path}: no such folder; found {found} there')
  found, skipped, folders = _walk(root)
  listing, _, top = naming.arrange(found, skipped, folders, classes, os.fspath(path))
  name = f'folder/{os.path.basename(root)}'
  return FolderPictures(name, os.path.join(root, top), listing)


def read_file(path: str) -> bytes:
  """The bytes of one picture's file.

  Raises:
    BadPicture: if it is gone or unreadable.
  """
  try:
    with open(path, 'rb') as file:
      return file.read()
  except OSError as error:
    raise base.BadPicture(f'cannot be read: {error.strerror}') from error


def _walk(root):
  """Files that may be pictures with their bytes, what is none, and the folders; names as in ROOT.

  Each folder to visit carries the identities of those that it lies in: a link to one of them would
  be followed for ever.
  """
  found, skipped, folders = [], [], []
  waiting = [('', frozenset([_identity(os.stat(root))]))]
  while waiting:
    folder, above = waiting.pop()
    try:
      with os.scandir(os.path.join(root, folder)) as entries:
        entries = list(entries)
    except OSError as error:
      if not folder:
        raise types.UserError(f'{root}: cannot be read: {error.strerror}') from error
      skipped.append(base.Skipped(folder, f'cannot be read: {error.strerror}'))
      continue
    if folder:
      folders.append(folder.rstrip('/'))
    for entry in entries:
      name = folder + entry.name
      try:
        status = entry.stat()
      except OSError as error:
        bad = not naming.hidden(name)
        skipped.append(base.Skipped(name, _unreachable(entry, error), bad))
        continue
      if stat.S_ISDIR(status.st_mode) and _identity(status) in above:
        skipped.append(naming.skip(f'{name}/', 'a link to a folder that it lies in'))
      elif stat.S_ISDIR(status.st_mode):
        waiting.append((f'{name}/', above | {_identity(status)}))
      elif not stat.S_ISREG(status.st_mode):
        skipped.append(naming.skip(name, 'neither a file nor a folder'))
      elif reason := naming.refusal(name, status.st_size):
        skipped.append(naming.skip(name, reason))
      else:
        found.append((name, status.st_size))
  return found, skipped, folders


def _identity(status):
  return status.st_dev, status.st_ino


def _unreachable(entry, error):
  if entry.is_symlink():
    return {
      errno.ENOENT: 'a link that leads nowhere', errno.ELOOP: 'a link that leads to itself',
    }.get(error.errno, f'a link that cannot be followed: {error.strerror}')  # fmt: skip
  return f'cannot be read: {error.strerror}'
