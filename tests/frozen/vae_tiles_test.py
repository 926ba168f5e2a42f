"""Tiled decoding: exact where the decoder is local, bounded memory, weights that sum to 1."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.frozen import vae, vae_files, vae_tiles

SIZES = [(9, 8, 1), (16, 8, 2), (41, 16, 15), (113, 64, 16)]


def local(z_NHWC, factor=4):
  """Nearest neighbours: a decoder that sees no further than one latent."""
  return jnp.repeat(jnp.repeat(z_NHWC, factor, axis=1), factor, axis=2)


def draw(*shape):
  return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize('size, tile, overlap', SIZES)
def test_tiles_cover_the_axis_and_overlap_enough(size, tile, overlap):
  first = vae_tiles.starts(size, tile, overlap)
  assert first[0] == 0 and first[-1] == size - tile
  steps = np.diff(first)
  assert steps.min() >= 1 and steps.max() <= tile - overlap
  # One tile fewer could not reach the end.
  assert tile + (len(first) - 2) * (tile - overlap) < size


@pytest.mark.parametrize('factor', [1, 8])
@pytest.mark.parametrize('size, tile, overlap', SIZES)
def test_weights_are_a_partition_of_unity(size, tile, overlap, factor):
  weights = vae_tiles.weights(size, tile, overlap, factor)
  total = np.zeros(size * factor)
  for row, start in zip(weights, vae_tiles.starts(size, tile, overlap), strict=True):
    assert row.shape == (tile * factor,) and row.min() >= 0 and row.max() <= 1
    total[start * factor : (start + tile) * factor] += row
  np.testing.assert_allclose(total, 1, rtol=0, atol=2e-7)  # Two or three roundings to float32.


@pytest.mark.parametrize('shape', [(2, 19, 8), (3, 11, 14), (1, 5, 30)])
def test_a_local_decoder_is_reproduced(shape):
  z = draw(*shape, 2)
  tiled = functools.partial(vae_tiles.decode_tiled, local, factor=4, tile=8, overlap=3)
  x = jax.jit(tiled)(z)
  assert x.shape == (shape[0], 4 * shape[1], 4 * shape[2], 2)
  # Four weights, each a product of two roundings, and their sum.
  np.testing.assert_allclose(x, local(z), rtol=1e-6, atol=0)


def test_what_fits_a_tile_is_decoded_whole_and_exactly():
  autoencoder = vae_files.random(vae.VAEConfig(block_channels=(8, 16), norm_groups=4), 0)
  decode = functools.partial(autoencoder.decode, autoencoder.params)
  z = draw(2, 6, 8, 4)
  x = jax.jit(lambda z: vae_tiles.decode_tiled(decode, z, factor=2, tile=8, overlap=2))(z)
  np.testing.assert_array_equal(x, jax.jit(decode)(z))


@pytest.mark.parametrize('n, size', [(7, 6), (7, 20), (2, 20)])
def test_no_more_tiles_at_a_time_than_asked(n, size):
  """All tiles have one shape, so that one program serves them."""
  seen = set()

  def decode(z):
    seen.add(z.shape)
    return local(z)

  z = draw(n, size, size, 1)
  x = jax.jit(lambda z: vae_tiles.decode_tiled(decode, z, factor=4, tile=8, overlap=2, batch=3))(z)
  np.testing.assert_allclose(x, local(z), rtol=1e-6, atol=0)
  assert seen == {(min(n, 3), min(size, 8), min(size, 8), 1)}


def test_memory_does_not_grow_with_the_picture():
  """Except for a few copies of the picture itself."""

  def decode(z_NHWC):  # 64 channels in between, as a decoder has.
    wide = jnp.repeat(local(z_NHWC), 64, axis=-1)
    return jnp.cumsum(jnp.cumsum(jnp.sin(wide), axis=1), axis=2).sum(-1, keepdims=True)

  def memory(size, tile):
    z = jax.ShapeDtypeStruct((1, size, size, 1), 'float32')
    tiled = functools.partial(vae_tiles.decode_tiled, decode, factor=4, tile=tile, overlap=2)
    return jax.jit(tiled).lower(z).compile().memory_analysis().temp_size_in_bytes

  picture = 4 * (4 * 64) ** 2
  assert memory(64, 64) > 64 * picture
  assert memory(64, 8) < memory(16, 8) + 4 * picture < memory(64, 64) / 8


def test_tiles_that_disagree_pass_into_each_other_linearly():
  """A decoder that sees its whole tile, as a norm does: no step is larger than the ramp's."""
  tile, overlap, factor = 16, 4, 2
  decode = lambda z: local(z - z.mean((1, 2, 3), keepdims=True), factor)
  z = np.broadcast_to(np.linspace(0, 1, 40, dtype=np.float32)[None, None, :, None], (1, 5, 40, 1))
  options = {'factor': factor, 'tile': tile, 'overlap': overlap}
  found = jax.jit(functools.partial(vae_tiles.decode_tiled, decode, **options))(z)
  error = np.asarray(found - decode(z))[0, :, :, 0]
  # Two seams of three tiles, 12 latents apart: the means differ by 12 / 39.
  assert abs(error).max() > 0.2
  steps = np.diff(error, axis=1)
  ramp = 12 / 39 / (overlap * factor)
  np.testing.assert_allclose(abs(steps).max(), ramp, rtol=1e-4)
  # Both ramps have as many steps, the two at their ends being half as high.
  assert (abs(steps[0]) > 1e-5).sum() == 2 * (overlap * factor + 1)


def test_refused_sizes():
  decode = functools.partial(vae_tiles.decode_tiled, local, draw(1, 9, 9, 1), tile=8)
  with pytest.raises(types.UserError, match='1 <= overlap < tile.* found tile=8, overlap=8'):
    decode(factor=4, overlap=8)
  with pytest.raises(types.UserError, match=r'pixels \(1, 16, 16\), found \(1, 32, 32\)'):
    decode(factor=2, overlap=2)
