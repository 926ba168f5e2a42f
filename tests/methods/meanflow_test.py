"""MeanFlow: the reference's losses and samples, an exactly known flow, masks, derivatives."""

import dataclasses
import json

from flax import nnx
from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import rng, types
from diversedit_jax.interpolants import times
from diversedit_jax.methods import base, meanflow
from diversedit_jax.models import taps
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
LAW = times.LogitNormal(mean=-0.4)
UNGUIDED = dict(omega=1.0, kappa=0.0)


def mean_flow(**fields):
  return meanflow.MeanFlow(**({'time_law': LAW, 'null_label': tiny.CLASSES} | fields))


@pytest.fixture
def _float64():
  with jax.enable_x64(True):
    yield


# The reference: an analytic network.


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
  return mean_flow(
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
  noisy = mean_flow().at(noisy, noisy.t)  # This makes x_t and v; h is lost.
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
  draws = (LAW.from_normal(arrays[f'normals_{name}']) for name in 'tr')
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


# The arithmetic.


def test_interval_includes_both_ends():
  v, v_null, v_class = (jnp.full((5, 2), x) for x in (1.0, 10.0, 100.0))
  t_N = jnp.asarray([0.24, 0.25, 0.5, 0.75, 0.76])
  v_g = meanflow.guided_velocity(
    v, v_null, v_class, omega=2.0, kappa=0.5, t_N=t_N, start=0.25, end=0.75
  )
  # 2 * 1 - 1.5 * 10 + 0.5 * 100 inside.
  np.testing.assert_allclose(v_g[:, 0], [1, 37, 37, 37, 1], rtol=1e-14)


@pytest.mark.usefixtures('_float64')
def test_ordered_times():
  a_N, b_N = jnp.asarray([0.1, 0.9, 0.3, 0.4]), jnp.asarray([0.2, 0.5, 0.8, 0.4])
  # int(0.3 * 4) = 1 example has r = t.
  t_N, r_N = meanflow.ordered_times(a_N, b_N, equal_fraction=0.3)
  np.testing.assert_array_equal(t_N, [0.2, 0.9, 0.8, 0.4])
  np.testing.assert_array_equal(r_N, [0.2, 0.5, 0.3, 0.4])
  t_N, r_N = meanflow.ordered_times(a_N, b_N, equal_fraction=1.0)
  np.testing.assert_array_equal(t_N, r_N)
  for fraction in (-0.1, 1.1):
    with pytest.raises(types.UserError, match='equal_fraction'):
      meanflow.ordered_times(a_N, b_N, equal_fraction=fraction)


def test_target_clips_the_interval_and_is_constant():
  v_g, du_dt = jnp.ones((3, 2)), jnp.full((3, 2), 2.0)
  t_N, r_N = jnp.asarray([0.5, 0.2, 3.0]), jnp.asarray([0.25, 0.7, 1.0])
  target = meanflow.target(v_g, du_dt, t_N, r_N)
  np.testing.assert_allclose(target[:, 0], [0.5, 1, -1], rtol=1e-14)
  gradients = jax.grad(lambda *a: meanflow.target(*a).sum(), argnums=(0, 1, 2, 3))(
    v_g, du_dt, t_N, r_N
  )
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.usefixtures('_float64')
@pytest.mark.parametrize(('power', 'constant'), [(1.0, 0.01), (0.5, 1e-3), (0.0, 0.01)])
def test_adaptive_scales_the_gradient_by_the_weight(power, constant):
  error_N = jnp.asarray([0.0, 0.3, 40.0])
  loss_N, weight_N = meanflow.adaptive(error_N, power=power, constant=constant)
  np.testing.assert_allclose(weight_N, (np.asarray(error_N) + constant) ** -power, rtol=1e-14)
  np.testing.assert_allclose(loss_N, weight_N * error_N, rtol=1e-14)
  options = {'power': power, 'constant': constant}
  gradient = jax.grad(lambda e: meanflow.adaptive(e, **options)[0].sum())(error_N)
  np.testing.assert_allclose(gradient, weight_N, rtol=1e-14)


def test_bfloat16_velocities_are_combined_in_float32():
  array = lambda *x: jnp.asarray(x, jnp.bfloat16).reshape(2, 1)
  t_N, r_N = jnp.asarray([1.0, 0.5], jnp.bfloat16), jnp.asarray([0.5, 0.5], jnp.bfloat16)
  one, tiny = array(1, 1), array(2.0**-12, 2.0**-12)
  wanted = np.asarray([[1 + 2.0**-13], [1]], np.float32)  # 1 if rounded to bfloat16.
  for value in (
    meanflow.improved_prediction(one, tiny, t_N, r_N),
    meanflow.target(one, -tiny, t_N, r_N),
  ):
    assert value.dtype == jnp.float32
    np.testing.assert_array_equal(value, wanted)
  omega = 1 + 2.0**-12
  guided = meanflow.guided_velocity(one, 0 * one, 0 * one, omega=omega, kappa=0.0, t_N=t_N)
  assert guided.dtype == jnp.float32
  np.testing.assert_array_equal(guided, np.float32(omega))
  error_N = meanflow.squared_error(array(256, 0), array(0.5, 3))
  assert error_N.dtype == jnp.float32
  np.testing.assert_array_equal(error_N, np.asarray([255.5**2, 9], np.float32))


def test_squared_error_refuses_shapes_that_would_broadcast():
  with pytest.raises(ValueError, match=r'\(2, 3\).*\(2, 1\)'):
    meanflow.squared_error(jnp.ones((2, 3)), jnp.ones((2, 1)))


# A flow that is known exactly: data from one Gaussian.

MEAN, DEVIATION = 0.4, 0.6


def variance(t):
  return (1 - t) ** 2 * DEVIATION**2 + t**2


def exact_average(x, t_N, r_N):
  """u of the flow whose points keep their number of deviations from the mean (1 - t) MEAN."""
  t, r = (s[:, None, None, None] for s in (t_N, r_N))
  at_r = (1 - r) * MEAN + jnp.sqrt(variance(r) / variance(t)) * (x - (1 - t) * MEAN)
  return (x - at_r) / jnp.where(t == r, 1, t - r)


def exact_velocity(x, t_N):
  t = t_N[:, None, None, None]
  slope = (t - (1 - t) * DEVIATION**2) / variance(t)  # d/dt of log sqrt(variance).
  return -MEAN + slope * (x - (1 - t) * MEAN)


@pytest.mark.parametrize('times', [(1.0, 0.0), (1.0, 0.6, 0.55, 0.1, 0.0)])
def test_a_gaussian_is_sampled_exactly_in_any_number_of_steps(times):
  with jax.enable_x64(True):
    model = tiny.Model(None, shape=(2, 2, 1), null_label=None)
    seen = []

    def call(x, t_N, y_N, *, h_N):
      seen.append(y_N)
      return types.Output(exact_average(x, t_N, t_N - h_N))

    network = tiny.Network(call)
    call.architecture = model.architecture
    keys_N, labels_N = jax.random.split(jax.random.key(0), 3), jnp.asarray([0, 1, 2])
    config = trajectory.SamplerConfig(
      kind='average_velocity', steps=len(times) - 1, times=times, dtype='float64'
    )
    found = mean_flow().sample(network, keys_N, labels_N, config)
    e = trajectory.normal(keys_N, (2, 2, 1), 'sampling_start', jnp.float64)
    np.testing.assert_allclose(found, MEAN + DEVIATION * e, rtol=1e-13, atol=1e-14)
    np.testing.assert_array_equal(seen[0], labels_N)


@pytest.mark.parametrize('variant', meanflow.VARIANTS)
def test_the_exact_average_velocity_solves_the_identity(variant):
  """(1) holds with the velocity of the flow in place of that of each example."""
  with jax.enable_x64(True):
    generator = np.random.default_rng(0)
    t_N, r_N = jnp.asarray([0.9, 0.7, 0.5, 1.0]), jnp.asarray([0.1, 0.65, 0.2, 0.0])
    images, noise = (jnp.asarray(generator.normal(size=(4, 2, 2, 1))) for _ in range(2))
    flow = mean_flow(variant=variant, **UNGUIDED)
    noisy = tiny.noisy_of(images, noise, jnp.zeros(4, jnp.int32), t_N)
    x = flow.at(noisy, t_N).x_t
    noisy = base.NoisyBatch(
      x_t=x,
      t=t_N,
      y=noisy.y,
      target=exact_velocity(x, t_N),
      noise=noise,
      batch=noisy.batch,
      extras={'h': t_N - r_N, 'dropped': jnp.zeros(4, bool)},
    )
    predict = lambda z, t_N, r_N, y_N, tap: (exact_average(z, t_N, r_N), None)
    metrics = flow.loss(predict, lambda z, t_N, y_N: exact_velocity(z, t_N), noisy)[2]
    assert metrics['error'] < 1e-26 and jnp.mean(noisy.target**2) > 0.1


# Draws.


@pytest.fixture(scope='module')
def drawn():
  """Draws of both masks on 4,000 one-pixel examples, a fifth of the labels dropped."""
  batch = tiny.batch(4000, shape=(1, 1, 1))
  make = lambda masks: mean_flow(masks=masks, label_dropout=0.2, equal_fraction=0.25)
  return batch, {m: make(m).draw(batch, jax.random.key(5)) for m in meanflow.MASKS}


def test_labels_are_dropped_at_random_or_at_the_head(drawn):
  batch, draws = drawn
  dropped = {m: np.asarray(noisy.extras['dropped']) for m, noisy in draws.items()}
  count = dropped['independent'].sum()
  assert abs(count / 4000 - 0.2) < 4 * np.sqrt(0.16 / 4000)
  np.testing.assert_array_equal(dropped['correlated'], np.arange(4000) < count)
  for m, noisy in draws.items():
    wanted = np.where(dropped[m], tiny.CLASSES, batch['labels'])
    np.testing.assert_array_equal(noisy.y, wanted)
  # The independent ones are as many where r = t as elsewhere: four standard deviations.
  equal = {m: np.asarray(noisy.extras['h'] == 0) for m, noisy in draws.items()}
  here, there = (
    dropped['independent'][e].mean() for e in (equal['independent'], ~equal['independent'])
  )
  assert abs(here - there) < 4 * np.sqrt(0.16 / 1000 + 0.16 / 3000)
  assert dropped['correlated'][equal['correlated']].mean() > 0.7
  assert not dropped['correlated'][~equal['correlated']].any()


def test_equal_times_are_spread_over_the_groups_of_the_batch_or_at_its_head(drawn):
  _, draws = drawn
  equal = {m: np.asarray(noisy.extras['h'] == 0) for m, noisy in draws.items()}
  assert equal['independent'].sum() == equal['correlated'].sum() == 1000
  np.testing.assert_array_equal(equal['correlated'], np.arange(4000) < 1000)
  # Ten groups of 400 with a share of 1/4: four standard deviations.
  shares = equal['independent'].reshape(10, 400).mean(axis=1)
  assert np.abs(shares - 0.25).max() < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_times_are_two_ordered_draws_of_the_law(drawn):
  _, draws = drawn
  noisy, other = draws['independent'], draws['correlated']
  key = jax.random.key(5)
  a_N, b_N = (np.asarray(LAW(rng.stream(key, n), 4000)) for n in ('time', 'time/second'))
  np.testing.assert_array_equal(noisy.t, np.maximum(a_N, b_N))
  h_N = np.where(np.arange(4000) < 1000, 0, np.abs(a_N - b_N))
  np.testing.assert_allclose(other.extras['h'], h_N, atol=1e-7)
  apart = np.asarray(noisy.extras['h'] > 0)
  np.testing.assert_allclose(noisy.extras['h'][apart], np.abs(a_N - b_N)[apart], atol=1e-7)
  assert np.abs(np.corrcoef(a_N, b_N)[0, 1]) < 4 / np.sqrt(4000)
  for name in ('x_t', 't', 'target', 'noise'):
    np.testing.assert_array_equal(getattr(noisy, name), getattr(other, name))
  t = np.asarray(noisy.t)[:, None, None, None]
  np.testing.assert_allclose(noisy.x_t, (1 - t) * noisy.clean + t * noisy.noise, atol=1e-6)
  np.testing.assert_allclose(noisy.target, noisy.noise - noisy.clean, atol=1e-6)


def test_no_classes_and_no_dropout():
  batch = tiny.batch(50, shape=(1, 1, 1))
  for masks in meanflow.MASKS:
    none = mean_flow(null_label=None, masks=masks, **UNGUIDED).draw(batch, jax.random.key(0))
    np.testing.assert_array_equal(none.y, 0)
    kept = mean_flow(label_dropout=0.0, masks=masks).draw(batch, jax.random.key(0))
    np.testing.assert_array_equal(kept.y, batch['labels'])
    assert not none.extras['dropped'].any() and not kept.extras['dropped'].any()


def test_at_is_the_velocity_at_one_time():
  noisy = mean_flow().draw(tiny.batch(), jax.random.key(0))
  t_N = jnp.asarray([0.0, 0.3, 0.6, 1.0])
  moved = mean_flow().at(noisy, t_N)
  t = np.asarray(t_N)[:, None, None, None]
  np.testing.assert_allclose(moved.x_t, (1 - t) * noisy.clean + t * noisy.noise, atol=1e-6)
  np.testing.assert_array_equal(moved.extras['h'], 0)
  np.testing.assert_array_equal(moved.extras['dropped'], noisy.extras['dropped'])
  np.testing.assert_array_equal(moved.y, noisy.y)
  np.testing.assert_array_equal(moved.t, t_N)


# A whole network.


def test_features_and_their_gradient_are_those_of_a_plain_pass():
  """The derivative beside them adds nothing to what a term sees."""
  flow = mean_flow(equal_fraction=0.25)
  graphdef, params = tiny.parameters(tiny.architecture(interval=True))
  noisy = flow.draw(tiny.batch(), jax.random.key(0))

  def total(run):
    def loss(params):
      features = run(nnx.merge(graphdef, params))
      return jnp.sum(jnp.square(features)), features

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  found = total(lambda network: flow.forward(network, noisy, taps.every())[0])
  plain = total(lambda network: flow.run(network, noisy, taps.every()).features)
  assert plain[0][1].shape == (2, 4, 4, 16)
  # The same products, compiled with others beside them.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found, plain)


def test_other_samplers_follow_the_velocity():
  """Euler's step at t takes u over an empty interval."""
  asked = []

  def call(x, t_N, y_N, *, h_N):
    asked.append(h_N)
    return types.Output(exact_velocity(x, t_N))

  call.architecture = tiny.Model(None, shape=(2, 2, 1), null_label=tiny.CLASSES).architecture
  keys_N, labels_N = jax.random.split(jax.random.key(0), 2), jnp.asarray([0, 1])
  config = trajectory.SamplerConfig(kind='euler', steps=2)
  found = mean_flow().sample(tiny.Network(call), keys_N, labels_N, config)
  x = trajectory.normal(keys_N, (2, 2, 1), 'sampling_start', jnp.float32)
  for t in (1.0, 0.5):
    x = x - 0.5 * exact_velocity(x, jnp.full(2, t))
  np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-5)
  assert len(asked) == 1  # The two steps are one traced loop.


