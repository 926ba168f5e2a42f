"""Files of named arrays, in the formats in which weights are published.

.npz            NumPy archive; cannot hold bfloat16
.safetensors    holds nothing but arrays by construction, bfloat16 included
.pt, .pth       `torch.save` and `torch.jit.save`; read by `torch_file` without PyTorch, written
                with it; .pth.tar is an older name for the same format and is read too
.pickle, .pkl   nested dicts of NumPy arrays; read by `numpy_pickle`, never written
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import hashlib
import os
import pathlib
from typing import Any, BinaryIO
import zipfile

import numpy as np
import safetensors
import safetensors.numpy

from diversedit_jax import types
from diversedit_jax.weights import location, misfits, numpy_pickle, torch_file, torch_legacy

_PREFERRED = ('ema', 'model')


def load(
  path: str | os.PathLike[str], *, key: str | None = None, prefer: Sequence[str] = _PREFERRED
) -> dict[str, np.ndarray]:
  """Reads the arrays of a file by name.

  PyTorch's prefixes `module.` (DDP) and `_orig_mod.` (compile) are dropped from the names.

  Args:
    path: a `.npz`, `.safetensors`, `.pt`, `.pth`, `.pth.tar`, `.pickle` or `.pkl` file, here or on
      the hub, see `location`.
    key: the part of a PyTorch checkpoint to take; None takes the first of `prefer` that is there,
      else the whole file. The other formats have no parts.
    prefer: names of parts, the best first.

  Returns:
    Arrays in the dtypes of the file; those from a PyTorch file or a pickle are read-only views.
    Names of nested dicts are joined by slashes.

  Raises:
    UserError: the file is missing, unreadable or would run code, or has no such part.
  """
  path = location.resolve(path)
  readers = {'.npz': _load_npz, '.safetensors': _load_safetensors}
  readers |= dict.fromkeys(('.pt', '.pth', '.pth.tar'), _load_torch)
  readers |= dict.fromkeys(('.pickle', '.pkl'), numpy_pickle.load)
  reader = _by_suffix(path, readers)
  if not path.is_file():
    raise types.UserError(f'no file {path}')
  if reader is _load_torch:
    return _clean_names(path, _load_torch(path, key, prefer))
  if key is not None:
    raise types.UserError(f'key={key!r} chooses a part of a .pt file; {path} has no parts')
  return _clean_names(path, reader(path))


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
    wanted: beginning of the error message, as 'the VAE needs its weights (335 MB)'.
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
    hashed.update(f'{name} {array.shape}\n'.encode())
    hashed.update(np.ascontiguousarray(array, '<f4').tobytes())
  return hashed.hexdigest()


def _by_suffix(path, table):
  suffix = '.pth.tar' if path.name.endswith('.pth.tar') else path.suffix
  if suffix not in table:
    raise types.UserError(f'{path} has the suffix {suffix!r}; use one of {", ".join(table)}')
  return table[suffix]


def _exists(path):
  return types.UserError(f'{path} exists and is not overwritten; remove it or choose another name')


def _clean_names(path, arrays):
  cleaned = {}
  for name, array in arrays.items():
    short = name.replace('_orig_mod.', '')
    while short.startswith('module.'):
      short = short.removeprefix('module.')
    if short in cleaned:
      raise types.UserError(f'{path} has {short} twice, with and without a prefix in its name')
    cleaned[short] = array
  return cleaned


def _load_npz(path):
  try:
    with zipfile.ZipFile(path), np.load(path, allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
  except Exception as error:
    raise types.UserError(f'{path} is not an archive of plain arrays: {error}') from error
  for name, array in arrays.items():
    if not isinstance(array, np.ndarray):
      raise types.UserError(f'{path} holds {name}, which is not an array')
    if array.dtype.kind == 'V':
      raise types.UserError(
        f'{path} holds {name} as raw bytes, as .npz stores bfloat16; write a .safetensors file'
      )
  return arrays


def _load_safetensors(path):
  try:
    return safetensors.numpy.load_file(path)
  except Exception as error:
    raise types.UserError(f'{path} is not a safetensors file of known dtypes: {error}') from error


def _load_torch(path, key, prefer):
  opener = torch_legacy.LegacyFile if torch_legacy.recognises(path) else torch_file.TorchFile
  with opener(path) as file:
    key, part = _choose(path, file.contents, key, prefer)
    tensors = {name: x for name, x in part.items() if isinstance(x, torch_file.Tensor)}
    others = sorted(repr(name) for name in part if name not in tensors)
    if others or not all(isinstance(name, str) for name in tensors):
      where = path if key is None else f'part {key!r} of {path}'
      raise types.UserError(
        f'{where} is not a state dict: besides {len(tensors)} tensors it holds '
        f'{misfits.first_few(others) or "tensors without a name"}'
      )
    return {name: file.array(tensor) for name, tensor in tensors.items()}


def _choose(path, contents, key, prefer):
  """The chosen part of a checkpoint with its key, which is None for the whole."""
  if not isinstance(contents, dict):
    raise types.UserError(f'{path} does not hold a state dict')
  parts = [name for name, part in contents.items() if isinstance(part, dict)]
  if key is not None and key not in parts:
    found = ', '.join(repr(name) for name in parts) or 'none'
    raise types.UserError(f'{path} has no part {key!r}; its parts: {found}')
  for name in prefer if key is None else (key,):
    if name in parts:
      return name, contents[name]
  return None, contents


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
      'writing .pt needs PyTorch: pip install diversedit_jax[torch], or write .safetensors'
    ) from error
  return torch
