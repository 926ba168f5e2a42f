"""DINOv2 (arXiv 2304.07193), with and without registers, fed as REPA feeds it (2410.06940).

The weights are the authors' own hub files, read without executing code. Where an image has 16
pixels, the encoder sees 14, the side of its patches: 256 x 256 pixels become 224 x 224 and 16 x 16
tokens, 512 x 512 become 448 x 448 and 32 x 32.
"""

from collections.abc import Mapping
import dataclasses
import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types
from diversedit_jax.frozen.encoders import base, preprocess, vit
from diversedit_jax.weights import array_files

PIXELS_PER_PATCH = 16
URL = 'https://dl.fbaipublicfiles.com/dinov2'
SUFFIXES = ('.pth', '.pt', '.safetensors', '.npz')

_SIZES = {
  's': vit.ViTConfig(width=384, depth=12, heads=6, hidden=4 * 384),
  'b': vit.ViTConfig(width=768, depth=12, heads=12, hidden=4 * 768),
  'l': vit.ViTConfig(width=1024, depth=24, heads=16, hidden=4 * 1024),
  'g': vit.ViTConfig(width=1536, depth=40, heads=24, hidden=4096, mlp='swiglu'),
}
CONFIGS = {f'dinov2-vit-{size}': config for size, config in _SIZES.items()} | {
  f'dinov2reg-vit-{size}': dataclasses.replace(config, registers=4)
  for size, config in _SIZES.items()
}

_BLOCK_NAMES = {
  'norm1/scale': 'norm1.weight', 'norm1/bias': 'norm1.bias',
  'qkv/kernel': 'attn.qkv.weight', 'qkv/bias': 'attn.qkv.bias',
  'proj/kernel': 'attn.proj.weight', 'proj/bias': 'attn.proj.bias',
  'scale1': 'ls1.gamma',
  'norm2/scale': 'norm2.weight', 'norm2/bias': 'norm2.bias',
  'scale2': 'ls2.gamma',
}  # fmt: skip
_MLP_NAMES = {'gelu': ('mlp.fc1', 'mlp.fc2'), 'swiglu': ('mlp.w12', 'mlp.w3')}
_OTHER_NAMES = {
  'patches/kernel': 'patch_embed.proj.weight', 'patches/bias': 'patch_embed.proj.bias',
  'class_token': 'cls_token', 'positions': 'pos_embed', 'registers': 'register_tokens',
  'norm/scale': 'norm.weight', 'norm/bias': 'norm.bias',
}  # fmt: skip
# In every file, and used only in DINOv2's own training.
_UNUSED = frozenset({'mask_token'})


def make(name: str, config: vit.ViTConfig, request: base.Request) -> base.Encoder:
  """The encoder of a config.

  Raises:
    UserError: for pixels that are not RGB, or sides that are no multiples of 16.
  """
  height, width, channels = request.image_shape
  rows, cols = height // PIXELS_PER_PATCH, width // PIXELS_PER_PATCH
  if channels != config.channels or height % PIXELS_PER_PATCH or width % PIXELS_PER_PATCH:
    raise types.UserError(
      f'encoder {name!r} takes pixels with {config.channels} channels and sides divisible by '
      f'{PIXELS_PER_PATCH}; found {height}x{width}x{channels}'
    )
  size = (rows * config.patch_size, cols * config.patch_size)

  def apply(params: vit.Params, x_NHWC: jax.Array) -> base.Features:
    # In float32 at least, whatever the dtype of the products.
    wide = jnp.promote_types(request.dtype, jnp.float32)
    # REPA's order: normalised first, then resized.
    x_NHWC = preprocess.resize(preprocess.normalise(x_NHWC.astype(wide)), *size)
    f_NTZ = vit.encode(params, x_NHWC, config).astype(jnp.float32)
    return base.Features(tokens=f_NTZ[:, config.prefix :], summary=f_NTZ[:, 0])

  return base.Encoder(
    name=name,
    params=vit.params_shapes(config, (rows, cols), request.dtype),
    apply=apply,
    load=functools.partial(load, name, config, request.weights, (rows, cols), request.dtype),
    image_shape=request.image_shape,
    flops=vit.flops(config, (rows, cols)) + preprocess.resize_flops(height, width, *size, channels),
  )


