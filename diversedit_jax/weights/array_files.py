"""Files of named arrays, in the formats in which weights are published.

Files are read by what they hold, whatever their suffix (`opening`), and a folder is read by the
file of weights in it (`folders`). Written are

.npz            NumPy archive; cannot hold bfloat16
.safetensors    holds nothing but arrays by construction, bfloat16 included
.pt, .pth       `torch.save`, which needs PyTorch
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
import hashlib
import os
import pathlib
from typing import Any, BinaryIO, NamedTuple
import zipfile

from absl import logging
import numpy as np
import safetensors.numpy

from diversedit_jax import types
from diversedit_jax.weights import folders, forms, location, misfits, opening
from diversedit_jax.weights import parts as parts_lib


class Read(NamedTuple):
  """What was read.

  arrays: in the dtypes of the file, and in today's form (`forms`); those from a PyTorch file or a
    pickle are read-only views.
  notes: what was taken, dropped and left out, in sentences.
  path: the file.
  """

  arrays: dict[str, np.ndarray]
  notes: tuple[str, ...]
  path: pathlib.Path


def load(path: str | os.PathLike[str], **options: Any) -> dict[str, np.ndarray]:
  """The arrays that `read` gives, by name; its notes are logged."""
  found = read(path, **options)
  for note in found.notes:
    logging.info('%s: %s', found.path, note)
  return found.arrays


def read(
  path: str | os.PathLike[str],
  *,
  key: str | None = None,
  prefer: Sequence[str] = (),
  anchors: Sequence[str] = (),
  within: Sequence[str] = (),
) -> Read:
  """Reads one network by its proper names, see `parts`, without running what a file may contain.

  Args:
    path: a file, an index of shards, or a folder with either, here or on the hub, see `location`.
    key: the part of a checkpoint to take, as 'ema' or 'state_dict.model'; None takes an average if
      there is one, else the usual part.
    prefer: names of parts that are taken before those, the best first.
    anchors: names that only this network has: weights that lie beside it are left out.
    within: folders of a pipeline in which it may lie.

  Raises:
    UserError: the file is missing, unreadable or damaged, or has no such part.
  """
  path = folders.find(location.resolve(path, folders.names(within)), within)
  with contextlib.ExitStack() as stack:
    opened = opening.open_file(path, stack)
    try:
      chosen = parts_lib.choose(
        opened.readers, opened.parts, key=key, prefer=prefer, anchors=anchors
      )
    except types.UserError as error:
      raise types.UserError(f'{path} {error}') from error
    arrays = forms.current({name: opened.readers[its]() for name, its in chosen.names.items()})
  notes = list(chosen.notes)
  if opened.odd:
    odd = [f'{name} ({what})' for name, what in opened.odd.items()]
    notes.append(f'left out what is no array: {misfits.first_few(odd)}')
  if opened.unread:
    notes.append(f'not read, and nothing of it run: {misfits.first_few(opened.unread)}')
  return Read(arrays, tuple(notes), path)


def save(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray]) -> None:
  """Writes arrays by name to a new `.npz`, `.safetensors`, `.pt` or `.pth` file.

  A PyTorch file holds {'ema': state dict}, which is where REPA's and SiT's programs look.

  Raises:
    UserError: the file exists, cannot be written, or the format cannot hold a dtype.
  """
  path = pathlib.Path(path)
  writer = check_output(path)
  # Writers take the memory as it lies: safetensors would silently store a transposed view wrongly.
  arrays = {name: np.asarray(array, order='C') for name, array in arrays.items()}
  try:
    with open(path, 'xb') as file:
      writer(file, arrays)
  except FileExistsError as error:
    raise _exists(path) from error
  except BaseException as error:
    path.unlink(missing_ok=True)
    if isinstance(error, OSError):
      raise types.UserError(f'cannot write {path}: {error.strerror or error}') from error
    raise


def check_output(path: str | os.PathLike[str]) -> Callable[[BinaryIO, dict[str, np.ndarray]], None]:
  """The writer for a path; programs call this early, to fail before a long computation.

  Raises:
    UserError: the file exists, its folder does not, its format is unknown, or PyTorch is missing.
  """
  path = pathlib.Path(path)
  writers = {'.npz': _write_npz, '.safetensors': _write_safetensors}
  writers |= dict.fromkeys(('.pt', '.pth'), _write_torch)
  writer = _by_suffix(path, writers)
  if path.exists():
    raise _exists(path)
  if not path.parent.is_dir():
    raise types.UserError(f'no folder {path.parent} to write {path.name} in')
  if writer is _write_torch:
    _import_torch()
  return writer


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Nested dicts from slash-joined names, the inverse of `trees.named_leaves` on a dict.

  Raises:
    UserError: one name continues another, as 'a/b' and 'a' do.
  """
  tree: dict[str, Any] = {}
  for name, leaf in flat.items():
    *folders, last = name.split('/')
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
      if not isinstance(node, dict):
        raise types.UserError(f'{name} would lie inside another array of the file')
    if last in node:
      raise types.UserError(f'other arrays of the file would lie inside {name}')
    node[last] = leaf
  return tree


