"""Published weight files of encoders: found, checked, turned into parameters of `vit`.

A `Published` has the name of a file and the place to get it, a `Layout` the names and shapes in it.
Files are read without running code, and nothing is downloaded.
"""

from collections.abc import Mapping
import dataclasses
import math
import pathlib

import numpy as np

from diversedit_jax import types
from diversedit_jax.frozen.encoders import preprocess, vit
from diversedit_jax.weights import array_files, misfits

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
  """A published file.

  file: its name.
  url: the place to get it.
  by: its publisher, as 'Its authors publish it'.
  others: further names under which it is looked for, without suffix.
  size: its size in bytes; None stands for the size of the arrays that are read, in float32.
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
  """The names and shapes of the parameters in the files of a family.

  names: the names in the file, by name of `vit.flat_shapes`; {} is the number of a block.
  parts: the parts of a checkpoint to read, the best first; without any of them it is read whole.
  prefix: the beginning of the names that are read, left out of `names`; names without it are
    skipped, unless no name has it.
  unused: names that may be there and are not read; one with a dot at its end stands for all names
    that begin with it.
  misnamed: beginnings of names that are wrong in published files, with the right ones.
  leading: whether tokens and positions have leading axes of length one, to make three axes.
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
  """Reads parameters as numpy arrays, the position table resampled to a grid (rows, cols).

  Raises:
    UserError: the file is unreadable, or its names, shapes or dtypes are not the encoder's.
  """
  arrays = proper_names(array_files.load(path, prefer=layout.parts), layout)
  expected = shapes(config, layout)

  def unused(its):
    return any(
      its == other or (other[-1] == '.' and its.startswith(other)) for other in layout.unused
    )

  if faults := misfits.find(arrays, expected, unused=unused):
    raise types.UserError(f'{path} does not hold the weights of {name!r}: {"; ".join(faults)}')
  flat = {}
  for ours, shape in vit.flat_shapes(config, (config.table,) * 2).items():
    theirs = _names(ours, config, layout)
    out = np.empty(shape, vit.dtype_of(ours, dtype))
    # Block after block into place, so that one copy is made, not two.
    for slot, its in zip(out if ours.startswith('blocks/') else [out], theirs, strict=True):
      array = arrays[its]
      array = array_files.kernel_from_torch(array) if ours.endswith('/kernel') else array
      slot[...] = array.reshape(slot.shape)
    flat[ours] = out
  source = (config.table, config.table)
  flat['positions'] = preprocess.resample_table(flat['positions'], source, grid)
  return array_files.unflatten(flat)


def proper_names(arrays: Mapping[str, np.ndarray], layout: Layout) -> dict[str, np.ndarray]:
  """Arrays by name without the prefix, with published mistakes in the names mended."""
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
  """The weights file: `weights` itself if it is a file, or a file with a known name in the folder.

  Args:
    name: the name of the encoder.
    published: its published file.
    expected: shapes of the arrays in it, as from `shapes`.
    weights: the file or folder; '' if none is given.

  Raises:
    UserError: there is no such file; the message has its name, its size and the place to get it.
  """
  own = next(s for s in SUFFIXES if published.file.endswith(s))
  others = [suffix for suffix in SUFFIXES if suffix != own]
  stems = (published.file.removesuffix(own), *published.others)
  wanted = (
    f'encoder {name!r} needs {published.file} ({_size(published, expected)}; {", ".join(others)} '
    'will do too)'
  )
  publisher = f'{published.by} at {published.url}; put it into a folder and give that folder'
  if not weights:
    raise types.UserError(f'{wanted}, but no folder is given. {publisher}')
  names = [f'{stem}{suffix}' for stem in stems for suffix in (own, *others)]
  return array_files.find(pathlib.Path(weights), names, wanted, publisher)


def _size(published: Published, expected: Mapping[str, tuple[int, ...]]) -> str:
  arrays = sum(4 * math.prod(shape) for shape in expected.values())
  size = published.size or arrays
  about = 'more than' if published.training and not published.size else 'about'
  state = ', the state of its training included' if published.training else ''
  return f'{about} {size / 2**20:.0f} MB{state}'


def _names(ours: str, config: vit.ViTConfig, layout: Layout) -> list[str]:
  """The name in a file, or the names for all blocks in order."""
  theirs = layout.names[ours]
  return [theirs.format(i) for i in range(config.depth)] if '{}' in theirs else [theirs]
