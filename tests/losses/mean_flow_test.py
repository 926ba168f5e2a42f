"""MeanFlow's arithmetic around an analytic network, against the authors' code in float64."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.interpolants import times
from diversedit_jax.losses import mean_flow

CASES = (
  'no_guidance',
  'default',
  'omega2_kappa0',
  'omega0.2_kappa0.92',
  'interval',
  'drop',
  'p0.75_eps1e-3',
)
EXACT = {'rtol': 1e-11, 'atol': 1e-12}


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def arrays(golden):
  """The reference in float64; labels stay integers."""
  return {
    name: jnp.asarray(x, jnp.float64) if x.dtype.kind == 'f' else jnp.asarray(x)
    for name, x in golden('meanflow').items()
    if x.dtype.kind != 'U'
  }


def parameters(arrays):
  return {k.split('/')[1]: x for k, x in arrays.items() if k.startswith('u_params/')}


def network(params, z_NHWC, t_N, h_N, y_N):
  """Average velocity W2 tanh(W1 z + t a + h b + E[y]) + h c z."""
  z = z_NHWC.reshape(len(z_NHWC), -1)
  row = lambda name: params[name][None, :]
  t, h = t_N[:, None], h_N[:, None]
  hidden = jnp.tanh(z @ params['W1'].T + t * row('a') + h * row('b') + params['E'][y_N])
  return (hidden @ params['W2'].T + h * row('c') * z).reshape(z_NHWC.shape)


def settings(golden, name):
  config = json.loads(str(golden('meanflow')['config']))
  assert tuple(case['name'] for case in config['cases']) == CASES
  (case,) = (case for case in config['cases'] if case['name'] == name)
  return {**config['defaults'], **case, 'null': config['num_classes']}


def velocities(params, arrays, case):
  """(v_g, labels of the network) of a case."""
  v, z, t, y = (arrays[name] for name in ('v', 'z_t', 't', 'y'))
  if case.get('guidance_eq') == '':
    return v, y
  null = jnp.full_like(y, case['null'])
  at_once = functools.partial(network, params, z, t, jnp.zeros_like(t))
  v_g = mean_flow.guided_velocity(
    v,
    at_once(null),
    at_once(y),
    omega=case['omega'],
    kappa=case['kappa'],
    t_N=t,
    start=case['t_start'],
    end=case['t_end'],
  )
  dropped_N = jnp.arange(len(y)) < case.get('ndrop', 0)
  return jnp.where(dropped_N[:, None, None, None], v, v_g), jnp.where(dropped_N, null, y)


def derivative(params, arrays, v_g, y_N):
  """(u, du/dt) along (v_g, 1, 0) for (z, t, r)."""
  z, t, r = (arrays[name] for name in ('z_t', 't', 'r'))
  u = lambda z, t, r: network(params, z, t, t - r, y_N)
  return jax.jvp(u, (z, t, r), (v_g, jnp.ones_like(t), jnp.zeros_like(r)))


def loss_and_parts(params, arrays, case):
  v_g, y_N = velocities(params, arrays, case)
  u, du_dt = derivative(params, arrays, v_g, y_N)
  target = mean_flow.target(v_g, du_dt, arrays['t'], arrays['r'])
  error_N = mean_flow.squared_error(u, target)
  loss_N, weight_N = mean_flow.adaptive(error_N, power=case['norm_p'], constant=case['norm_eps'])
  parts = {
    'v_g': v_g,
    'y_inp': y_N,
    'u': u,
    'du_dt': du_dt,
    'u_target': target,
    'loss_per_sample_raw': error_N,
    'adaptive_weight': weight_N,
    'v_loss_per_sample': mean_flow.squared_error(u, arrays['v']),
  }
  return jnp.mean(loss_N), parts


@pytest.mark.parametrize('name', CASES)
def test_loss_and_gradients_match_reference(golden, arrays, name):
  case = settings(golden, name)
  grad = jax.jit(jax.value_and_grad(lambda p: loss_and_parts(p, arrays, case), has_aux=True))
  (loss, parts), gradients = grad(parameters(arrays))
  for part, value in parts.items():
    np.testing.assert_allclose(value, arrays[f'{name}/{part}'], **EXACT, err_msg=part)
  np.testing.assert_allclose(loss, arrays[f'{name}/loss'], **EXACT)
  for leaf, gradient in gradients.items():
    wanted = arrays[f'{name}/grad/{leaf}']
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(gradient, wanted, rtol=1e-9, atol=1e-11 * scale, err_msg=leaf)


def test_cases_differ_where_guidance_acts(arrays):
  """Guards the test above: the stored cases exercise the interval, the labels and the target."""
  t = np.asarray(arrays['t'])
  inside = (t >= 0.4) & (t <= 0.8)
  assert inside.any() and not inside.all()
  moved = np.abs(arrays['interval/v_g'] - arrays['v']).max(axis=(1, 2, 3)) > 1e-3
  np.testing.assert_array_equal(moved, inside)
  assert np.abs(arrays['default/u_target'] - arrays['default/v_g']).max() > 1e-2


def test_interval_includes_both_ends():
  v, v_null, v_class = (jnp.full((5, 2), x) for x in (1.0, 10.0, 100.0))
  t_N = jnp.asarray([0.24, 0.25, 0.5, 0.75, 0.76])
  v_g = mean_flow.guided_velocity(
    v, v_null, v_class, omega=2.0, kappa=0.5, t_N=t_N, start=0.25, end=0.75
  )
  # 2 * 1 - 1.5 * 10 + 0.5 * 100 inside.
  np.testing.assert_allclose(v_g[:, 0], [1, 37, 37, 37, 1], rtol=1e-14)


def times_of(normals_t, normals_r, **options):
  """(t_N, r_N) from standard normal draws by MeanFlow's law of time."""
  law = times.LogitNormal(mean=-0.4, std=1.0)
  draws = law.from_normal(normals_t), law.from_normal(normals_r)
  return mean_flow.ordered_times(*draws, **options)


