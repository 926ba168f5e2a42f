"""Guidance: its interval, its channels, the order of the doubled batch."""

import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.sampling import guidance as guidance_lib

Guidance = guidance_lib.Guidance


def test_interval_includes_both_ends():
  t = np.array([1.0, 0.7, 0.699, 0.3, 0.2999, 0.0])
  np.testing.assert_array_equal(
    Guidance(low=0.3, high=0.7).inside(t), [False, True, True, True, False, False]
  )
  assert Guidance().inside(t).all()


def test_an_open_interval_is_that_of_jit():
  """On JiT's clock s = 1 - t: s < high, and low = 0 or s > low."""
  t = np.array([1.0, 0.75, 0.5, 0.25, 0.0])
  for low, high in ((0.0, 0.75), (0.25, 1.0), (0.25, 0.75), (0.0, 1.0)):
    wanted = (1 - t < high) & ((low == 0) | (1 - t > low))
    found = Guidance(low=1 - high, high=1 - low, open=True).inside(t)
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(('channels', 'guided'), [(None, 4), (3, 3), (4, 4)])
def test_only_the_first_channels_are_guided(channels, guided):
  rng = np.random.default_rng(9)
  v_class, v_null = jnp.asarray(rng.normal(size=(2, 2, 3, 3, 4)), jnp.float32)
  v = Guidance(scale=1.8, channels=channels).combine(v_class, v_null)
  np.testing.assert_allclose(
    v[..., :guided], (v_null + 1.8 * (v_class - v_null))[..., :guided], rtol=1e-6
  )
  np.testing.assert_array_equal(v[..., guided:], v_class[..., guided:])


def test_one_call_with_classes_first_and_null_second():
  calls = []

  def predict(x_NHWC, t_N, y_N):
    calls.append((x_NHWC, t_N, y_N))
    return jnp.broadcast_to(y_N[:, None, None, None].astype(jnp.bfloat16), x_NHWC.shape)

  x_NHWC = jnp.arange(2 * 2 * 2 * 1, dtype=jnp.float32).reshape(2, 2, 2, 1)
  v = guidance_lib.guided_velocity(
    predict,
    x_NHWC,
    jnp.float32(0.25),
    jnp.array([3, 5], jnp.int32),
    Guidance(scale=2.0).combine,
    10,
  )
  [(x, t_N, y_N)] = calls
  np.testing.assert_array_equal(x, np.concatenate([x_NHWC, x_NHWC]))
  np.testing.assert_array_equal(t_N, np.full(4, 0.25, np.float32))
  np.testing.assert_array_equal(y_N, [3, 5, 10, 10])
  assert v.dtype == jnp.float32  # Cast before the difference is amplified.
  np.testing.assert_array_equal(v[:, 0, 0, 0], [10 + 2 * (3 - 10), 10 + 2 * (5 - 10)])


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'scale': -1.0}, 'scale is -1.0'),
    ({'scale': float('nan')}, 'scale is nan'),
    ({'low': 0.8, 'high': 0.7}, r'interval is \[0.8, 0.7\]'),
    ({'high': 1.2}, r'interval is \[0.0, 1.2\]'),
    ({'channels': 0}, 'guidance of 0 channels'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(types.UserError, match=message):
    Guidance(**options)


def test_refuses_more_channels_than_there_are():
  with pytest.raises(types.UserError, match='guidance of 5 channels, but the state has 4'):
    guidance_lib.guided_velocity(
      lambda x, t, y: x,
      jnp.zeros((1, 2, 2, 4)),
      jnp.float32(1),
      jnp.zeros(1, jnp.int32),
      Guidance(scale=2.0, channels=5).combine,
      10,
    )
