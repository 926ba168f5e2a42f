"""Opens a file of weights by what it holds, whatever its name ends with.

A file of arrays, of `torch.save`, a pickle: each becomes names with functions that read one array,
so that nothing but what is asked for is read. An index of shards, as Hugging Face's programs write
it ({"weight_map": {name: file}}), is read as one file.
"""

from collections.abc import Callable, Mapping
import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from typing import Any
import zipfile

import numpy as np
import safetensors

from diversedit_jax import types
from diversedit_jax.weights import misfits, nested, numpy_pickle, torch_file, torch_legacy

_SAFETENSORS_HEADER = 100_000_000
"""The most bytes of a header that the library reads."""
# What people are left with when a download went wrong, or brought something else.
_FOREIGN = {
  b'version https://git-lfs': 'is a pointer of Git LFS, not the file: fetch it with `git lfs pull`',
  b'<!doctype': 'is a web page: the download brought a page instead of the file',
  b'<html': 'is a web page: the download brought a page instead of the file',
  b'GGUF': 'is a GGUF file, which holds quantised language models',
  b'\x89HDF': 'is an HDF5 file: load it with its own library and save its arrays as .npz',
  b'\x1f\x8b': 'is compressed: unpack it with gunzip',
  b'(\xb5/\xfd': 'is compressed: unpack it with unzstd',
  b'\xfd7zXZ': 'is compressed: unpack it with unxz',
  b'BZh': 'is compressed: unpack it with bunzip2',
  b'7z\xbc\xaf': 'is a 7z archive: unpack it',
}


@dataclasses.dataclass(frozen=True)
class Opened:
  """An open file.

  readers: functions that read one array, by its name.
  parts: beginnings of names, one for each state dict in the file.
  unread: classes and functions that the file names and that are not read.
  odd: see `nested.Found`.
  """

  readers: Mapping[str, Callable[[], np.ndarray]]
  parts: tuple[str, ...] = ('',)
  unread: tuple[str, ...] = ()
  odd: Mapping[str, str] = dataclasses.field(default_factory=dict)


def open_file(path: pathlib.Path, stack: contextlib.ExitStack) -> Opened:
  """The names in a file.

  Args:
    path: a file of weights, or an index of shards.
    stack: what keeps files open until the arrays are read.

  Raises:
    UserError: there is no such file, it is unreadable or damaged, or of another kind.
  """
  opener = _opener(path)
  return opener(path, stack)


def _opener(path):
  try:
    with open(path, 'rb') as file:
      head = file.read(512)
  except OSError as error:
    reason = 'no file' if isinstance(error, FileNotFoundError) else f'cannot read: {error.strerror}'
    raise types.UserError(f'{reason} {path}') from error
  if head[:4] == b'PK\3\4':
    return _open_npz if _is_npz(path) else _open_torch
  if torch_legacy.recognises(path):
    return _open_torch
  if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') <= _SAFETENSORS_HEADER:
    return _open_safetensors
  if head[:1] == b'\x80' or path.suffix in ('.pkl', '.pickle'):
    return _open_pickle
  if head.lstrip()[:1] == b'{' and path.suffix == '.json':
    return _open_shards
  text = head.lstrip().lower()
  for mark, what in _FOREIGN.items():
    if head.startswith(mark) or text.startswith(mark):
      raise types.UserError(f'{path} {what}')
  if head[257:262] == b'ustar':
    raise types.UserError(f'{path} is a tar archive: unpack it')
  what = f'begins with {head[:16]!r}' if head else 'is empty'
  raise types.UserError(
    f'{path} is not a file of weights: it {what}. Known are .safetensors, .npz, the files of '
    'torch.save (.pt, .pth, .bin, .ckpt) and pickles of NumPy arrays, whatever their suffix'
  )


def _is_npz(path):
  try:
    with zipfile.ZipFile(path) as archive:
      return any(name.endswith('.npy') for name in archive.namelist())
  except (OSError, zipfile.BadZipFile):
    return path.suffix == '.npz'


def _open_npz(path, stack):
  try:
    archive = stack.enter_context(np.load(path, allow_pickle=False))
    names = list(archive.files)
  except Exception as error:
    raise types.UserError(f'{path} is not an archive of plain arrays: {error}') from error

  def read(name):
    try:
      array = archive[name]
    except Exception as error:
      raise types.UserError(f'{path} is not an archive of plain arrays: {error}') from error
    if not isinstance(array, np.ndarray):
      raise types.UserError(f'{path} holds {name}, which is not an array')
    if array.dtype.kind == 'V':
      raise types.UserError(
        f'{path} holds {name} as raw bytes, as .npz stores bfloat16; write a .safetensors file'
      )
    return array

  return Opened({name: functools.partial(read, name) for name in names})


