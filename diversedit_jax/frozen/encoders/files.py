"""Published weight files of encoders: their names, their layouts, the places to get them.

Files are read without running code, and nothing is downloaded.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

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

  def in_file(self, ours: str, depth: int) -> list[str]:
    """The name in a file of a parameter, or its names for all blocks in order."""
    theirs = self.names[ours]
    return [theirs.format(i) for i in range(depth)] if '{}' in theirs else [theirs]


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
