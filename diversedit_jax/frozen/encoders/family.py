"""The encoders of one paper: transformers of several sizes with the same input and file layout.

All take their input as in REPA (arXiv 2410.06940): 16 pixels of the image become one patch, along
each side. With patches of 14 pixels, 256 x 256 pixels are resized to 224 x 224; with patches of 16
they stay as they are; both give 16 x 16 tokens.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax import types
from diversedit_jax.frozen.encoders import base, files, preprocess, vit

PIXELS_PER_PATCH = 16


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
  """What sets the encoders of one paper apart.

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
      file=lambda: blaming(lambda: self.find(name, config, request.weights).name),
      image_shape=request.image_shape,
      flops=vit.flops(config, grid) + resize,
    )

  def load(
    self, name: str, config: vit.ViTConfig, weights: str, grid: tuple[int, int], dtype: str
  ) -> vit.Params:
    """Parameters as numpy arrays, the position table resampled to a grid (rows, cols).

    Raises:
      UserError: there is no such file (the message says where to get it), or it holds something
        else.
    """
    path = self.find(name, config, weights)
    return files.load(path, name, config, self.layout(config), grid, dtype)

  def find(self, name: str, config: vit.ViTConfig, weights: str) -> pathlib.Path:
    """The weights file; see `files.find`."""
    return files.find(name, self.published(name), self.shapes(config), weights)

  def shapes(self, config: vit.ViTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that are read from a weights file, by their names there."""
    return files.shapes(config, self.layout(config))
