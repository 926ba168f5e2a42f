"""Pictures in class folders: ROOT/CLASS/**/FILE, listed once, read by name."""

from collections.abc import Sequence
import errno
import functools
import os
import stat

from diversedit_jax import progress, types
from diversedit_jax.data.pictures import base, loading, naming


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

  What its owner keeps from this user, and a link that leads nowhere or back to a folder that it
  lies in, are skipped by name; not so what fails for another reason, as on a disk that is full of
  errors.

  Raises:
    UserError: no such folder, a failure of the disk, or as `naming.arrange`.
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
  """The bytes of one picture's file (OSError)."""
  with open(path, 'rb') as file:
    return file.read()


def look(path: str) -> tuple[os.stat_result | None, str | None]:
  """What is at a path, links followed; None and the reason if nothing there can ever be read.

  Raises:
    UserError: for any other failure; there may be good pictures.
  """
  try:
    return loading.patiently(functools.partial(os.stat, path), path, loading.LASTING), None
  except OSError as error:
    if not os.path.islink(path):
      return None, _denied(error)
    return None, {
      errno.ENOENT: 'a link that leads nowhere',
      errno.ELOOP: 'a link that leads to itself',
    }.get(error.errno, f'a link that cannot be followed: {error.strerror}')


def refusal(path: str) -> str | None:
  """Why a file can never be read; None if it can, or as `look`."""
  if os.access(path, os.R_OK):
    return None
  try:  # Access is also denied where the disk fails.
    loading.patiently(lambda: open(path, 'rb').close(), path, loading.LASTING)
  except OSError as error:
    return _denied(error)
  return None


def _walk(root):
  """Files that may be pictures with their bytes, what is none, and the folders; names as in ROOT.

  Each folder to visit carries the identities of those that it lies in: a link to one of them would
  be followed for ever.
  """
  found, skipped, folders = [], [], []
  listing = progress.Progress(f'listing {root}', unit='files')
  waiting = [('', frozenset([_identity(os.stat(root))]))]
  while waiting:
    folder, above = waiting.pop()
    try:
      names = loading.patiently(
        functools.partial(_entries, root, folder), os.path.join(root, folder), loading.LASTING
      )
    except OSError as error:
      if not folder:
        raise types.UserError(f'{root}: cannot be read: {error.strerror}') from error
      skipped.append(base.Skipped(folder, _denied(error)))
      continue
    if folder:
      folders.append(folder.rstrip('/'))
    for name in names:
      listing.at(len(found) + len(skipped))
      status, reason = look(os.path.join(root, name))
      if status is None:
        skipped.append(base.Skipped(name, reason, bad=not naming.hidden(name)))
      elif stat.S_ISDIR(status.st_mode) and _identity(status) in above:
        skipped.append(naming.skip(f'{name}/', 'a link to a folder that it lies in'))
      elif stat.S_ISDIR(status.st_mode):
        waiting.append((f'{name}/', above | {_identity(status)}))
      elif not stat.S_ISREG(status.st_mode):
        skipped.append(naming.skip(name, 'neither a file nor a folder'))
      elif reason := naming.refusal(name, status.st_size) or refusal(os.path.join(root, name)):
        skipped.append(naming.skip(name, reason))
      else:
        found.append((name, status.st_size))
  return found, skipped, folders


def _entries(root, folder):
  with os.scandir(os.path.join(root, folder)) as entries:
    return [folder + entry.name for entry in entries]


def _identity(status):
  return status.st_dev, status.st_ino


def _denied(error):
  return f'cannot be read: {error.strerror}'