def test_passes_are_counted():
  assert mean_flow(**UNGUIDED).extra_passes() == 1
  assert mean_flow(**UNGUIDED, variant='improved').extra_passes() == 2
  assert mean_flow(omega=2.0, kappa=0.0).extra_passes() == 2
  for variant in meanflow.VARIANTS:
    assert mean_flow(variant=variant).extra_passes() == 3


# Refusals.


@pytest.mark.parametrize('kernel', ['auto', 'cudnn'])
def test_refuses_attention_without_a_forward_derivative(kernel):
  execution = dataclasses.replace(tiny.EXECUTION, attention=kernel)
  with pytest.raises(types.UserError, match='forward-mode derivative.*set model.attention=xla'):
    mean_flow().check_model(tiny.architecture(interval=True), execution)
  # Where the user leaves the choice, the flow takes the kernel that has one.
  adapted = mean_flow().adapt(tiny.architecture(), execution)
  assert adapted[0].interval and adapted[1].attention == {'auto': 'xla'}.get(kernel, kernel)
  tiny.check(mean_flow(), tiny.architecture(interval=True))


@pytest.mark.parametrize(
  ('fields', 'architecture', 'sampler', 'message'),
  [
    (dict(null_label=None), {}, {}, 'guide by classes, and the data have none; set omega=1, kap'),
    ({}, dict(time_input='ddpm'), {}, "time_input='ddpm' is not for method=meanflow"),
    ({}, {}, dict(guidance_scale=2.0), 'guided in training; set guidance_scale=1'),
  ],
)
def test_refuses(fields, architecture, sampler, message):
  architecture = tiny.architecture(interval=True, **architecture)
  with pytest.raises(types.UserError, match=message):
    tiny.check(mean_flow(**fields), architecture, trajectory.SamplerConfig(**sampler))


def test_refuses_an_interval_that_ends_before_it_starts():
  with pytest.raises(types.UserError, match='start=0.8 must not be above meanflow.end=0.7'):
    mean_flow(start=0.8, end=0.7)
