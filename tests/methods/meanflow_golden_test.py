"""MeanFlow on an analytic network: losses, gradients, times and samples are the reference's."""

import json

from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.methods import meanflow
from diversedit_jax.sampling import average, trajectory

CASES = (
  'no_guidance',
  'default',
  'omega2_kappa0',
  'omega0.2_kappa0.92',
  'interval',
  'drop',
  'p0.75_eps1e-3',
)


@pytest.fixture
def arrays(golden):
  with jax.enable_x64(True):
    yield {
      name: jnp.asarray(x, jnp.float64) if x.dtype.kind == 'f' else jnp.asarray(x)
      for name, x in golden('meanflow').items()
      if x.dtype.kind != 'U'
    }


def analytic(params, z_NHWC, t_N, r_N, y_N):
  """Average velocity W2 tanh(W1 z + t a + h b + E[y]) + h c z."""
  z = z_NHWC.reshape(len(z_NHWC), -1)
  row = lambda name: params[name][None, :]
  t, h = t_N[:, None], (t_N - r_N)[:, None]
  hidden = jnp.tanh(z @ params['W1'].T + t * row('a') + h * row('b') + params['E'][y_N])
  return (hidden @ params['W2'].T + h * row('c') * z).reshape(z_NHWC.shape)


def parameters(arrays):
  return {k.split('/')[1]: x for k, x in arrays.items() if k.startswith('u_params/')}


def flow_of(case, **fields):
  """Our objective with the settings of a case of the reference."""
  unguided = case.get('guidance_eq') == ''
  return tiny.mean_flow(
    null_label=4,
    omega=1.0 if unguided else case['omega'],
    kappa=0.0 if unguided else case['kappa'],
    start=case['t_start'],
    end=case['t_end'],
    power=case['norm_p'],
    constant=case['norm_eps'],
    **fields,
  )


def reference_batch(arrays, y_N, ndrop):
  noisy = tiny.noisy_of(
    arrays['x'],
    arrays['noise'],
    y_N,
    arrays['t'],
    {'h': jnp.zeros(8), 'dropped': jnp.arange(8) < ndrop},
  )
  noisy = tiny.mean_flow().at(noisy, noisy.t)  # This makes x_t and v; h is lost.
  noisy.extras['h'] = arrays['t'] - arrays['r']
  return noisy


def loss_of(flow, params, noisy):
  """(mean loss, (features, loss_N, metrics)); the velocity has no gradient, as in the method."""
  held = jax.lax.stop_gradient(params)
  velocity = lambda z, t_N, y_N: analytic(held, z, t_N, t_N, y_N)
  predict = lambda z, t_N, r_N, y_N, tap: (analytic(params, z, t_N, r_N, y_N), (r_N, tap))
  features, loss_N, metrics = flow.loss(predict, velocity, noisy, 'tap')
  assert features[1] == 'tap'
  return jnp.mean(loss_N), (features[0], loss_N, metrics)


def case_of(golden, name):
  config = json.loads(str(golden('meanflow')['config']))
  (case,) = (case for case in config['cases'] if case['name'] == name)
  return config['defaults'] | case


def test_every_case_is_tested(golden):
  config = json.loads(str(golden('meanflow')['config']))
  assert tuple(case['name'] for case in config['cases']) == CASES


@pytest.mark.parametrize('name', CASES)
def test_losses_and_gradients_match_reference(golden, arrays, name):
  case, stored = case_of(golden, name), lambda part: arrays[f'{name}/{part}']
  noisy = reference_batch(arrays, stored('y_inp'), case.get('ndrop', 0))
  np.testing.assert_allclose(noisy.x_t, arrays['z_t'], rtol=1e-13, atol=1e-14)
  np.testing.assert_allclose(noisy.target, arrays['v'], rtol=1e-13)
  flow, params = flow_of(case), parameters(arrays)
  grad = jax.jit(jax.value_and_grad(lambda p: loss_of(flow, p, noisy), has_aux=True))
  (loss, (r_N, loss_N, metrics)), gradients = grad(params)
  raw_N, weight_N = stored('loss_per_sample_raw'), stored('adaptive_weight')
  np.testing.assert_allclose(loss_N, raw_N * weight_N, rtol=1e-11)
  np.testing.assert_allclose(loss, stored('loss'), rtol=1e-11)
  np.testing.assert_allclose(metrics['average_velocity'], stored('loss'), rtol=1e-11)
  np.testing.assert_allclose(metrics['error'], raw_N.mean() / 12, rtol=1e-11)  # 12 values each.
  equal = np.asarray(arrays['t'] == arrays['r'])
  assert 0 < equal.sum() < 8
  plain = np.asarray(stored('v_loss_per_sample'))[equal].mean() / 12
  np.testing.assert_allclose(metrics['velocity'], plain, rtol=1e-11)
  np.testing.assert_allclose(r_N, arrays['r'], atol=1e-15)  # Features are of the value itself.
  for leaf, gradient in gradients.items():
    wanted = stored(f'grad/{leaf}')
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(gradient, wanted, rtol=1e-9, atol=1e-11 * scale, err_msg=leaf)