def test_times_match_reference(arrays):
  t_N, r_N = times_of(arrays['normals_t'], arrays['normals_r'])
  np.testing.assert_allclose(t_N, arrays['sampled_t'], **EXACT)
  np.testing.assert_allclose(r_N, arrays['sampled_r'], **EXACT)


def test_ordered_times():
  a_N, b_N = jnp.asarray([0.1, 0.9, 0.3, 0.4]), jnp.asarray([0.2, 0.5, 0.8, 0.4])
  # int(0.3 * 4) = 1 example has r = t.
  t_N, r_N = mean_flow.ordered_times(a_N, b_N, equal_fraction=0.3)
  np.testing.assert_array_equal(t_N, [0.2, 0.9, 0.8, 0.4])
  np.testing.assert_array_equal(r_N, [0.2, 0.5, 0.3, 0.4])
  t_N, r_N = mean_flow.ordered_times(a_N, b_N, equal_fraction=1.0)
  np.testing.assert_array_equal(t_N, r_N)
  for fraction in (-0.1, 1.1):
    with pytest.raises(types.UserError, match='equal_fraction'):
      mean_flow.ordered_times(a_N, b_N, equal_fraction=fraction)


def test_samples_match_reference(arrays):
  params, e, y = parameters(arrays), arrays['noise'], arrays['y']
  constant = lambda x: jnp.full(len(y), x)
  one = e - network(params, e, constant(1.0), constant(1.0), y)
  np.testing.assert_allclose(one, arrays['sample/one_step'], **EXACT)
  middle = e - 0.5 * network(params, e, constant(1.0), constant(0.5), y)
  np.testing.assert_allclose(middle, arrays['sample/two_step_mid'], **EXACT)
  two = middle - 0.5 * network(params, middle, constant(0.5), constant(0.5), y)
  np.testing.assert_allclose(two, arrays['sample/two_step'], **EXACT)


def finite_difference(loss, params, seed=3):
  """Derivatives of a loss along a random direction of the parameters: by JAX, by differences."""
  rng = np.random.default_rng(seed)
  direction = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), params)
  move = lambda s: jax.tree.map(lambda x, d: x + s * d, params, direction)
  along = jax.jit(lambda s: loss(move(s)))
  h = 1e-5
  gradient = jax.jit(jax.grad(loss))(params)
  slope = sum(jnp.vdot(gradient[name], direction[name]) for name in params)
  return slope, (along(h) - along(-h)) / (2 * h)


def test_gradient_is_the_finite_difference_with_target_and_weight_held(golden, arrays):
  case = settings(golden, 'drop')
  params = parameters(arrays)
  _, parts = loss_and_parts(params, arrays, case)

  def held(p):
    u = network(p, arrays['z_t'], arrays['t'], arrays['t'] - arrays['r'], parts['y_inp'])
    error_N = mean_flow.squared_error(u, parts['u_target'])
    return jnp.mean(parts['adaptive_weight'] * error_N)

  slope, wanted = finite_difference(held, params)
  np.testing.assert_allclose(slope, wanted, rtol=1e-7)
  ours = jax.jit(jax.grad(lambda p: loss_and_parts(p, arrays, case)[0]))(params)
  for leaf, gradient in jax.jit(jax.grad(held))(params).items():
    np.testing.assert_allclose(ours[leaf], gradient, rtol=1e-9, atol=1e-12)


