"""Pictures that are files in a folder, listed once and read by name."""

from collections.abc import Sequence
import functools
import os
import stat

from diversedit_jax import progress, types
from diversedit_jax.data.pictures import base, labelling, loading, naming, system


class FilePictures(base.Pictures):
  """Pictures that are files of their own; see `base.Pictures`. Names are paths from `root`."""

  def __init__(self, name: str, root: str, listing: base.Listing):
    self.name, self.listing = name, listing
    self._root = root

  def read(self, index: int) -> bytes:
    """See `base.Pictures`."""
    with open(os.path.join(self._root, self.listing.names[index]), 'rb') as file:
      return file.read()


def open_folder(
  path: str | os.PathLike[str], classes: Sequence[str] | None = None, labels: str | None = None
) -> FilePictures:
  """The pictures in a folder, with classes by the rule of `naming`; links are followed.

  Skipped by name are files and folders that this user may not read, links that lead nowhere, and
  links to a folder that they lie in.

  Raises:
    UserError: no such folder, a disk that fails, or as `naming.arrange`.
  """
  root = os.path.abspath(path)
  if not os.path.isdir(root):
    found = 'a file' if os.path.exists(root) else 'nothing'
    raise types.UserError(f'{path}: no such folder; found {found} there')
  said = labelling.read(labels)
  found, skipped, folders = _walk(root)
  listing, _, top = naming.arrange(
    found,
    skipped,
    folders,
    classes,
    os.fspath(path),
    labels=said,
    peek=lambda i, size: _start(os.path.join(root, found[i][0]), size),
  )
  return FilePictures(f'folder/{os.path.basename(root)}', os.path.join(root, top), listing)


def look(path: str) -> tuple[os.stat_result | None, str | None]:
  """The status of what is at a path, links followed, and None; or None and why it is unreadable.

  Raises:
    UserError: the disk fails; there may be good pictures.
  """
  try:
    return loading.patiently(functools.partial(os.stat, path), path, loading.LASTING), None
  except OSError as error:
    what = 'a link that cannot be followed' if os.path.islink(path) else 'cannot be read'
    return None, f'{what}: {error.strerror}'


def refusal(path: str) -> str | None:
  """Why this user may not read a file; None if they may."""
  return None if os.access(path, os.R_OK) else 'cannot be read: Permission denied'


def _walk(root):
  """(name, bytes) of files, what is none, and the folders; names from `root`.

  What the system has left is not looked into.

  Each folder to visit carries the identities of the folders that it lies in: following a link to
  one of them would never end.
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
      skipped.append(base.Skipped(folder, f'cannot be read: {error.strerror}'))
      continue
    if folder:
      folders.append(folder.rstrip('/'))
    for name in names:
      listing.at(len(found) + len(skipped))
      if system.foreign(name):
        whole = f'{name}/' if os.path.isdir(os.path.join(root, name)) else name
        if system.foreign(whole):
          skipped.append(naming.skip(whole, ''))
          continue
      status, reason = look(os.path.join(root, name))
      if status is None:
        skipped.append(base.Skipped(name, reason))
      elif stat.S_ISDIR(status.st_mode) and _identity(status) in above:
        skipped.append(naming.skip(f'{name}/', 'a link to a folder that it lies in'))
      elif stat.S_ISDIR(status.st_mode):
        waiting.append((f'{name}/', above | {_identity(status)}))
      elif not stat.S_ISREG(status.st_mode):
        skipped.append(naming.skip(name, 'neither a file nor a folder'))
      elif reason := refusal(os.path.join(root, name)):
        skipped.append(naming.skip(name, reason))
      else:
        found.append((name, status.st_size))
  return found, skipped, folders


def _start(path, size):
  """The first bytes of a file."""

  def read():
    with open(path, 'rb', buffering=0) as file:
      return file.read(size)

  return loading.patiently(read, path)


def _entries(root, folder):
  with os.scandir(os.path.join(root, folder)) as entries:
    return [folder + entry.name for entry in entries]


def _identity(status):
  return status.st_dev, status.st_ino