@pytest.mark.parametrize('name', CASES)
def test_parts_of_the_loss_match_reference(golden, arrays, name):
  """Guided velocity (2), target (1), error and weight (3), each from the stored part before it."""
  case, stored = case_of(golden, name), lambda part: arrays[f'{name}/{part}']
  flow, params = flow_of(case), parameters(arrays)
  noisy = reference_batch(arrays, stored('y_inp'), case.get('ndrop', 0))
  v_g, _ = flow._guided(lambda z, t, y: analytic(params, z, t, t, y), noisy)
  target = meanflow.target(stored('v_g'), stored('du_dt'), arrays['t'], arrays['r'])
  error_N = meanflow.squared_error(stored('u'), stored('u_target'))
  _, weight_N = meanflow.adaptive(error_N, power=case['norm_p'], constant=case['norm_eps'])
  for part, found in (
    ('v_g', v_g),
    ('u_target', target),
    ('loss_per_sample_raw', error_N),
    ('adaptive_weight', weight_N),
  ):
    np.testing.assert_allclose(found, stored(part), rtol=1e-11, atol=1e-12, err_msg=part)


def test_float32_matches_reference(golden, arrays):
  single = {k: x.astype(jnp.float32) if x.dtype == jnp.float64 else x for k, x in arrays.items()}
  flow, noisy = flow_of(case_of(golden, 'default')), reference_batch(single, single['y'], 0)
  noisy = jax.tree.map(lambda x: x.astype(jnp.float32) if x.dtype == jnp.float64 else x, noisy)
  loss, (_, loss_N, _) = loss_of(flow, parameters(single), noisy)
  assert loss.dtype == loss_N.dtype == jnp.float32
  wanted = arrays['default/loss_per_sample_raw'] * arrays['default/adaptive_weight']
  np.testing.assert_allclose(loss_N, wanted, rtol=2e-5, atol=2e-5)


def test_times_match_reference(arrays):
  draws = (tiny.MEANFLOW_TIMES.from_normal(arrays[f'normals_{name}']) for name in 'tr')
  t_N, r_N = meanflow.ordered_times(*draws)
  np.testing.assert_allclose(t_N, arrays['sampled_t'], rtol=1e-11, atol=1e-12)
  np.testing.assert_allclose(r_N, arrays['sampled_r'], rtol=1e-11, atol=1e-12)


def test_improved_loss_by_hand(golden, arrays):
  """(3) with V of the improved loss, du/dt by central differences."""
  case = case_of(golden, 'drop')
  noisy, params = reference_batch(arrays, arrays['drop/y_inp'], 2), parameters(arrays)
  loss_N = jax.jit(lambda p: loss_of(flow_of(case, variant='improved'), p, noisy))(params)[1][1]
  z, t, r, y = arrays['z_t'], arrays['t'], arrays['r'], arrays['drop/y_inp']
  own, d = analytic(params, z, t, t, y), 1e-5
  u = lambda s: analytic(params, z + s * own, t + s, r, y)
  V = u(0) + (t - r)[:, None, None, None] * (u(d) - u(-d)) / (2 * d)
  error_N = np.sum(np.square(V - arrays['drop/v_g']), axis=(1, 2, 3))
  np.testing.assert_allclose(loss_N, error_N / (error_N + 0.01), rtol=1e-8)


def test_samples_match_reference(arrays):
  params, e, y = parameters(arrays), arrays['noise'], arrays['y']
  network = lambda x, t_N, h_N, y_N: analytic(params, x, t_N, t_N - h_N, y_N)
  config = lambda **fields: trajectory.SamplerConfig(
    kind='average_velocity', dtype='float64', **fields
  )
  one = average.integrate(network, e, y, config(steps=1))
  np.testing.assert_allclose(one, arrays['sample/one_step'], rtol=1e-11, atol=1e-12)
  two = average.integrate(network, e, y, config(steps=2))
  np.testing.assert_allclose(two, arrays['sample/two_step'], rtol=1e-11, atol=1e-12)
