"""Files that appear whole or not at all, even after a power cut: written aside, synced, renamed.

A bucket renames nothing, but an object appears when it was sent whole; so what goes into one is
written on a disk first, in the folder of TMPDIR.
"""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import Any
import uuid

from diversedit_jax import paths, types


class Unsent(types.UserError):
  """A file could not be uploaded; what was in its place is still there."""


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a temporary path on a disk, which is moved to `path` if the block ends well.

  Missing folders are made. After an exception the temporary file is removed and an older file at
  `path` stays as it was. The temporary name keeps the suffix: writers choose the format by it.

  Raises:
    Unsent: a bucket does not take it.
  """
  if paths.is_bucket(path):
    with tempfile.TemporaryDirectory() as folder:
      temporary = pathlib.Path(folder) / os.path.basename(path)
      yield temporary
      upload(temporary, path)
    return
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  temporary = path.with_name(f'.{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}')
  try:
    yield temporary
    _sync(temporary)
    os.replace(temporary, path)
    with contextlib.suppress(OSError):  # Some network file systems cannot sync a folder.
      _sync(path.parent)
  finally:
    temporary.unlink(missing_ok=True)


def read_json(path: pathlib.Path, kind: type = dict, *, may_lack: bool = False) -> Any:
  """The content of a JSON file, a dict or what `kind` says.

  may_lack: whether a file that is not there counts as an empty one.

  Raises:
    UserError: the file cannot be read, is damaged, or holds something else.
  """
  try:
    content = json.loads(path.read_bytes())
  except OSError as error:
    if may_lack and isinstance(error, FileNotFoundError | NotADirectoryError):
      return kind()
    raise types.UserError(f'cannot read {path}: {error.strerror or error}') from error
  except (ValueError, RecursionError) as error:
    raise types.UserError(f'{path} is damaged: {error}') from error
  if not isinstance(content, kind):
    found = type(content).__name__
    raise types.UserError(f'{path} is damaged: it holds a {found}, expected a {kind.__name__}')
  return content


def write_json(path: pathlib.Path, content: Any) -> None:
  """Writes a JSON file, indented, whole or not at all."""
  with atomic(path) as temporary:
    temporary.write_text(json.dumps(content, indent=2) + '\n')


@contextlib.contextmanager
def local(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """The path of a file on a disk with the same content: its own, or during the block a copy's."""
  if not paths.is_bucket(path):
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    copied = pathlib.Path(folder) / path.name
    paths.system(path).get_file(str(path), str(copied))
    yield copied


@contextlib.contextmanager
def local_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder on a disk for new files: itself; of one in a bucket, a copy that is uploaded after.

  The oldest file is uploaded first.
  """
  if not paths.is_bucket(folder):
    yield folder
    return
  with tempfile.TemporaryDirectory() as place:
    copied = pathlib.Path(place) / folder.name
    copied.mkdir()
    yield copied
    for file in below(copied):
      upload(file, folder / file.relative_to(copied))


def upload(file: str | os.PathLike[str], path: pathlib.Path) -> None:
  """Sends a file to a bucket, where it then is whole.

  Raises:
    Unsent: it could not be sent.
  """
  try:
    paths.system(path).put_file(str(file), str(path))
  except Exception as error:  # The libraries of buckets raise many types.
    raise Unsent(f'{path} cannot be written: {_why(error)}') from error


def below(folder: pathlib.Path, suffix: str = '') -> list[pathlib.Path]:
  """All files in a folder and the folders in it, the oldest first."""
  if not paths.is_bucket(folder):
    found = [path for path in folder.rglob(f'*{suffix}') if path.is_file()]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns)
  _, _, within = str(folder).partition('://')
  found = paths.system(folder).find(str(folder), detail=True)
  named = [(facts.get('mtime') or facts.get('LastModified'), name) for name, facts in found.items()]
  return [
    folder / name.removeprefix(f'{within}/') for _, name in sorted(named) if name.endswith(suffix)
  ]


def copy(source: pathlib.Path, target: pathlib.Path) -> None:
  """Copies a small file, whole or not at all."""
  with atomic(target) as temporary:
    temporary.write_bytes(source.read_bytes())


def move(source: pathlib.Path, target: pathlib.Path) -> None:
  """Moves a file or a folder, within a disk or a bucket, to a name that nothing has.

  In a bucket one object after the other is moved.
  """
  target.parent.mkdir(parents=True, exist_ok=True)
  if paths.is_bucket(source):
    paths.system(source).mv(str(source), str(target), recursive=source.is_dir())
  else:
    source.rename(target)


def remove_folder(folder: pathlib.Path) -> None:
  """Removes a folder and what is in it, as far as that can be done."""
  if paths.is_bucket(folder):
    folder.rmtree(missing_ok=True)
  else:
    shutil.rmtree(folder, ignore_errors=True)


def make_writable(folder: pathlib.Path, name: str, way_on: str = '') -> None:
  """Makes a folder if it is missing, and sees whether files can be written in it.

  Args:
    folder: to write in. name: what the user calls it, for the message. way_on: ends the message.

  Raises:
    UserError: it cannot be made, or be written in.
  """
  probe = folder / f'.probe-{uuid.uuid4().hex}'
  try:
    if not paths.is_bucket(folder):  # A bucket has no folders, and is not to be made here.
      folder.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink()
  except Exception as error:  # The libraries of buckets raise many types.
    if not paths.is_bucket(folder) and not isinstance(error, OSError):
      raise
    raise types.UserError(f'{name} cannot be written: {_why(error)}{way_on}') from error


def check_bucket(folder: pathlib.Path, name: str) -> None:
  """Refuses a folder in a bucket that is not there, or that cannot be read (UserError).

  name: what the user calls it.
  """
  try:
    next(folder.glob('*'), None)
  except FileNotFoundError as error:
    raise types.UserError(
      f'{name}: there is no bucket {folder.parts[2]}; make it first, or see to the spelling'
    ) from error
  except Exception as error:
    way_on = 'credentials come from `gcloud auth application-default login`, or as AWS has them'
    raise types.UserError(f'{name} cannot be read: {_why(error)}; {way_on}') from error


def free_space(folder: str | os.PathLike[str]) -> int:
  """Bytes free on the disk of a folder, which need not be there yet."""
  folder = pathlib.Path(folder)
  there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
  return shutil.disk_usage(there).free


def _why(error):
  if isinstance(error, OSError) and error.strerror:
    return error.strerror
  return f'{type(error).__name__}: {" ".join(str(error).split())[:200]}'


def _sync(path):
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
