"""The encoders of one paper: transformers of several sizes with the same input and file layout.

All take their input as in REPA (arXiv 2410.06940): 16 pixels of the image become one patch, along
each side. With patches of 14 pixels, 256 x 256 pixels are resized to 224 x 224; with patches of 16
they stay as they are; both give 16 x 16 tokens.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types
from diversedit_jax.frozen.encoders import base, files, preprocess, vit
from diversedit_jax.models import norms, taps
from diversedit_jax.weights import array_files, location

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
      return features(params, x_NHWC, config, request.attention, plain_norm=request.plain_norm)

    load = functools.partial(self.load, name, config, request.weights, grid, request.dtype)
    resize = preprocess.resize_flops(height, width, *size, channels)
    return base.Encoder(
      name=name,
      params=vit.params_shapes(config, grid, request.dtype),
      apply=apply,
      load=lambda: request.blamed(load),
      file=lambda: request.blamed(lambda: location.name(self.find(name, config, request.weights))),
      image_shape=request.image_shape,
      flops=vit.flops(config, grid) + resize,
      blocks=config.depth,
    )

  def load(
    self, name: str, config: vit.ViTConfig, weights: str, grid: tuple[int, int], dtype: str
  ) -> vit.Params:
    """Reads parameters as numpy arrays, the position table resampled to a grid (rows, cols).

    Raises:
      UserError: there is no such file (the message says where to get it), it is unreadable, or its
        names, shapes or dtypes are not the encoder's.
    """
    source = (config.table, config.table)
    flat = files.read(
      name,
      self.find(name, config, weights),
      self.layout(config),
      vit.flat_shapes(config, source),
      functools.partial(vit.dtype_of, dtype=dtype),
    )
    flat['positions'] = preprocess.resample_table(flat['positions'], source, grid)
    return array_files.unflatten(flat)

  def fits(self, name: str, arrays: Mapping[str, np.ndarray]) -> bool:
    """Whether arrays by the names of a file are the weights of an encoder."""
    config = self.configs[name]
    layout, flat = self.layout(config), vit.flat_shapes(config, (config.table,) * 2)
    return not layout.faults(flat, files.proper_names(arrays, layout))

  def find(self, name: str, config: vit.ViTConfig, weights: str) -> pathlib.Path:
    """The weights file, see `files.find`."""
    return files.find(name, self.published(name), weights, self.shapes(config))

  def shapes(self, config: vit.ViTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays that are read from a weights file, by their names there."""
    return self.layout(config).shapes(vit.flat_shapes(config, (config.table,) * 2))


def features(
  params: vit.Params,
  x_NHWC: jax.Array,
  config: vit.ViTConfig,
  attention: Sequence[int] = (),
  *,
  plain_norm: bool = False,
) -> base.Features:
  """Tokens, summary, and the attention of some blocks (from 1), of what a transformer takes in.

  plain_norm: see `base.Request`.
  """
  tap = taps.attention([block - 1 for block in attention]) if attention else taps.nothing()
  shown = dataclasses.replace(config, last_norm=False) if plain_norm else config
  f_NTZ, qk = vit.encode_and_tap(params, x_NHWC, shown, tap)
  f_NTZ = norms.normalise(f_NTZ, config.epsilon) if plain_norm else f_NTZ
  summary = vit.summarise(params, f_NTZ, config)
  # Class token and registers take no part in what is compared.
  queries, keys = (
    {block: x_NTHd[:, config.prefix :] for block, x_NTHd in zip(attention, found, strict=True)}
    for found in (qk or ((), ()))
  )
  return base.Features(
    tokens=f_NTZ[:, config.prefix :].astype(jnp.float32),
    summary=None if summary is None else summary.astype(jnp.float32),
    queries=queries,
    keys=keys,
  )
