"""Latents against diffusers' posterior and REPA's handling of stored moments, and back again."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data import images, latents

# The values of the reference are float32.
RTOL, ATOL = 1e-5, 1e-6


def close(found, expected):
  np.testing.assert_allclose(nchw(found), expected, rtol=RTOL, atol=ATOL)


def nhwc(array):
  return jnp.asarray(np.moveaxis(array, 1, -1))


def nchw(array):
  return np.moveaxis(np.asarray(array), -1, 1)


@pytest.fixture
def arrays(golden):
  return golden('latents')


def test_constants_are_those_of_the_reference(arrays):
  meta = json.loads(str(arrays['meta']))
  assert latents.Scaling().scale == meta['scaling_factor'] and latents.Scaling().shift == 0
  assert list(latents.LOGVAR_RANGE) == meta['logvar_clamp']


def test_moments_become_mean_and_std(arrays):
  moments = nhwc(arrays['in/moments_mean_logvar'])
  logvar = arrays['in/moments_mean_logvar'][:, 4:]
  assert (logvar < -30).any() and (logvar > 20).any()
  found = latents.mean_std(moments)
  np.testing.assert_array_equal(found[..., :4], moments[..., :4])
  close(found[..., 4:], arrays['out/std'])
  close(found[..., 4:], np.exp(arrays['out/logvar_clamped'] / 2))


def test_samples_of_the_posterior(arrays):
  stored = latents.mean_std(nhwc(arrays['in/moments_mean_logvar']))
  eps = nhwc(arrays['in/eps'])
  close(latents.sample(stored, eps, latents.Scaling()), arrays['out/z'])
  mode = latents.sample(stored, jnp.zeros_like(eps), latents.Scaling())
  close(mode, arrays['out/mode_scaled'])


def test_samples_of_stored_moments(arrays):
  """The second half of what REPA stores is a standard deviation."""
  stored = nhwc(arrays['in/moments_mean_std'])
  found = jax.jit(latents.sample, static_argnums=2)(
    stored, nhwc(arrays['in/eps']), latents.Scaling()
  )
  close(found, arrays['out/z_from_mean_std'])
  half = latents.sample(stored.astype(jnp.bfloat16), nhwc(arrays['in/eps']), latents.Scaling())
  assert half.dtype == jnp.float32


def test_a_scale_and_a_shift_for_each_channel(arrays):
  """z * scale + bias is (z - shift) * scale with shift = -bias / scale."""
  scale, bias = (arrays[f'in/{name}4'].astype(np.float64) for name in ('scale', 'bias'))
  scaling = latents.Scaling(scale=scale, shift=-bias / scale)
  assert hash(scaling) == hash(latents.Scaling(scale=list(scale), shift=list(-bias / scale)))
  stored, eps = nhwc(arrays['in/moments_mean_std']), nhwc(arrays['in/eps'])
  close(latents.sample(stored, eps, scaling), arrays['out/z_scale_bias'])
  close(scaling.undo(nhwc(arrays['out/z_scale_bias'])), arrays['out/back_scale_bias'])
  found = latents.Scaling().undo(nhwc(arrays['in/model_latents']))
  close(found, arrays['out/decoder_input'])


def test_decoded_pixels_become_levels_by_truncation(arrays):
  found = images.to_uint8(arrays['in/decoder_output'], 'truncate')
  np.testing.assert_array_equal(found, arrays['out/decoded_uint8'])
  assert (found != arrays['control/decoded_uint8_if_rounded']).mean() > 0.2


@pytest.mark.parametrize('scale', [-0.18215, float('nan'), (1.0, 0.0)])
def test_refused_scales(scale):
  with pytest.raises(types.UserError, match='must be positive'):
    latents.Scaling(scale=scale)
