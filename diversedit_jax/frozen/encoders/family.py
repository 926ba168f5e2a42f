"""The encoders of one paper: transformers of several sizes with the same input and file layout.

All take their input as in REPA (arXiv 2410.06940): 16 pixels of the image become one patch, along
each side. With patches of 14 pixels, 256 x 256 pixels are resized to 224 x 224; with patches of 16
they stay as they are; both give 16 x 16 tokens.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import math
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types
from diversedit_jax.frozen.encoders import base, files, preprocess, vit
from diversedit_jax.weights import array_files, location, misfits

PIXELS_PER_PATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """The encoders of one paper, with what they have in common.

  configs: transformers by name of the encoder.
  layout: function from a config to the layout of its weights file.
  published: function from the name of an encoder to its published file.
  pixels: function (x_NHWC in [-1, 1], (height, width)) -> input of the transformer, of that size.
  resampled: whether the position table is resampled for other grids than its own.
  """

  configs: Mapping[str, vit.ViTConfig]
  layout: Callable[[vit.ViTConfig], files.Layout]
  published: Callable[[str], files.Published]
  pixels: Callable[[jax.Array, tuple[int, int]], jax.Array] = preprocess.imagenet
  resampled: bool = True

  def register(self) -> None:
    """Makes the encoders known by name."""
    for name, config in self.configs.items():
      base.register(name, functools.partial(self.make, name, config))

  def make(self, name: str, config: vit.ViTConfig, request: base.Request) -> base.Encoder:
    """The encoder with a config.

    Raises:
      UserError: the pixels are not RGB, a side is not a multiple of 16, or the position table is
        not resampled and has another grid.
    """
    height, width, channels = request.image_shape
    grid = (height // PIXELS_PER_PATCH, width // PIXELS_PER_PATCH)
    if channels != config.channels or height % PIXELS_PER_PATCH or width % PIXELS_PER_PATCH:
      raise types.UserError(
        f'encoder {name!r} takes pixels with {config.channels} channels and sides divisible by '
        f'{PIXELS_PER_PATCH}; found {height}x{width}x{channels}'
      )
    if not self.resampled and grid != (config.table, config.table):
      side = config.table * PIXELS_PER_PATCH
      raise types.UserError(
        f'encoder {name!r} has positions for {config.table}x{config.table} tokens, which are not '
        f'resampled: it takes {side}x{side} pixels; found {height}x{width}'
      )
    size = (grid[0] * config.patch_size, grid[1] * config.patch_size)

    def apply(params: vit.Params, x_NHWC: jax.Array) -> base.Features:
      # In float32 at least, whatever the dtype of the products.
      wide = jnp.promote_types(request.dtype, jnp.float32)
      x_NHWC = self.pixels(x_NHWC.astype(wide), size)
      f_NTZ = vit.encode(params, x_NHWC, config).astype(jnp.float32)
      summary = f_NTZ[:, 0] if config.class_token else None
      return base.Features(tokens=f_NTZ[:, config.prefix :], summary=summary)

    def blaming(act: Callable[[], Any]) -> Any:
      try:
        return act()
      except types.UserError as error:
        prefix = f'{request.key}={request.weights!r}: ' if request.key else ''
        raise types.UserError(f'{prefix}{error}') from error

    load = functools.partial(self.load, name, config, request.weights, grid, request.dtype)
    resize = preprocess.resize_flops(height, width, *size, channels)
    return base.Encoder(
      name=name,
      params=vit.params_shapes(config, grid, request.dtype),
      apply=apply,
      load=lambda: blaming(load),
      file=lambda: blaming(lambda: location.name(self.find(name, config, request.weights))),
      image_shape=request.image_shape,
      flops=vit.flops(config, grid) + resize,
    )

  def load(
    self, name: str, config: vit.ViTConfig, weights: str, grid: tuple[int, int], dtype: str
  ) -> vit.Params:
    """Reads parameters as numpy arrays, the position table resampled to a grid (rows, cols).

    Raises:
      UserError: there is no such file (the message says where to get it), it is unreadable, or its
        names, shapes or dtypes are not the encoder's.
    """
    path, layout = self.find(name, config, weights), self.layout(config)
    arrays = files.proper_names(array_files.load(path, prefer=layout.parts), layout)
    if faults := self._faults(config, arrays):
      raise types.UserError(f'{path} does not hold the weights of {name!r}: {"; ".join(faults)}')
    source, flat = (config.table, config.table), {}
    for ours, shape in vit.flat_shapes(config, source).items():
      out = flat[ours] = np.empty(shape, vit.dtype_of(ours, dtype))
      # Each block is written into its place, so that one copy is made, not two.
      slots = out if ours.startswith('blocks/') else [out]
      for slot, theirs in zip(slots, layout.in_file(ours, config.depth), strict=True):
        array = arrays[theirs]
        array = array_files.kernel_from_torch(array) if ours.endswith('/kernel') else array
        slot[...] = array.reshape(slot.shape)
    flat['positions'] = preprocess.resample_table(flat['positions'], source, grid)
    return array_files.unflatten(flat)

  def fits(self, name: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays by the names of a file are the weights of an encoder."""
    config = self.configs[name]
    return not self._faults(config, files.proper_names(arrays, self.layout(config)))

  def _faults(self, config, arrays) -> list[str]:
    unused = self.layout(config).unused
    is_unused = lambda its: any(its == x or (x[-1] == '.' and its.startswith(x)) for x in unused)
    return misfits.find(arrays, self.shapes(config), unused=is_unused)

  def find(self, name: str, config: vit.ViTConfig, weights: str) -> pathlib.Path:
    """The weights file: `weights` itself, or a file with a known name in the folder `weights`.

    Raises:
      UserError: there is no such file; the message has its name, its size and the place to get it.
    """
    published = self.published(name)
    own = next(s for s in files.SUFFIXES if published.file.endswith(s))
    others = [suffix for suffix in files.SUFFIXES if suffix != own]
    size = published.size or sum(4 * math.prod(shape) for shape in self.shapes(config).values())
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

  def shapes(self, config: vit.ViTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that are read from a weights file, by their names there."""
    found, layout = {}, self.layout(config)
    for ours, shape in vit.flat_shapes(config, (config.table,) * 2).items():
      shape = shape[1:] if ours.startswith('blocks/') else shape
      if ours.endswith('/kernel'):
        shape = (*shape[:-3:-1], *shape[:-2])
      elif ours in ('class_token', 'positions', 'registers') and layout.leading:
        shape = (1,) * (3 - len(shape)) + shape
      found |= dict.fromkeys(layout.in_file(ours, config.depth), shape)
    return found
