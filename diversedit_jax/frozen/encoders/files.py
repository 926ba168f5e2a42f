"""Weight files of encoders as they are published: found, checked, turned into parameters of `vit`.

A `Published` says what a file is called and where it is to be had, a `Layout` how it names and
shapes what it holds. Files are read without executing code, and nothing is downloaded.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math
import pathlib

import jax.numpy as jnp
import numpy as np

from diversedit_jax import types
from diversedit_jax.frozen.encoders import preprocess, vit
from diversedit_jax.weights import array_files

SUFFIXES = ('.pth', '.pth.tar', '.pt', '.safetensors', '.npz')

# The names of timm's vision transformers, which most authors use; {} is the number of the block.
TIMM = {
  'patches/kernel': 'patch_embed.proj.weight',
  'patches/bias': 'patch_embed.proj.bias',
  'class_token': 'cls_token',
  'positions': 'pos_embed',
  'blocks/norm1/scale': 'blocks.{}.norm1.weight',
  'blocks/norm1/bias': 'blocks.{}.norm1.bias',
  'blocks/qkv/kernel': 'blocks.{}.attn.qkv.weight',
  'blocks/qkv/bias': 'blocks.{}.attn.qkv.bias',
  'blocks/proj/kernel': 'blocks.{}.attn.proj.weight',
  'blocks/proj/bias': 'blocks.{}.attn.proj.bias',
  'blocks/norm2/scale': 'blocks.{}.norm2.weight',
  'blocks/norm2/bias': 'blocks.{}.norm2.bias',
  'blocks/fc1/kernel': 'blocks.{}.mlp.fc1.weight',
  'blocks/fc1/bias': 'blocks.{}.mlp.fc1.bias',
  'blocks/fc2/kernel': 'blocks.{}.mlp.fc2.weight',
  'blocks/fc2/bias': 'blocks.{}.mlp.fc2.bias',
  'norm/scale': 'norm.weight',
  'norm/bias': 'norm.bias',
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
  """A file as it is published.

  file: its name. url: where it is. by: who publishes it, as 'Its authors publish it'.
  others: names without suffix under which it is looked for too.
  size: in bytes; None is that of the arrays that are read, in float32.
  training: whether it holds the state of its training too, and so is larger than its arrays.
  """

  file: str
  url: str
  by: str = 'Its authors publish it'
  others: tuple[str, ...] = ()
  size: float | None = None
  training: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
  """How the files of a family name and shape the parameters.

  names: in the file, by name of `vit.flat_shapes`; {} is the number of a block.
  parts: of a checkpoint, of which the first that is there is read; else it is read whole.
  prefix: of the names that are read, and left out of `names`; other names are passed over. In a
    file without it, all names are read.
  unused: names that are expected and not read; one that ends in a dot stands for all that begin so.
  misnamed: beginnings of names that are wrong in published files, and what they should be.
  leading: whether tokens and positions have leading axes of length one, up to three axes.
  """

  names: Mapping[str, str]
  parts: tuple[str, ...] = ('model',)
  prefix: str = ''
  unused: tuple[str, ...] = ()
  misnamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  leading: bool = True


def shapes(config: vit.ViTConfig, layout: Layout) -> dict[str, tuple[int, ...]]:
  """Shapes of the arrays that are read from a file, by their names there."""
  found = {}
  for ours, shape in vit.flat_shapes(config, (config.table,) * 2).items():
    shape = shape[1:] if ours.startswith('blocks/') else shape
    if ours.endswith('/kernel'):
      shape = (*shape[:-3:-1], *shape[:-2])
    elif ours in ('class_token', 'positions', 'registers') and layout.leading:
      shape = (1,) * (3 - len(shape)) + shape
    found |= dict.fromkeys(_names(ours, config, layout), shape)
  return found


def load(
  path: pathlib.Path,
  name: str,
  config: vit.ViTConfig,
  layout: Layout,
  grid: tuple[int, int],
  dtype: str,
) -> vit.Params:
  """Parameters of a file as numpy arrays, the position table resampled to a grid (rows, cols).

  Raises:
    UserError: an unreadable file, or names, shapes or dtypes that are not the encoder's.
  """
  arrays = proper_names(array_files.load(path, prefer=layout.parts), layout)
  expected = shapes(config, layout)
  _check(path, name, arrays, expected, layout.unused)
  flat = {}
  for ours, shape in vit.flat_shapes(config, (config.table,) * 2).items():
    theirs = _names(ours, config, layout)
    out = np.empty(shape, vit.dtype_of(ours, dtype))
    # Block after block into place, so that one copy is made, not two.
    for slot, its in zip(out if ours.startswith('blocks/') else [out], theirs, strict=True):
      slot[...] = _from_torch(ours, arrays[its]).reshape(slot.shape)
    flat[ours] = out
  source = (config.table, config.table)
  flat['positions'] = preprocess.resample_table(flat['positions'], source, grid)
  return array_files.unflatten(flat)


def proper_names(arrays: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
  """Arrays of a file without the prefix, published mistakes in their names mended."""
  if any(name.startswith(layout.prefix) for name in arrays):
    arrays = {
      name.removeprefix(layout.prefix): array
      for name, array in arrays.items()
      if name.startswith(layout.prefix)
    }
  for wrong, right in layout.misnamed.items():
    arrays = {
      right + name.removeprefix(wrong) if name.startswith(wrong) else name: array
      for name, array in arrays.items()
    }
  return dict(arrays)


def find(
  name: str, published: Published, expected: Mapping[str, tuple[int, ...]], weights: str
) -> pathlib.Path:
  """The weights file: `weights` itself if it is a file, or a file of a known name in the folder.

  Args:
    name: of the encoder. published: its file. expected: see `shapes`. weights: '' if none is given.

  Raises:
    UserError: no such file; the message tells its name, its size and where it is published.
  """
  path = pathlib.Path(weights)
  if weights and path.is_file():
    return path
  own = next(s for s in SUFFIXES if published.file.endswith(s))
  others = [suffix for suffix in SUFFIXES if suffix != own]
  for stem in (published.file.removesuffix(own), *published.others) if weights else ():
    for suffix in (own, *others):
      if (path / f'{stem}{suffix}').is_file():
        return path / f'{stem}{suffix}'
  if not weights:
    found = 'no folder is given'
  else:
    found = f'{weights} does not hold it' if path.is_dir() else f'there is no {weights}'
  raise types.UserError(
    f'encoder {name!r} needs {published.file} ({_size(published, expected)}; {", ".join(others)} '
    f'will do too), but {found}. {published.by} at {published.url}; put it into a folder and give '
    'that folder'
  )


def _size(published: Published, expected: Mapping[str, tuple[int, ...]]) -> str:
  arrays = sum(4 * math.prod(shape) for shape in expected.values())
  size = published.size or arrays
  about = 'more than' if published.training and not published.size else 'about'
  state = ', the state of its training included' if published.training else ''
  return f'{about} {size / 2**20:.0f} MB{state}'


def _names(ours: str, config: vit.ViTConfig, layout: Layout) -> list[str]:
  """The name in a file, or those of all blocks in order."""
  theirs = layout.names[ours]
  return [theirs.format(i) for i in range(config.depth)] if '{}' in theirs else [theirs]


def _from_torch(ours: str, array: np.ndarray) -> np.ndarray:
  """PyTorch keeps matrices as [out, in] and convolutions as [out, in, row, column]."""
  if not ours.endswith('/kernel'):
    return array
  return np.moveaxis(array, (0, 1), (-1, -2))


def _check(
  path: pathlib.Path,
  name: str,
  arrays: Mapping[str, np.ndarray],
  expected: Mapping[str, tuple[int, ...]],
  unused: Sequence[str],
) -> None:
  known = lambda its: (
    its in expected
    or any(its == other or (other.endswith('.') and its.startswith(other)) for other in unused)
  )
  faults = [f'{its} is missing' for its in expected if its not in arrays]
  faults += [f'{its} is not expected' for its in arrays if not known(its)]
  for its, shape in expected.items():
    if its in arrays and arrays[its].shape != shape:
      faults.append(f'{its} has shape {arrays[its].shape}, expected {shape}')
    elif its in arrays and not jnp.issubdtype(arrays[its].dtype, jnp.floating):
      faults.append(f'{its} has dtype {arrays[its].dtype}, expected floating-point numbers')
  if faults:
    more = f'; and {len(faults) - 8} more' if len(faults) > 8 else ''
    raise types.UserError(
      f'{path} does not hold the weights of {name!r}: {"; ".join(faults[:8])}{more}'
    )
