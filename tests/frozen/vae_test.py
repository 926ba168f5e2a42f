"""The VAE against diffusers' `AutoencoderKL`: values on the way, dtypes, precision, cost."""

import dataclasses
import json

from flax import nnx
from helpers import jaxprs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.data import latents
from diversedit_jax.frozen import autoencoders, vae, vae_files

# The reference's own float32 pass is up to 1.3e-5 from its float64 pass (`fp32_noise_max_abs`),
# which is stored as float32, rounded by half a unit in the last place, 6e-8 of the value.
TOLERANCE = {'float32': {'atol': 2e-5, 'rtol': 1e-5}, 'float64': {'atol': 1e-9, 'rtol': 6.1e-8}}
# Inside, values go up to 12, and so does the noise; half of what the reference suggests.
INSIDE = TOLERANCE | {'float32': {'atol': 1e-4, 'rtol': 5e-5}}
SMALL = vae.VAEConfig(block_channels=(8, 16), layers_per_block=1, norm_groups=4)
OTHER = vae.VAEConfig(
  latent_channels=16,
  block_channels=(8, 16, 16),
  layers_per_block=1,
  norm_groups=4,
  scale=0.3611,
  shift=0.1159,
  quant_conv=False,
  post_quant_conv=False,
)


def nhwc(array, dtype='float32'):
  return np.moveaxis(array, 1, -1).astype(dtype)


def load(golden, dtype):
  arrays = golden('vae_tiny')
  weights = {name[3:]: array for name, array in arrays.items() if name.startswith('sd/')}
  return vae_files.from_arrays(weights, settings=json.loads(str(arrays['meta'])), dtype=dtype)


@pytest.fixture(scope='module')
def results(golden):
  """What the network makes of the reference's inputs, by dtype and name."""
  arrays, found = golden('vae_tiny'), {}
  for dtype in vae.DTYPES:
    wide = 'float32' if dtype == 'bfloat16' else dtype
    with jax.enable_x64(dtype == 'float64'):
      autoencoder = load(golden, dtype)
      encode, decode = jax.jit(autoencoder.encode), jax.jit(autoencoder.decode)
      moments = encode(autoencoder.params, nhwc(arrays['in/image'], wide))
      mean, logvar = jnp.split(moments, 2, axis=-1)
      out = {
        'moments': moments,
        'mean': mean,
        'logvar': jnp.clip(logvar, *latents.LOGVAR_RANGE),
        'std': latents.mean_std(moments)[..., mean.shape[-1] :],
        'decoded': decode(autoencoder.params, nhwc(arrays['in/latents'], wide)),
        'recon_mode': decode(autoencoder.params, mean),
      }
      assert {array.dtype for array in out.values()} == {jnp.dtype(wide)}
      found[dtype] = jax.tree.map(np.asarray, out)
  return found


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('name', ['moments', 'mean', 'logvar', 'std', 'decoded', 'recon_mode'])
def test_results_agree_with_diffusers(golden, results, name, dtype):
  expected = nhwc(golden('vae_tiny')[f'out/{name}'])
  np.testing.assert_allclose(results[dtype][name], expected, **TOLERANCE[dtype])


@pytest.mark.parametrize('dtype', TOLERANCE)
def test_values_on_the_way_agree(golden, dtype):
  arrays = golden('vae_tiny')

  def walk(params, x):
    model = nnx.merge(autoencoders._split(autoencoder.config, dtype)[0], params)
    found = {}
    h = found['encoder.conv_in'] = model.encoder.conv_in(x)
    for i, level in enumerate(model.encoder.down_blocks):
      h = found[f'encoder.down_blocks.{i}'] = level(h)
    found['encoder.mid_block'] = model.encoder.mid_block(h)
    z, _ = jnp.split(model.encode(x), 2, axis=-1)
    h = model.decoder.mid_block(model.decoder.conv_in(model.post_quant_conv(z)))
    found['decoder.mid_block'] = h
    found['decoder.up_blocks.0'] = model.decoder.up_blocks[0](h)
    return found

  with jax.enable_x64(dtype == 'float64'):
    autoencoder = load(golden, dtype)
    x = nhwc(arrays['in/image'][:1], dtype)
    found = jax.tree.map(np.asarray, jax.jit(walk)(autoencoder.params, x))
  names = [name for name in arrays if name.startswith('mid/')]
  assert len(names) == 6
  for name in names:
    np.testing.assert_allclose(found[name[4:]], nhwc(arrays[name]), **INSIDE[dtype])


def test_bfloat16_products_stay_near_float32(results):
  """Errors, measured: 0.0069 (moments), 0.0068 (decoded), 0.0089 (recon_mode) of the rms.

  A value has 8 bits, so a product is off by 0.002 of itself; some twenty layers in a row make that
  four times as much.
  """
  for name in ('moments', 'decoded', 'recon_mode'):
    exact, coarse = results['float64'][name], results['bfloat16'][name]
    error = np.sqrt(np.mean((coarse - exact) ** 2) / np.mean(exact**2))
    assert 1e-3 < error < 2e-2, (name, error)
    # The last layers are not in bfloat16: nearly all values need more than its 8 bits.
    assert np.mean(coarse != coarse.astype(jnp.bfloat16).astype(np.float32)) > 0.9


