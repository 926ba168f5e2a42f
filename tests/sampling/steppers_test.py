"""Single sampler steps: closed forms, agreement with the conversions, orders of convergence."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, sampling
from diversedit_jax.interpolants import convert, times
from diversedit_jax.sampling import steppers, trajectory


def one(steps, i=0):
  return steppers.Step(*(c[i] for c in steps))


def test_drift_of_the_linear_path_is_the_closed_form():
  grid = np.array([1.0, 0.7, 0.31, 0.04, 0.0])
  steps = steppers.sde_steps(grid, interpolants.linear(), '2t')
  np.testing.assert_allclose(steps.x_weight, 1, rtol=1e-15)  # d = x + (2 - t) v
  np.testing.assert_allclose(steps.v_weight, 2 - grid[:-1], rtol=1e-15)


@pytest.mark.parametrize('name', interpolants.PATHS)
@pytest.mark.parametrize('diffusion', steppers.DIFFUSIONS)
def test_drift_and_noise_follow_from_the_score(name, diffusion):
  path = interpolants.PATHS[name]
  with jax.enable_x64(True):
    grid = np.array([1.0, 0.8, 0.5, 0.1, 0.0])
    steps = steppers.sde_steps(grid, path, diffusion)
    rng = np.random.default_rng(8)
    x, v = jnp.asarray(rng.normal(size=(2, 4, 2, 2, 3)))
    t_N = jnp.asarray(grid[:-1])
    s = convert.convert(v, x, t_N, path, source='velocity', target='score')
    sigma_N = np.asarray(path.sigma(t_N))
    w = {'2t': 2 * grid[:-1], '2sigma': 2 * sigma_N, 'sigma': sigma_N}[diffusion]
    wanted = v - w[:, None, None, None] * s / 2
    expand = lambda a_N: a_N[:, None, None, None]
    np.testing.assert_allclose(
      expand(steps.x_weight) * x + expand(steps.v_weight) * v, wanted, rtol=1e-11, atol=1e-12
    )
    np.testing.assert_allclose(steps.noise[:-1], np.sqrt(w * -np.diff(grid))[:-1], rtol=1e-13)
    assert steps.noise[-1] == 0
    np.testing.assert_array_equal(steps.dt, np.diff(grid))
    np.testing.assert_array_equal(steps.t_next, grid[1:])


def test_euler_maruyama_adds_scaled_noise_and_ignores_it_when_there_is_none():
  steps = steppers.sde_steps(np.array([1.0, 0.5, 0.0]), interpolants.linear(), '2t')
  velocity = lambda x, t: 3 * x + t
  x, z = jnp.asarray([[0.5, -1.0]]), jnp.asarray([[2.0, 0.25]])
  noisy = steppers.euler_maruyama(velocity, x, one(steps, 0), z)
  wanted = x - 0.5 * (x + 1.0 * (3 * x + 1.0)) + np.sqrt(2 * 1.0 * 0.5) * z
  np.testing.assert_allclose(noisy, wanted, rtol=1e-6)
  last = steppers.euler_maruyama(velocity, x, one(steps, 1), jnp.full_like(x, jnp.nan))
  np.testing.assert_allclose(last, x - 0.5 * (x + 1.5 * (3 * x + 0.5)), rtol=1e-6)


def test_euler_on_the_grid_of_rae(golden):
  """Its times are shifted and count grid points, the last of which is 0.007."""
  g = golden('time_shift')
  config = json.loads(str(g['config']))['shift']
  for i, (dimension, _) in enumerate(config['dims']):
    shift = times.shift_of(dimension)
    options = {'kind': 'euler', 'steps': config['steps'] - 1, 'end': 0.001, 'shift': shift}
    grid = trajectory.time_grid(sampling.SamplerConfig(**options))
    # The reference rounds 1 - 0.999 in float32.
    np.testing.assert_allclose(grid, g[f'shift/{i}/ode_grid'], rtol=2e-5)
    if not i:
      steps = steppers.ode_steps(grid)
  x, states = jnp.asarray(g['ode/noise']), [g['ode/noise']]
  velocity = lambda x, t: x - jnp.tanh(x) * (0.6 + 0.3 * (1 - t))
  for i in range(len(steps.t)):
    x = steppers.euler(velocity, x, one(steps, i))
    states.append(x)
  np.testing.assert_allclose(states, g['ode/trajectory'], rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(('stepper', 'order'), [(steppers.euler, 1), (steppers.heun, 2)])
def test_order_of_convergence(stepper, order):
  """dx/dt = x t has x(0) = x(1) exp(-1/2)."""
  with jax.enable_x64(True):

    def error(count):
      x = jnp.asarray(1.0)
      steps = steppers.ode_steps(np.linspace(1, 0, count + 1))
      for i in range(count):
        x = stepper(lambda x, t: x * t, x, one(steps, i))
      return abs(float(x) - np.exp(-0.5))

    # The observed order nears the true one as 1/count.
    np.testing.assert_allclose(np.log2(error(40) / error(80)), order, atol=0.1)


def both(x, t):
  """A velocity in which the two arrays of a state look at each other."""
  mean = jnp.mean(x['image'], axis=(1, 2, 3))[:, None]
  first = x['token'][:, :1, None, None]
  return {'image': jnp.sin(x['image']) * t + first, 'token': x['token'] * t - mean}


@pytest.mark.parametrize('kind', ['euler', 'heun', 'euler_maruyama'])
@pytest.mark.parametrize('last', [False, True])
def test_a_tree_moves_as_one_flat_array_does(kind, last):
  """Arrays of a state take the same step, each with its own velocity and noise."""
  rng = np.random.default_rng(4)
  draw = lambda: {
    'image': jnp.asarray(rng.normal(size=(2, 3, 3, 1)), jnp.float32),
    'token': jnp.asarray(rng.normal(size=(2, 5)), jnp.float32),
  }
  x, z = draw(), draw()
  flat = lambda x: jnp.concatenate([x['image'].reshape(2, 9), x['token']], axis=1)
  tree = lambda f: {'image': f[:, :9].reshape(2, 3, 3, 1), 'token': f[:, 9:]}
  grid, args = np.array([0.9, 0.4, 0.0]), ()
  if kind == 'euler_maruyama':
    steps, args = steppers.sde_steps(grid, interpolants.cosine(), '2t'), (z,)
  else:
    steps = steppers.ode_steps(grid)
  step, move = one(steps, int(last)), getattr(steppers, kind)
  found = move(both, x, step, *args)
  wanted = move(lambda f, t: flat(both(tree(f), t)), flat(x), step, *map(flat, args))
  assert found.keys() == x.keys()
  np.testing.assert_allclose(flat(found), wanted, rtol=1e-6, atol=1e-6)
  assert np.abs(flat(found) - flat(x)).min(axis=0).max() > 0.01
