"""Conversions between predictions: round trips, reference scores, singular ends."""

import itertools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, types
from diversedit_jax.interpolants import convert as convert_lib

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'golden' / 'interpolant.npz')


def nhwc(name):
  return np.moveaxis(GOLDEN[name], 1, -1)


def truth(path, t_N):
  """x_t and what each kind of prediction is for known data and noise."""
  rng = np.random.default_rng(7)
  x0, e = jnp.asarray(rng.normal(size=(2, len(t_N), 3, 3, 2)))
  x_t = interpolants.interpolate(path, x0, e, t_N)
  v = interpolants.velocity_target(path, x0, e, t_N)
  sigma = path.sigma(t_N)[:, None, None, None]
  return x_t, {'x0': x0, 'epsilon': e, 'velocity': v, 'score': -e / sigma}


@pytest.mark.parametrize('name', interpolants.PATHS)
@pytest.mark.parametrize(
  ('source', 'target'), list(itertools.product(convert_lib.KINDS, convert_lib.KINDS))
)
def test_every_pair_gives_the_truth_and_back(name, source, target):
  path = interpolants.PATHS[name]
  with jax.enable_x64(True):
    t_N = jnp.asarray([0.05, 0.3, 0.5, 0.9, 0.98])
    x_t, kinds = truth(path, t_N)
    there = convert_lib.convert(kinds[source], x_t, t_N, path, source=source, target=target)
    # Divisors go down to 0.007 (alpha of vp at 0.98), squared in vp's velocity.
    np.testing.assert_allclose(there, kinds[target], rtol=1e-9, atol=1e-10)
    back = convert_lib.convert(there, x_t, t_N, path, source=target, target=source)
    np.testing.assert_allclose(back, kinds[source], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_score_matches_reference(name):
  with jax.enable_x64(True):
    found = convert_lib.convert(
      jnp.asarray(nhwc(f'{name}/score_v_in')[1:], jnp.float64),
      jnp.asarray(nhwc(f'{name}/x_t')[1:], jnp.float64),
      jnp.asarray(GOLDEN['t'][1:], jnp.float64),
      interpolants.PATHS[name],
      source='velocity',
      target='score',
    )
  # The reference is -e/sigma written as a quotient by sigma^2 - (alpha/alpha') sigma' sigma.
  np.testing.assert_allclose(found, nhwc(f'{name}/score_f64'), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_velocity_is_regular_at_both_ends(name):
  path = interpolants.PATHS[name]
  with jax.enable_x64(True):
    t_N = jnp.asarray([0.0, 1.0])
    x_t, kinds = truth(path, t_N)
    for target in ('x0', 'epsilon'):
      found = convert_lib.convert(
        kinds['velocity'], x_t, t_N, path, source='velocity', target=target
      )
      np.testing.assert_allclose(found, kinds[target], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize('name', interpolants.PATHS)
def test_singular_ends_are_finite_in_float32(name):
  path = interpolants.PATHS[name]
  t_N = jnp.asarray([path.epsilon, 1.0], jnp.float32)
  value, x_t = jnp.ones((2, 2, 4, 4, 3), jnp.float32)
  for source, target in itertools.product(convert_lib.KINDS, convert_lib.KINDS):
    found = convert_lib.convert(value, x_t, t_N, path, source=source, target=target)
    assert found.dtype == jnp.float32 and jnp.isfinite(found).all(), (source, target)


@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_a_clamped_velocity_of_data_is_the_true_one_times_sigma_over_the_clamp(name):
  path, clamp = interpolants.PATHS[name], 0.1
  with jax.enable_x64(True):
    t_N = jnp.asarray([0.0, 0.02, 0.05, 0.3, 1.0])
    x_t, kinds = truth(path, t_N)
    v = convert_lib.convert(
      kinds['x0'], x_t, t_N, path, source='x0', target='velocity', clamp=clamp
    )
    short = jnp.minimum(path.sigma(t_N) / clamp, 1)[:, None, None, None]
    np.testing.assert_allclose(v, short * kinds['velocity'], rtol=1e-9, atol=1e-12)
    if name == 'linear':
      wanted = (x_t - kinds['x0']) / np.maximum(t_N, clamp)[:, None, None, None]
      np.testing.assert_allclose(v, wanted, rtol=1e-9, atol=1e-12)
    # Read as a velocity, it means data that lie so far on the way from x_t only.
    back = convert_lib.convert(v, x_t, t_N, path, source='velocity', target='x0')
    far = t_N > 0.1
    np.testing.assert_allclose(back[far], kinds['x0'][far], rtol=1e-9)
    if name == 'linear':
      np.testing.assert_allclose(back, x_t + short * (kinds['x0'] - x_t), rtol=1e-9, atol=1e-12)


def test_unknown_kind_names_the_nearest():
  x = jnp.ones((1, 2, 2, 1))
  with pytest.raises(types.UserError, match="'epsilom'; did you mean 'epsilon'"):
    convert_lib.convert(
      x, x, jnp.ones(1), interpolants.linear(), source='epsilom', target='velocity'
    )
