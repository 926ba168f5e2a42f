"""Pictures that a CSV file lists with their labels."""

from collections.abc import Sequence
import os
import pathlib
import stat

from diversedit_jax import types
from diversedit_jax.data.pictures import base, folders, kinds, naming, rows


def open_table(
  path: str | os.PathLike[str], classes: Sequence[str] | None = None, labels: str | None = None
) -> folders.FilePictures:
  """The pictures of a CSV file with columns of paths and labels, see `rows.read`.

  Paths are absolute or relative to the folder of the table; files may have any suffix. Labels are
  either all whole numbers, counted from 0, or all names of classes. A file that is missing, may not
  be read or has more than 1 GiB is skipped by name.

  Args:
    path: path of the table.
    classes: all classes, in order.
    labels: name of the column of labels; 'none': all pictures are of one class; 'any': so if there
      is no such column.

  Raises:
    UserError: as `rows.read` and `base.make_listing`.
  """
  path = pathlib.Path(path)
  root = os.path.abspath(path.parent)
  found, skipped = [], []
  column = None if labels in ('none', 'any') else labels
  try:
    listed = list(rows.read(path, column, labels=labels != 'none'))
  except types.UserError:
    if labels != 'any':
      raise
    listed, classes = list(rows.read(path, labels=False)), None
  for number, file, label in listed:
    file = _there(root, file)
    size, reason = _look(os.path.join(root, file))
    if reason:
      skipped.append(base.Skipped(file, f'line {number}: {reason}'))
    else:
      found.append((file, naming.ALL if label is None else label, size))
  if skipped and not found:
    raise types.UserError(
      f'{path}: none of its {len(skipped)} files can be read, first {skipped[0].name}: '
      f'{skipped[0].reason}. Paths count from the folder of the table; for names of pictures that '
      f'lie elsewhere give these as --source=folder:DIR with --labels={path} (data.labels in a '
      'config)'
    )
  listing, _ = base.make_listing(found, skipped, classes, str(path))
  return folders.FilePictures(f'csv/{path.stem}', root, listing)


def _there(root, file):
  """The path with the separators of Windows turned, if only so it names a file."""
  turned = file.replace('\\', '/')
  if turned == file or os.path.lexists(os.path.join(root, file)):
    return file
  return turned if os.path.lexists(os.path.join(root, turned)) else file


def _look(path):
  """Size of a file in bytes, and why it cannot be used, or None."""
  status, reason = folders.look(path)
  if status is None:
    return 0, reason
  if not stat.S_ISREG(status.st_mode):
    return 0, 'not a file'
  return status.st_size, kinds.too_large(status.st_size) or folders.refusal(path)
