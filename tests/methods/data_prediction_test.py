"""Predicted data: losses, gradients and trajectories of JiT and RAEv2, and where samples end."""

import json

from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.models import taps
from diversedit_jax.sampling import trajectory


@pytest.fixture
def _float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture(scope='module')
def reference(golden):
  arrays = golden('x_prediction')
  return arrays, json.loads(str(arrays['config']))


def draw_of(flow, data, noise, t_N, dtype):
  """The noisy batch of reference images [N, C, H, W] at times of our clock."""
  data, noise = (jnp.asarray(tiny.nhwc(a), dtype) for a in (data, noise))
  labels = jnp.zeros(len(t_N), jnp.int32)
  return flow.at(tiny.noisy_of(data, noise, labels, jnp.zeros(len(t_N))), jnp.asarray(t_N, dtype))


# Name of the case, its clock's time as ours, sign of its velocity, arrays of pred and its gradient.
LOSSES = {
  'jit': (lambda t: np.float32(1) - t, -1, 'jit/x_pred', 'jit'),
  'raev2': (lambda t: t, 1, 'raev2/output', 'raev2/x'),
}


@pytest.mark.usefixtures('_float64')
@pytest.mark.parametrize('name', LOSSES)
@pytest.mark.parametrize('dtype', [np.float64, np.float32])
def test_loss_gradient_and_velocity_match_reference(reference, name, dtype):
  g, _ = reference
  to_ours, sign, pred, case = LOSSES[name]
  exact = dtype == np.float64
  stored = lambda name: g[f'{name}_f64' if exact else name]
  tolerance = dict(rtol=1e-10, atol=1e-10) if exact else dict(rtol=2e-5, atol=2e-5)
  flow = tiny.interpolant(prediction='data', clamp=0.05)
  draw = draw_of(flow, g[f'{name}/x'], g[f'{name}/noise'], to_ours(g[f'{name}/t']), dtype)
  x_t = stored('jit/z' if name == 'jit' else 'raev2/xt')
  np.testing.assert_allclose(draw.x_t, tiny.nhwc(x_t), **tolerance)

  def loss(pred):
    network = tiny.Network(tiny.Model(pred))
    _, loss_N, metrics = flow.forward(network, draw, taps.nothing())
    return jnp.mean(loss_N), (loss_N, metrics)

  pred = jnp.asarray(tiny.nhwc(g[pred]), dtype)
  (value, (loss_N, metrics)), gradient = jax.value_and_grad(loss, has_aux=True)(pred)
  np.testing.assert_allclose(value, stored(f'{case}/loss'), rtol=1e-10 if exact else 1e-5)
  assert set(metrics) == {'velocity'} and metrics['velocity'] == value
  gradient_name = 'jit/grad_x_pred_f64' if name == 'jit' else f'{case}/grad_output_f64'
  np.testing.assert_allclose(gradient, tiny.nhwc(g[gradient_name]), **tolerance)
  if name == 'raev2':
    by_example = stored(f'{case}/loss_elementwise').mean(axis=(1, 2, 3))
    np.testing.assert_allclose(loss_N, by_example, **tolerance)
  velocity = lambda said: sign * flow.as_velocity(said, draw.x_t, draw.t, clamp=0.05)
  scale = 20  # Velocities are differences divided by 0.05.
  tolerance['atol'] *= scale
  np.testing.assert_allclose(velocity(pred), tiny.nhwc(stored(f'{case}/v_pred')), **tolerance)
  target = tiny.nhwc(stored(f'{name}/v_target'))  # The target is clamped as the prediction is.
  np.testing.assert_allclose(velocity(draw.target), target, **tolerance)


# Sampling.


def network_of(clock, table, classes=None):
  """tanh(x)(0.6 + 0.3 t) on the data's clock, and a constant per channel of the label."""
  table = jnp.asarray(table)

  def pred(x, t_N, y_N):
    t = clock(t_N)[:, None, None, None]
    return jnp.tanh(x) * (0.6 + 0.3 * t) + table.astype(x.dtype)[y_N][:, None, None]

  return tiny.Network(tiny.Model(pred, null_label=classes))


