"""A tiny transformer with random weights that looks at the pictures of any source."""

import numpy as np

from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import family, vit
from diversedit_jax.weights import array_files

NAME = 'tiny-vit'


def make(request):
  """Four blocks of two heads, a class token and a register before the patches of the model."""
  rows, cols = request.grid
  config = vit.ViTConfig(
    width=16,
    depth=4,
    heads=2,
    hidden=24,
    patch_size=request.image_shape[0] // rows,
    channels=request.image_shape[2],
    registers=1,
    table=rows,
  )

  def load():
    generator, arrays = np.random.default_rng(3), {}
    for name, shape in vit.flat_shapes(config, (rows, cols)).items():
      value = generator.standard_normal(shape)
      fan_in = np.prod(shape[int(name.startswith('blocks/')) : -1])
      scale = 2 / np.sqrt(fan_in) if name.endswith('kernel') else 0.2
      arrays[name] = (scale * value + name.endswith('scale')).astype(np.float32)
    return array_files.unflatten(arrays)

  return encoders.Encoder(
    name=NAME,
    params=vit.params_shapes(config, (rows, cols), 'float32'),
    apply=lambda params, x_NHWC: family.features(params, x_NHWC, config, request.attention),
    load=load,
    image_shape=request.image_shape,
    flops=vit.flops(config, (rows, cols)),
    blocks=config.depth,
  )


def use(config):
  """Makes the encoder known, and a config for four blocks use it."""
  encoders.register(NAME, make)
  config.repa.pairs, config.haste.encoder = f'{NAME}@2', NAME
  config.haste.pairs = '1:2,2:3,3:4'