def _open_safetensors(path, stack):
  def blame(act, *args):
    try:
      return act(*args)
    except Exception as error:
      reason = f'{path} is not a safetensors file of known dtypes: {error}'
      raise types.UserError(reason) from error

  file = stack.enter_context(blame(safetensors.safe_open, path, 'np'))
  read = functools.partial(blame, file.get_tensor)
  return Opened({name: functools.partial(read, name) for name in file.keys()})  # noqa: SIM118


def _open_pickle(path, stack):
  try:
    with open(path, 'rb') as file:
      root, unread = numpy_pickle.read(file)
    found = nested.walk(root, (bool, int, float), separator='/')
  except Exception as error:
    reason = f'{type(error).__name__}: {error}'
    raise types.UserError(f'{path} is not a pickle of plain arrays: {reason}') from error
  if '.'.join(torch_legacy.FROM_BYTES) in unread:
    return _of_tensors(stack.enter_context(torch_legacy.PickleFile(path)), path)
  if not any(isinstance(x, np.ndarray) for x in found.arrays.values()):
    kinds = misfits.first_few(unread or list(found.skipped.values())) or 'numbers'
    raise types.UserError(
      f'{path} is a pickle without arrays of plain numbers; it holds {kinds}, and nothing in it '
      'was run. If you trust its source, load it with Python and save its arrays as .npz'
    )
  readers = {name: functools.partial(np.asarray, x) for name, x in found.arrays.items()}
  return Opened(readers, unread=tuple(unread))


def _open_torch(path, stack):
  opener = torch_legacy.LegacyFile if torch_legacy.recognises(path) else torch_file.TorchFile
  return _of_tensors(stack.enter_context(opener(path)), path)


def _of_tensors(file: torch_file.TensorFile, path) -> Opened:
  found = file.found
  if not found.arrays:
    kinds = misfits.first_few(
      [f'{n} ({k})' if n else k for n, k in (found.skipped | found.odd).items()]
    )
    raise types.UserError(f'{path} holds no tensors{f"; it holds {kinds}" if kinds else ""}')
  return Opened(
    readers={name: functools.partial(file.array, name) for name in found.arrays},
    parts=found.parts,
    unread=tuple(file.unread),
    odd=found.odd,
  )


def _open_shards(path, stack):
  """All shards of an index as one file."""
  table = shards(path)
  missing = sorted({file for file in table.values() if not (path.parent / file).is_file()})
  if missing:
    raise types.UserError(
      f'{path} names {len(set(table.values()))} files, of which {len(missing)} are not beside it: '
      f'{misfits.first_few(missing)}'
    )
  opened = {file: open_file(path.parent / file, stack) for file in sorted(set(table.values()))}
  absent = [name for name, file in table.items() if name not in opened[file].readers]
  if absent:
    raise types.UserError(
      f'{path} does not fit the files beside it, which lack {len(absent)} of its {len(table)} '
      f'names: {misfits.first_few(absent)}'
    )
  readers = {name: opened[file].readers[name] for name, file in table.items()}
  unread = tuple(dict.fromkeys(x for each in opened.values() for x in each.unread))
  return Opened(readers, unread=unread)


def shards(path: pathlib.Path) -> dict[str, str]:
  """The file of every name in an index, which lies beside it.

  Raises:
    UserError: it is no such index.
  """
  try:
    table: Any = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as error:
    raise types.UserError(f'{path} is not readable JSON: {error}') from error
  table = table.get('weight_map') if isinstance(table, dict) else None
  if not isinstance(table, dict) or not table:
    raise types.UserError(f'{path} is not an index of shards: it has no "weight_map"')
  for name, file in table.items():
    # A name alone: an index must not reach out of its folder.
    if not isinstance(file, str) or os.path.basename(file) != file or file in ('', '.', '..'):
      raise types.UserError(f'{path} keeps {name} in {file!r}, which is no file beside it')
    if file.endswith('.json'):
      raise types.UserError(f'{path} keeps {name} in {file}, which is an index itself')
  return table