def trajectory_of(flow, network, noise, labels, config):
  """States at all times of the grid [S+1, N, C, H, W], from one call of the network to the next."""
  seen, velocity = [], flow.velocity(network, config.clamp)

  def predict(x, t_N, y_N):
    seen.append(x[: len(labels)])
    return velocity(x, t_N, y_N)

  with jax.disable_jit():
    end = trajectory.integrate(
      predict,
      jnp.asarray(tiny.nhwc(noise)),
      jnp.asarray(labels, jnp.int32),
      config,
      null_label=network.model.architecture.null_label,
    )
  # Heun looks at where each step leads, too, but for the last one.
  return np.moveaxis(np.stack([*seen[:: 2 if config.kind == 'heun' else 1], end]), -1, 2)


def sampler(case, **fields):
  """The sampler of a case of the reference, guidance by its rule on the data's clock."""
  config = {'kind': case.get('method', 'euler'), 'steps': case['steps'], 'clamp': 0.05}
  if case.get('cfg', 1) != 1:
    low, high = case['interval']
    config |= {'guidance_scale': case['cfg'], 'guidance_low': 1 - high, 'guidance_high': 1 - low}
    config['guidance_rule'] = 'evaluation'
  return trajectory.SamplerConfig(**config | fields)


def close(found, wanted, tolerance):
  np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.mark.parametrize('name', ['euler', 'heun', 'heun_cfg', 'euler_cfg_low0'])
def test_trajectories_match_jit(reference, name):
  """In float32; the reference rounds its times to that in float64, too."""
  g, config = reference
  (case,) = [one for one in config['samplers'] if one['name'] == name]
  network = network_of(lambda t: 1 - t, g['sampler/table'], classes=config['jit']['num_classes'])
  stored = lambda what: g[f'sampler/{name}/{what}']
  found = trajectory_of(
    tiny.interpolant(prediction='data'), network, stored('noise'), stored('labels'), sampler(case)
  )
  close(found, stored('trajectory'), 2e-5)
  close(found, stored('trajectory_f64'), 2e-5)


@pytest.mark.parametrize('name', ['x_shift8', 'x_plain', 'velocity'])
@pytest.mark.parametrize('dtype', ['float32', 'float64'])
def test_trajectories_match_raev2(reference, name, dtype):
  """With the times of our grid, or in float64 with those of the reference, which are float32 there
  as well, and so is its clamp."""
  g, config = reference
  (case,) = [one for one in config['raev2']['samplers'] if one['name'] == name]
  stored = lambda what: g[f'raev2_sampler/{name}/{what}']
  data = case['prediction'] == 'x'
  network = network_of(lambda t: 1 - t, stored('table'))
  pred = network.model.pred
  if not data:
    network.model.pred = lambda x, t_N, y_N: x - pred(x, t_N, y_N)
  flow = tiny.interpolant(prediction='data' if data else 'velocity')
  fields = {'clamp': 0.05 * data, 'dtype': dtype}
  exact = dtype == 'float64'
  if exact:
    fields['times'] = (*map(float, stored('t')), 0.0)
    fields['clamp'] = float(np.float32(fields['clamp']))
  else:
    fields['shift'] = case['shift']
  with jax.enable_x64(exact):
    found = trajectory_of(flow, network, stored('noise'), np.arange(2), sampler(case, **fields))
  if exact:
    close(found, stored('trajectory_f64'), 1e-10)
  else:
    close(found, stored('trajectory'), 2e-5)
    grid = trajectory.time_grid(sampler(case, **fields))
    np.testing.assert_allclose(grid, [*stored('t'), 0], rtol=1e-6)


@pytest.mark.parametrize('kind', ['euler', 'heun'])
def test_samples_end_at_the_prediction_unless_clamped(kind):
  """All data are 0.75, and the network knows, so that x = 0.75 + t (e - 0.75) until the clamp."""
  flow = tiny.interpolant(prediction='data')
  network = tiny.Network(tiny.Model(lambda x, t_N, y_N: jnp.full_like(x, 0.75)))
  e = jax.random.normal(jax.random.key(0), (2, 3, 3, 1))

  def left(clamp):
    config = trajectory.SamplerConfig(kind=kind, steps=50)
    return trajectory.integrate(flow.velocity(network, clamp), e, None, config, null_label=None)

  np.testing.assert_allclose(left(0.0), 0.75, atol=2e-6)
  # The steps from 0.04 and 0.02 go 40 % of the way; Heun meets the clamp in that from 0.06, too.
  rest = {'euler': 0.04 * 0.6**2, 'heun': 0.042 * (1 - 0.4 + 0.4**2 / 2) * 0.6}[kind]
  np.testing.assert_allclose(left(0.05) - 0.75, rest * (e - 0.75), atol=2e-6)
