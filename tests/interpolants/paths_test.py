"""Path coefficients, interpolation and velocity targets."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'golden' / 'interpolant.npz')
COEFFICIENTS = ('alpha', 'sigma', 'd_alpha', 'd_sigma')


def nhwc(name):
  return np.moveaxis(GOLDEN[name], 1, -1)


@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_matches_reference(name):
  path = interpolants.PATHS[name]
  for coefficient in COEFFICIENTS:
    # One float32 cosine of an angle up to pi/2.
    found = getattr(path, coefficient)(jnp.asarray(GOLDEN['t']))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, GOLDEN[f'{name}/{coefficient}'], rtol=1e-6, atol=2e-7)
  arguments = (nhwc('images'), nhwc('noises'), GOLDEN['t'])
  wanted = {interpolants.interpolate: 'x_t', interpolants.velocity_target: 'v'}
  for function, output in wanted.items():
    found = function(path, *map(jnp.asarray, arguments))
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, nhwc(f'{name}/{output}'), rtol=1e-5, atol=2e-6)
    with jax.enable_x64(True):
      found = function(path, *(jnp.asarray(a, jnp.float64) for a in arguments))
      np.testing.assert_allclose(found, nhwc(f'{name}/{output}_f64'), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize('name', interpolants.PATHS)
def test_derivatives_are_derivatives(name):
  path = interpolants.PATHS[name]
  with jax.enable_x64(True):
    t_N = jnp.linspace(0.01, 1, 23)
    for coefficient in ('alpha', 'sigma'):
      by_jax = jax.vmap(jax.grad(getattr(path, coefficient)))(t_N)
      np.testing.assert_allclose(getattr(path, f'd_{coefficient}')(t_N), by_jax, rtol=1e-11)


@pytest.mark.parametrize('name', interpolants.PATHS)
def test_runs_from_data_to_noise(name):
  path = interpolants.PATHS[name]
  assert path.name == name
  ends = np.array([0.0, 1.0])
  np.testing.assert_allclose(path.alpha(ends), [1, 0], atol=7e-3 if name == 'vp' else 1e-15)
  np.testing.assert_allclose(path.sigma(ends), [0, 1], atol=3e-5 if name == 'vp' else 1e-15)
  t_N = np.linspace(0, 1, 50)
  assert (np.diff(path.alpha(t_N)) < 0).all() and (np.diff(path.sigma(t_N)) > 0).all()
  if name != 'linear':  # Variance preserving.
    np.testing.assert_allclose(path.alpha(t_N) ** 2 + path.sigma(t_N) ** 2, 1, rtol=1e-14)


@pytest.mark.parametrize('name', interpolants.PATHS)
def test_coefficients_are_finite_as_near_to_the_ends_as_promised(name):
  path = interpolants.PATHS[name]
  t_N = jnp.asarray([path.epsilon, 1 - path.epsilon], jnp.float32)
  for coefficient in COEFFICIENTS:
    assert jnp.isfinite(getattr(path, coefficient)(t_N)).all()
  # sigma of the vp path near zero: no cancellation in 1 - alpha^2.
  with jax.enable_x64(True):
    wanted = path.sigma(t_N.astype(jnp.float64))
  np.testing.assert_allclose(path.sigma(t_N), wanted, rtol=1e-5)


@pytest.mark.parametrize('name', interpolants.PATHS)
def test_numpy_stays_numpy_in_float64(name):
  path = interpolants.PATHS[name]
  for function in (*COEFFICIENTS, 'time_of_ratio'):
    found = getattr(path, function)(np.array([0.3, 0.4]))
    assert isinstance(found, np.ndarray) and found.dtype == np.float64


@pytest.mark.parametrize('name', interpolants.PATHS)
def test_time_of_ratio_inverts_the_ratio(name):
  path = interpolants.PATHS[name]
  t_N = np.linspace(1e-4, 0.999, 31)
  ratio_N = path.sigma(t_N) / path.alpha(t_N)
  np.testing.assert_allclose(path.time_of_ratio(ratio_N), t_N, rtol=1e-10)