def load(
  name: str, config: vit.ViTConfig, weights: str, grid: tuple[int, int], dtype: str
) -> vit.Params:
  """Parameters as numpy arrays, the position table resampled to a grid (rows, cols).

  Raises:
    UserError: no such file (where to find it is told), or names or shapes that are not DINOv2's.
  """
  path = find(name, config, weights)
  arrays = array_files.load(path)
  _check(path, name, config, arrays)
  flat = {}
  for ours, shape in vit.flat_shapes(config, (config.table,) * 2).items():
    theirs = _hub_names(ours, config)
    out = np.empty(shape, vit.dtype_of(ours, dtype))
    # Block after block into place, so that one copy is made, not two.
    for slot, hub in zip(out if ours.startswith('blocks/') else [out], theirs, strict=True):
      slot[...] = _from_hub(ours, arrays[hub]).reshape(slot.shape)
    flat[ours] = out
  source = (config.table, config.table)
  flat['positions'] = preprocess.resample_table(flat['positions'], source, grid)
  return array_files.unflatten(flat)


def published(name: str) -> str:
  """'dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth' for 'dinov2reg-vit-b', below `URL`."""
  family, _, size = name.rpartition('-vit-')
  folder = f'dinov2_vit{size}14'
  return f'{folder}/{folder}{"_reg4" if family == "dinov2reg" else ""}_pretrain.pth'


def find(name: str, config: vit.ViTConfig, weights: str) -> pathlib.Path:
  """The weights file: `weights` itself if it is a file, or the file of that name in the folder.

  Raises:
    UserError: no such file; the message tells its name, its size and where the authors publish it.
  """
  path, file = pathlib.Path(weights), pathlib.PurePosixPath(published(name)).name
  if weights and path.is_file():
    return path
  for suffix in SUFFIXES if weights else ():
    candidate = (path / file).with_suffix(suffix)
    if candidate.is_file():
      return candidate
  size = sum(4 * math.prod(shape) for shape in hub_shapes(config).values()) / 2**20
  if not weights:
    found = 'no folder is given'
  else:
    found = f'{weights} does not hold it' if path.is_dir() else f'there is no {weights}'
  raise types.UserError(
    f'encoder {name!r} needs {file} (about {size:.0f} MB; {", ".join(SUFFIXES[1:])} will do too), '
    f'but {found}. Its authors publish it at {URL}/{published(name)}; put it into a folder and set '
    'repa.weights=FOLDER'
  )


def hub_shapes(config: vit.ViTConfig) -> dict[str, tuple[int, ...]]:
  """Shapes of the arrays that are read from a hub file, by their names there."""
  shapes = {}
  for ours, shape in vit.flat_shapes(config, (config.table,) * 2).items():
    shape = shape[1:] if ours.startswith('blocks/') else shape
    if ours.endswith('/kernel'):
      shape = (*shape[:-3:-1], *shape[:-2])
    elif ours in ('class_token', 'positions', 'registers'):
      shape = (1,) * (3 - len(shape)) + shape
    shapes |= dict.fromkeys(_hub_names(ours, config), shape)
  return shapes


def _hub_names(ours: str, config: vit.ViTConfig) -> list[str]:
  """The name in a hub file, or those of all blocks in order."""
  if not ours.startswith('blocks/'):
    return [_OTHER_NAMES[ours]]
  ours = ours.removeprefix('blocks/')
  if ours in _BLOCK_NAMES:
    theirs = _BLOCK_NAMES[ours]
  else:
    layer, _, leaf = ours.partition('/')
    module = _MLP_NAMES[config.mlp][('fc1', 'fc2').index(layer)]
    theirs = f'{module}.{"weight" if leaf == "kernel" else "bias"}'
  return [f'blocks.{i}.{theirs}' for i in range(config.depth)]


def _from_hub(ours: str, array: np.ndarray) -> np.ndarray:
  """PyTorch keeps matrices as [out, in] and convolutions as [out, in, row, column]."""
  if not ours.endswith('/kernel'):
    return array
  return np.moveaxis(array, (0, 1), (-1, -2))


def _check(
  path: pathlib.Path, name: str, config: vit.ViTConfig, arrays: Mapping[str, np.ndarray]
) -> None:
  expected = hub_shapes(config)
  faults = [f'{hub} is missing' for hub in expected if hub not in arrays]
  faults += [f'{hub} is not expected' for hub in arrays if hub not in {*expected, *_UNUSED}]
  faults += [
    f'{hub} has shape {arrays[hub].shape}, expected {shape}'
    for hub, shape in expected.items()
    if hub in arrays and arrays[hub].shape != shape
  ]
  if faults:
    more = f'; and {len(faults) - 8} more' if len(faults) > 8 else ''
    raise types.UserError(
      f'{path} does not hold the weights of {name!r}: {"; ".join(faults[:8])}{more}'
    )


for _name, _config in CONFIGS.items():
  base.register(_name, functools.partial(make, _name, _config))
