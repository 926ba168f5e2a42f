"""Published weight files of encoders: their names, their layouts, the places to get them.

Files are read without running code, and nothing is downloaded.
"""

from collections.abc import Callable, Mapping
import dataclasses
import math
import pathlib

import numpy as np

from diversedit_jax import types
from diversedit_jax.weights import array_files, misfits

SUFFIXES = ('.pth', '.pth.tar', '.pt', '.safetensors', '.npz')

_TOKENS = ('class_token', 'positions', 'registers', 'pool/query')

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

  names: the names in the file, by slash-joined name of the parameter; {} is the number of a block.
  parts: the parts of a checkpoint to read, the best first; without any of them it is read whole.
  prefix: the beginning of the names that are read, left out of `names`; names without it are
    skipped, unless no name has it.
  unused: names that may be there and are not read; one with a dot at its end stands for all names
    that begin with it.
  misnamed: beginnings of names that are wrong in published files, with the right ones.
  leading: whether tokens and positions have leading axes of length one, to make three axes.
  translate: function from the arrays of a file, without the prefix, to arrays by `names`; it
    leaves those alone that have these names already.
  """

  names: Mapping[str, str]
  parts: tuple[str, ...] = ('model',)
  prefix: str = ''
  unused: tuple[str, ...] = ()
  misnamed: Mapping[str, str] = dataclasses.field(default_factory=dict)
  leading: bool = True
  translate: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]] = lambda arrays: arrays

  def stacked(self, ours: str) -> bool:
    """Whether a parameter has a leading axis, which a file spreads over many names."""
    return '{}' in self.names[ours]

  def in_file(self, ours: str, depth: int) -> list[str]:
    """The name in a file of a parameter, or its names for all blocks in order."""
    theirs = self.names[ours]
    return [theirs.format(i) for i in range(depth)] if self.stacked(ours) else [theirs]

  def shapes(self, flat: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that are read from a file, by their names there.

    flat: shapes of the parameters by slash-joined name.
    """
    found = {}
    for ours, shape in flat.items():
      depth = shape[0]
      shape = shape[1:] if self.stacked(ours) else shape
      if ours.endswith('/kernel'):
        shape = (*shape[:-3:-1], *shape[:-2])
      elif ours in _TOKENS and self.leading:
        shape = (1,) * (3 - len(shape)) + shape
      found |= dict.fromkeys(self.in_file(ours, depth), shape)
    return found

  def faults(
    self, flat: Mapping[str, tuple[int, ...]], arrays: Mapping[str, np.ndarray]
  ) -> list[str]:
    """What is wrong with arrays by their proper names, in words, see `misfits`."""
    is_unused = lambda its: any(
      its == x or (x[-1] == '.' and its.startswith(x)) for x in self.unused
    )
    return misfits.find(arrays, self.shapes(flat), unused=is_unused)


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
  return layout.translate(dict(arrays))


def find(
  name: str, published: Published, weights: str, shapes: Mapping[str, tuple[int, ...]]
) -> pathlib.Path:
  """The weights file: `weights` itself, or a file with a known name in the folder `weights`.

  Args:
    name: name of the encoder, for messages.
    published: its file.
    weights: path that a user gave, '' for none.
    shapes: shapes of the arrays that are read from it, for their size.

  Raises:
    UserError: there is no such file; the message has its name, its size and the place to get it.
  """
  own = next(s for s in SUFFIXES if published.file.endswith(s))
  others = [suffix for suffix in SUFFIXES if suffix != own]
  size = published.size or sum(4 * math.prod(shape) for shape in shapes.values())
  about = 'more than' if published.training and not published.size else 'about'
  state = ', the state of its training included' if published.training else ''
  wanted = (
    f'encoder {name!r} needs {published.file} ({about} {size / 2**20:.0f} MB{state}; '
    f'{", ".join(others)} will do too)'
  )
  publisher = f'{published.by} at {published.url}; put it into a folder and give that folder'
  if not weights:
    raise types.UserError(f'{wanted}, but no folder is given. {publisher}')
  stems = (published.file.removesuffix(own), *published.others)
  names = [f'{stem}{suffix}' for stem in stems for suffix in (own, *others)]
  return array_files.find(weights, names, wanted, publisher)


def read(
  name: str,
  path: pathlib.Path,
  layout: Layout,
  flat: Mapping[str, tuple[int, ...]],
  dtype_of: Callable[[str], np.dtype],
) -> dict[str, np.ndarray]:
  """Parameters by slash-joined name, from a file with the names of its publishers.

  Args:
    name: name of the encoder, for messages.
    path: the file.
    layout: names and shapes in the file.
    flat: shapes of the parameters by slash-joined name.
    dtype_of: function from such a name to the dtype of the parameter.

  Raises:
    UserError: the file is unreadable, or its names, shapes or dtypes are not the encoder's.
  """
  arrays = proper_names(array_files.load(path, prefer=layout.parts), layout)
  if faults := layout.faults(flat, arrays):
    raise types.UserError(f'{path} does not hold the weights of {name!r}: {"; ".join(faults)}')
  return arranged(arrays, layout, flat, dtype_of)


def arranged(
  arrays: Mapping[str, np.ndarray],
  layout: Layout,
  flat: Mapping[str, tuple[int, ...]],
  dtype_of: Callable[[str], np.dtype],
) -> dict[str, np.ndarray]:
  """Parameters by slash-joined name, of arrays by their proper names; see `read`."""
  found = {}
  for ours, shape in flat.items():
    out = found[ours] = np.empty(shape, dtype_of(ours))
    # Each block is written into its place, so that one copy is made, not two.
    slots = out if layout.stacked(ours) else [out]
    for slot, theirs in zip(slots, layout.in_file(ours, shape[0]), strict=True):
      array = arrays[theirs]
      array = array_files.kernel_from_torch(array) if ours.endswith('/kernel') else array
      slot[...] = array.reshape(slot.shape)
  return found