def find(
  path: str | os.PathLike[str], names: Iterable[str], wanted: str, publisher: str
) -> pathlib.Path:
  """The file at a path, or the first file of a known name in the folder there.

  Args:
    path: a file or a folder, here or on the hub, see `location`.
    names: the known names, the best first.
    wanted: beginning of the error message, as 'the autoencoder needs its weights'.
    publisher: sentence of the error message that says where to get the file.

  Raises:
    UserError: there is no such file.
  """
  names = tuple(names)
  path = location.resolve(path, names)
  if path.is_file():
    return path
  for name in names:
    if (path / name).is_file():
      return path / name
  found = f'{path} does not hold it' if path.is_dir() else f'there is no {path}'
  raise types.UserError(f'{wanted}, but {found}. {publisher}')


def kernel_from_torch(array: np.ndarray) -> np.ndarray:
  """A view of PyTorch's [out, in, ...] as [..., in, out]."""
  return np.moveaxis(array, (0, 1), (-1, -2))


def digest(named: Iterable[tuple[str, np.ndarray]]) -> str:
  """SHA-256 over the sorted names, shapes and little-endian float32 values."""
  hashed = hashlib.sha256()
  for name, array in sorted(named, key=lambda pair: pair[0]):
    hashed.update(f'{name} {forms.before(name, array.shape)}\n'.encode())
    hashed.update(np.ascontiguousarray(array, '<f4').tobytes())
  return hashed.hexdigest()


def _by_suffix(path, table):
  suffix = '.pth.tar' if path.name.endswith('.pth.tar') else path.suffix
  if suffix not in table:
    raise types.UserError(f'{path} has the suffix {suffix!r}; use one of {", ".join(table)}')
  return table[suffix]


def _exists(path):
  return types.UserError(f'{path} exists and is not overwritten; remove it or choose another name')


def _write_npz(file, arrays):
  exotic = sorted(name for name, array in arrays.items() if array.dtype.kind == 'V')
  if exotic:
    dtype = arrays[exotic[0]].dtype
    raise types.UserError(f'.npz cannot hold {dtype} ({exotic[0]}); write .safetensors')
  # Not np.savez, whose keyword arguments clash with arrays named 'file' or 'allow_pickle'.
  with zipfile.ZipFile(file, 'w') as archive:
    for name, array in arrays.items():
      with archive.open(f'{name}.npy', 'w', force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)


def _write_safetensors(file, arrays):
  file.write(safetensors.numpy.save(arrays))


def _write_torch(file, arrays):
  torch = _import_torch()

  def tensor(array):
    if array.dtype.name == 'bfloat16':  # PyTorch takes no NumPy array of this dtype.
      return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())

  torch.save({'ema': {name: tensor(array) for name, array in arrays.items()}}, file)


def _import_torch():
  try:
    import torch  # noqa: PLC0415 (only this format needs it)
  except ImportError as error:
    raise types.UserError(
      "writing .pt needs PyTorch: pip install 'diversedit_jax[torch]', or write .safetensors"
    ) from error
  return torch
