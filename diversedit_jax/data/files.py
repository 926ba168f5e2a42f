"""Files that appear whole or not at all, even after a power cut: written aside, synced, renamed."""

from collections.abc import Iterator
import contextlib
import json
import os
import pathlib
import shutil
from typing import Any
import uuid

from diversedit_jax import types


@contextlib.contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[pathlib.Path]:
  """Yields a temporary path beside `path`, which is renamed to `path` if the block ends well.

  Missing folders are made. After an exception the temporary file is removed and an older file at
  `path` stays as it was. The temporary name keeps the suffix: writers choose the format by it.
  """
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


def make_writable(folder: pathlib.Path, name: str, way_on: str = '') -> None:
  """Makes a folder if it is missing, and sees whether files can be written in it.

  Args:
    folder: to write in. name: what the user calls it, for the message. way_on: ends the message.

  Raises:
    UserError: it cannot be made, or be written in.
  """
  probe = folder / f'.probe-{uuid.uuid4().hex}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise types.UserError(f'{name} cannot be written: {error.strerror}{way_on}') from error


def free_space(folder: str | os.PathLike[str]) -> int:
  """Bytes free on the disk of a folder, which need not be there yet."""
  folder = pathlib.Path(folder)
  there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
  return shutil.disk_usage(there).free


def _sync(path):
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