def unloaded(config, dtype='float32'):
  return autoencoders.Autoencoder(
    config=config,
    params=autoencoders.shapes(config),
    file='',
    encoder_sha256='',
    decoder_sha256='',
    dtype=dtype,
  )


def both_halves(autoencoder, size):
  config = autoencoder.config
  image = jax.ShapeDtypeStruct((1, *size, config.image_channels), 'float32')
  side = [pixels // config.factor for pixels in size]
  latent = jax.ShapeDtypeStruct((1, *side, config.latent_channels), 'float32')
  params = autoencoder.params
  return (
    jaxprs.products(autoencoder.encode, params, image),
    jaxprs.products(autoencoder.decode, params, latent),
  )


def test_float32_products_are_of_full_precision():
  """A TPU's and TF32's shorter products would change latents in the third digit."""
  highest = (jax.lax.Precision.HIGHEST,) * 2
  for half in both_halves(unloaded(SMALL), (16, 16)):
    assert len(half) > 15
    assert all(eqn.params['precision'] == highest for eqn in half)


def test_bfloat16_reaches_the_products():
  """All but those at the ends: two convolutions at the ends, and the 1x1 one."""
  for half in both_halves(unloaded(SMALL, 'bfloat16'), (16, 16)):
    kinds = [{str(v.aval.dtype) for v in eqn.invars} for eqn in half]
    assert kinds.count({'float32'}) == 3 and kinds.count({'bfloat16'}) == len(kinds) - 3


@pytest.mark.parametrize(
  'config, size',
  [
    (vae.VAEConfig(), (512, 256)),
    (OTHER, (24, 16)),
    (dataclasses.replace(OTHER, encoder_attention=(2,), decoder_attention=(1, 2)), (24, 16)),
  ],
  ids=['published', 'other', 'attention'],
)
def test_flops_are_those_of_the_traced_network(config, size):
  counted = [jaxprs.flops(half) for half in both_halves(unloaded(config), size)]
  assert tuple(counted) == vae.flops(config, *size)


def test_the_published_size():
  """83,653,863 parameters; multiply-adds of the published network, from its authors' code."""
  assert trees.count(autoencoders.shapes(vae.VAEConfig())) == 83_653_863
  for size, expected in ((256, (136.4e9, 311.1e9)), (512, (558e9, 1257e9))):
    found = np.array(vae.flops(vae.VAEConfig(), size, size)) / 2
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_another_autoencoder():
  """Three levels, 16 latent channels, no 1x1 convolutions, a shift, an oblong image."""
  autoencoder = vae_files.random(OTHER, 1)
  assert set(autoencoder.params) == {'encoder', 'decoder'}
  assert OTHER.factor == 4 and OTHER.scaling == latents.Scaling(scale=0.3611, shift=0.1159)
  x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 3)).astype(np.float32)
  moments = jax.jit(autoencoder.encode)(autoencoder.params, x)
  assert moments.shape == (2, 4, 6, 32)
  # Examples do not see each other.
  alone = jax.jit(autoencoder.encode)(autoencoder.params, x[1:])
  np.testing.assert_allclose(moments[1:], alone, rtol=0, atol=1e-5)
  back = jax.jit(autoencoder.decode)(autoencoder.params, moments[..., :16])
  assert back.shape == x.shape and 0.1 < float(jnp.std(back)) < 10


def test_refused_images_and_dtypes():
  small, image = unloaded(SMALL), jax.ShapeDtypeStruct((1, 4, 5, 3), 'float32')
  with pytest.raises(types.UserError, match='divisible by 2; found 4x5'):
    jax.eval_shape(small.encode, small.params, image)
  with pytest.raises(types.UserError, match="'bfloat17'; did you mean 'bfloat16'"):
    vae.VAE(SMALL, rngs=nnx.Rngs(0), dtype='bfloat17')
  with pytest.raises(types.UserError, match='JAX_ENABLE_X64=1'):
    vae.VAE(SMALL, rngs=nnx.Rngs(0), dtype='float64')


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'block_channels': ()}, 'at least one level'),
    ({'block_channels': (32, 0)}, 'block_channels must be whole numbers from 1, found 0'),
    ({'norm_groups': '32'}, "norm_groups must be .* found '32'"),
    ({'block_channels': (32, 48)}, r'norm_groups=32 does not divide every width of \(32, 48\)'),
    ({'scale': -1.0}, 'scale of latents must be positive'),
    ({'scale': (1.0, 2.0)}, 'scale must be one finite number or 4'),
    ({'shift': 'none'}, "shift must be .* found 'none'"),
  ],
)
def test_refused_configs(fields, message):
  with pytest.raises(types.UserError, match=message):
    vae.VAEConfig(**fields)
