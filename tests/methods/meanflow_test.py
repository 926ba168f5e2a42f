"""The method meanflow: an exactly known flow, its draws, a whole network, refusals."""

import dataclasses

from flax import nnx
from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import rng, types
from diversedit_jax.methods import base, meanflow
from diversedit_jax.models import taps
from diversedit_jax.sampling import trajectory

UNGUIDED = dict(omega=1.0, kappa=0.0)


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
    found = tiny.mean_flow().sample(network, keys_N, labels_N, config)
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
    flow = tiny.mean_flow(variant=variant, **UNGUIDED)
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
  make = lambda masks: tiny.mean_flow(masks=masks, label_dropout=0.2, equal_fraction=0.25)
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
  a_N, b_N = (
    np.asarray(tiny.MEANFLOW_TIMES(rng.stream(key, n), 4000)) for n in ('time', 'time/second')
  )
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
    none = tiny.mean_flow(null_label=None, masks=masks, **UNGUIDED).draw(batch, jax.random.key(0))
    np.testing.assert_array_equal(none.y, 0)
    kept = tiny.mean_flow(label_dropout=0.0, masks=masks).draw(batch, jax.random.key(0))
    np.testing.assert_array_equal(kept.y, batch['labels'])
    assert not none.extras['dropped'].any() and not kept.extras['dropped'].any()


def test_at_is_the_velocity_at_one_time():
  noisy = tiny.mean_flow().draw(tiny.batch(), jax.random.key(0))
  t_N = jnp.asarray([0.0, 0.3, 0.6, 1.0])
  moved = tiny.mean_flow().at(noisy, t_N)
  t = np.asarray(t_N)[:, None, None, None]
  np.testing.assert_allclose(moved.x_t, (1 - t) * noisy.clean + t * noisy.noise, atol=1e-6)
  np.testing.assert_array_equal(moved.extras['h'], 0)
  np.testing.assert_array_equal(moved.extras['dropped'], noisy.extras['dropped'])
  np.testing.assert_array_equal(moved.y, noisy.y)
  np.testing.assert_array_equal(moved.t, t_N)


# A whole network.


def test_features_and_their_gradient_are_those_of_a_plain_pass():
  """The derivative beside them adds nothing to what a term sees."""
  flow = tiny.mean_flow(equal_fraction=0.25)
  graphdef, params = tiny.parameters(tiny.architecture(interval=True))
  noisy = flow.draw(tiny.batch(), jax.random.key(0))

  def total(run):
    def loss(params):
      features = run(nnx.merge(graphdef, params))
      return jnp.sum(jnp.square(features)), features

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  found = total(lambda network: flow.forward(network, noisy, taps.every())[0].features)
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
  found = tiny.mean_flow().sample(tiny.Network(call), keys_N, labels_N, config)
  x = trajectory.normal(keys_N, (2, 2, 1), 'sampling_start', jnp.float32)
  for t in (1.0, 0.5):
    x = x - 0.5 * exact_velocity(x, jnp.full(2, t))
  np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-5)
  assert len(asked) == 1  # The two steps are one traced loop.


def test_passes_are_counted():
  assert tiny.mean_flow(**UNGUIDED).extra_passes() == 1
  assert tiny.mean_flow(**UNGUIDED, variant='improved').extra_passes() == 2
  assert tiny.mean_flow(omega=2.0, kappa=0.0).extra_passes() == 2
  for variant in meanflow.VARIANTS:
    assert tiny.mean_flow(variant=variant).extra_passes() == 3


# Refusals.


@pytest.mark.parametrize('kernel', ['auto', 'cudnn'])
def test_refuses_attention_without_a_forward_derivative(kernel):
  execution = dataclasses.replace(tiny.EXECUTION, attention=kernel)
  with pytest.raises(types.UserError, match='forward-mode derivative.*set model.attention=xla'):
    tiny.mean_flow().check_model(tiny.architecture(interval=True), execution)
  # Where the user leaves the choice, the flow takes the kernel that has one.
  adapted = tiny.mean_flow().adapt(tiny.architecture(), execution)
  assert adapted[0].interval and adapted[1].attention == {'auto': 'xla'}.get(kernel, kernel)
  tiny.check(tiny.mean_flow(), tiny.architecture(interval=True))


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
    tiny.check(tiny.mean_flow(**fields), architecture, trajectory.SamplerConfig(**sampler))


def test_refuses_an_interval_that_ends_before_it_starts():
  with pytest.raises(types.UserError, match='start=0.8 must not be above meanflow.end=0.7'):
    tiny.mean_flow(start=0.8, end=0.7)