def test_improved_prediction(golden, arrays):
  case = settings(golden, 'default')
  params = parameters(arrays)
  t, r = arrays['t'], arrays['r']
  v_g, y_N = velocities(params, arrays, case)
  u, du_dt = derivative(params, arrays, v_g, y_N)
  h = (t - r)[:, None, None, None]
  prediction = mean_flow.improved_prediction(u, du_dt, t, r)
  np.testing.assert_allclose(prediction, u + h * du_dt, rtol=1e-14)
  # The same error as MeanFlow's, seen from the other side.
  target = mean_flow.target(v_g, du_dt, t, r)
  np.testing.assert_allclose(prediction - v_g, u - target, rtol=1e-10, atol=1e-13)

  def loss(p, hold=None):
    u, moving = derivative(p, arrays, v_g, y_N)
    prediction = mean_flow.improved_prediction(u, moving if hold is None else hold, t, r)
    return jnp.mean(mean_flow.squared_error(prediction, v_g))

  slope, wanted = finite_difference(lambda p: loss(p, du_dt), params)
  np.testing.assert_allclose(slope, wanted, rtol=1e-7)
  held = jax.jit(jax.grad(lambda p: loss(p, du_dt)))(params)
  for leaf, gradient in jax.jit(jax.grad(loss))(params).items():
    np.testing.assert_allclose(gradient, held[leaf], rtol=1e-9, atol=1e-12)


def test_target_clips_the_interval_and_is_constant():
  v_g, du_dt = jnp.ones((3, 2)), jnp.full((3, 2), 2.0)
  t_N, r_N = jnp.asarray([0.5, 0.2, 3.0]), jnp.asarray([0.25, 0.7, 1.0])
  target = mean_flow.target(v_g, du_dt, t_N, r_N)
  np.testing.assert_allclose(target[:, 0], [0.5, 1, -1], rtol=1e-14)
  gradients = jax.grad(lambda *a: mean_flow.target(*a).sum(), argnums=(0, 1, 2, 3))(
    v_g, du_dt, t_N, r_N
  )
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(('power', 'constant'), [(1.0, 0.01), (0.5, 1e-3), (0.0, 0.01)])
def test_adaptive_scales_the_gradient_by_the_weight(power, constant):
  error_N = jnp.asarray([0.0, 0.3, 40.0])
  loss_N, weight_N = mean_flow.adaptive(error_N, power=power, constant=constant)
  np.testing.assert_allclose(weight_N, (np.asarray(error_N) + constant) ** -power, rtol=1e-14)
  np.testing.assert_allclose(loss_N, weight_N * error_N, rtol=1e-14)
  options = {'power': power, 'constant': constant}
  gradient = jax.grad(lambda e: mean_flow.adaptive(e, **options)[0].sum())(error_N)
  np.testing.assert_allclose(gradient, weight_N, rtol=1e-14)


def test_bfloat16_velocities_are_combined_in_float32():
  array = lambda *x: jnp.asarray(x, jnp.bfloat16).reshape(2, 1)
  t_N, r_N = jnp.asarray([1.0, 0.5], jnp.bfloat16), jnp.asarray([0.5, 0.5], jnp.bfloat16)
  one, tiny = array(1, 1), array(2.0**-12, 2.0**-12)
  wanted = np.asarray([[1 + 2.0**-13], [1]], np.float32)  # 1 if rounded to bfloat16.
  for value in (
    mean_flow.improved_prediction(one, tiny, t_N, r_N),
    mean_flow.target(one, -tiny, t_N, r_N),
  ):
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, wanted)
  omega = 1 + 2.0**-12
  guided = mean_flow.guided_velocity(one, 0 * one, 0 * one, omega=omega, kappa=0.0, t_N=t_N)
  assert guided.dtype == jnp.float32
  np.testing.assert_array_equal(guided, np.float32(omega))
  error_N = mean_flow.squared_error(array(256, 0), array(0.5, 3))
  assert error_N.dtype == jnp.float32
  np.testing.assert_array_equal(error_N, np.asarray([255.5**2, 9], np.float32))


def test_float32_matches_reference(golden, arrays):
  case = settings(golden, 'default')
  single = {k: x.astype(jnp.float32) if x.dtype == jnp.float64 else x for k, x in arrays.items()}
  loss, parts = loss_and_parts(parameters(single), single, case)
  assert loss.dtype == jnp.float32
  for part in ('v_g', 'u_target', 'loss_per_sample_raw', 'adaptive_weight'):
    assert parts[part].dtype == jnp.float32
    np.testing.assert_allclose(parts[part], arrays[f'default/{part}'], rtol=2e-5, atol=2e-5)
  t_N, r_N = times_of(single['normals_t'], single['normals_r'])
  assert t_N.dtype == r_N.dtype == jnp.float32
  np.testing.assert_allclose(r_N, arrays['sampled_r'], rtol=1e-6)


def test_squared_error_refuses_shapes_that_would_broadcast():
  with pytest.raises(ValueError, match=r'\(2, 3\).*\(2, 1\)'):
    mean_flow.squared_error(jnp.ones((2, 3)), jnp.ones((2, 1)))
