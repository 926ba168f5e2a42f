"""Contrastive flow matching: reference values and gradients, its optimum, the way back to it."""

import dataclasses
import json
import types as python_types

from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import interpolants, types
from diversedit_jax.data import latents, sources
from diversedit_jax.data.sources import described
from diversedit_jax.interpolants import section
from diversedit_jax.methods import base, contrastive
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.sampling import trajectory

EXACT = {'rtol': 1e-10, 'atol': 1e-12}  # The reference's, in float64.


def totals(g, case, dtype):
  """(total, metrics) and the gradient towards the prediction, through the objective."""
  array = lambda name: jnp.asarray(tiny.nhwc(g[name]), dtype)
  path = 'cosine' if case == 'cosine_path' else 'linear'
  term = contrastive.Contrastive(weighting='linear' if case == 'linear' else 'uniform')
  objective = objective_lib.Objective(
    flow=tiny.interpolant(path=interpolants.PATHS[path]), terms=(term,)
  )
  noisy = tiny.noisy_of(
    array('images'),
    array(f'{case}/noises'),
    jnp.zeros(5, jnp.int32),
    jnp.asarray(g[f'{case}/t'], dtype),
  )
  noisy = objective.flow.at(noisy, noisy.t)

  def loss(pred):
    network = tiny.Network(tiny.Model(pred, [jnp.zeros((5, 1, 1))]))
    return objective.loss(network, noisy, key=jax.random.key(0), step=jnp.int32(0))

  return jax.jit(jax.value_and_grad(loss, has_aux=True))(array('pred'))


@pytest.mark.parametrize('case', ['uniform', 'linear', 'shifted', 'cosine_path'])
def test_the_previous_example_matches_reference(golden, case):
  g = golden('contrastive_fm')
  (total, metrics), _ = totals(g, case, jnp.float32)
  np.testing.assert_allclose(total, g[f'{case}/total'], rtol=1e-5)
  np.testing.assert_allclose(metrics['contrastive/loss'], g[f'{case}/cfm'], rtol=1e-5)
  with jax.enable_x64():
    (total, metrics), gradient = totals(g, case, jnp.float64)
    np.testing.assert_allclose(total, g[f'{case}/total_f64'], **EXACT)
    np.testing.assert_allclose(metrics['contrastive/loss'], g[f'{case}/cfm_f64'], **EXACT)
    np.testing.assert_allclose(gradient, tiny.nhwc(g[f'{case}/grad_total_pred_f64']), **EXACT)


@pytest.mark.parametrize('case', ['uniform', 'skip_null', 'class_conditioned'])
def test_a_drawn_example_matches_reference(golden, case):
  g = golden('contrastive_fm')
  config = json.loads(str(g['config']))
  with jax.enable_x64():
    pred, u = (jnp.asarray(tiny.nhwc(g[n]), jnp.float64) for n in ('pred', 'deltafm/target'))
    dropped_N = (g['deltafm/labels'] == config['null']) & (case == 'skip_null')
    index = g[f'deltafm/{case}/negative_index']

    def loss(pred):
      weight_N = contrastive.weights('uniform', jnp.zeros(5), jnp.asarray(dropped_N))
      distance_N = weight_N * contrastive.distance(pred, u[index])
      flow_N = contrastive.distance(pred, u)
      return jnp.mean(flow_N - config['delta_weight'] * distance_N), (flow_N, distance_N)

    (value, (flow_N, distance_N)), gradient = jax.value_and_grad(loss, has_aux=True)(pred)
    of = lambda name: g[f'deltafm/{case}/{name}_f64']
    np.testing.assert_allclose(value, of('loss').mean(), **EXACT)
    np.testing.assert_allclose(flow_N, of('flow_loss'), **EXACT)
    np.testing.assert_allclose(distance_N, of('contrastive_loss'), **EXACT)
    np.testing.assert_allclose(gradient, tiny.nhwc(of('grad_pred')), **EXACT)


def test_others_are_uniform_and_never_the_example_itself():
  draws = jax.random.uniform(jax.random.key(0), (4000, 5))
  labels_N = jnp.array([0, 1, 1, 2, 2])
  for labels, allowed in ((None, ~np.eye(5, dtype=bool)), (labels_N, None)):
    index, found = jax.vmap(lambda draw, labels=labels: contrastive.others(draw, labels))(draws)
    assert found.all()
    if allowed is None:
      allowed = np.asarray(labels_N[:, None] != labels_N[None, :])
    shares = np.stack([(index == j).mean(0) for j in range(5)], axis=1)
    np.testing.assert_array_equal(shares > 0, allowed)
    # Three deviations of a share of 1/2 of 4000 draws.
    np.testing.assert_allclose(shares, allowed / allowed.sum(1, keepdims=True), atol=0.024)
  assert not contrastive.others(draws[0], jnp.zeros(5, jnp.int32))[1].any()


# The optimum: data at +-1 with unequal shares, of which the network's best answer is known.


def best(share_up, weight):
  """E[u | x_t], E[u] and what minimises the total, where two examples meet in one x_t.

  The noise has two values too, so that all that can happen is a list of four, and each example's
  other one is any of these.
  """
  x, e = np.array([1.0, 1, -1, -1]), np.array([0.5, -0.5, 0.5, -0.5])
  p = np.array([share_up, share_up, 1 - share_up, 1 - share_up]) / 2
  u, t = e - x, 2 / 3
  x_t = np.round((1 - t) * x + t * e, 12)

  here = (x_t == 0) * p
  assert np.count_nonzero(here) == 2

  def total(f):
    """The loss of what the network says there, without what it says elsewhere."""
    contrast = np.sum(here) * np.sum(p * (f - u) ** 2)
    return np.sum(here * (f - u) ** 2) - weight * contrast

  f = np.array([-1.0, 0.0, 1.0])
  a, b, _ = np.polyfit(f, [total(value) for value in f], 2)  # A parabola: its lowest point.
  return np.sum(here * u) / here.sum(), np.sum(p * u), -b / (2 * a)


@pytest.mark.parametrize(('share', 'weight'), [(0.7, 0.05), (0.2, 0.5)])
def test_the_optimum_is_not_the_velocity_and_is_corrected_to_it(share, weight):
  velocity, mean, lowest = best(share, weight)
  np.testing.assert_allclose(lowest, (velocity - weight * mean) / (1 - weight), rtol=1e-9)
  assert abs(lowest - velocity) > 1e-3
  # E[u] = -E[x], and the function finds the velocity again.
  np.testing.assert_allclose(mean, -(2 * share - 1), rtol=1e-9)
  f = jnp.full((1, 1, 1, 1), lowest)
  found = contrastive.corrected(f, jnp.array([weight]), jnp.full((1, 1, 1), mean))
  np.testing.assert_allclose(found, velocity, rtol=1e-6)


def test_the_least_of_the_term_itself_is_the_stated_one():
  """Gradient descent by one step of Newton on the term's own loss, of a constant prediction.

  For a network that says one number whatever it sees, E[u | x_t] is E[u], and so is the optimum;
  for one that knows each example it is (u_n - lambda u_(n-1)) / (1 - lambda).
  """
  u, weight = jax.random.normal(jax.random.key(1), (6, 2, 2, 1)), 0.3
  term = contrastive.Contrastive(weight=weight)
  noisy = dataclasses.replace(
    tiny.noisy_of(u, u, jnp.zeros(6, jnp.int32), jnp.full(6, 0.5)), target=u
  )

  def total(f):
    context = base.Context(
      noisy=noisy,
      drawn=None,
      heads=None,
      teacher=None,
      step=jnp.int32(0),
      output=types.Output(jnp.broadcast_to(f, u.shape)),
    )
    return jnp.mean(jnp.square(f - u)) + term.loss(None, context)[0]

  for start, expected in (
    (jnp.zeros(()), jnp.mean(u)),
    (jnp.zeros_like(u), (u - weight * jnp.roll(u, 1, axis=0)) / (1 - weight)),
  ):
    slope = jax.grad(total)(start)
    curvature = 2 * (1 - weight) / start.size
    found = start - slope / curvature
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


# Sampling.


def prepared(**fields):
  config = digits.get_config('method=contrastive,skips=False')
  config.update_from_flattened_dict({f'contrastive.{k}': v for k, v in fields.items()})
  return experiment_lib.build(config)


def test_a_corrected_network_follows_the_velocity_of_the_data():
  """A network at the optimum for data that are one picture: its samples are that picture."""
  experiment = prepared(correct=True, weight=0.2)
  (term,) = experiment.objective.terms
  picture = jnp.asarray(experiment.source.gather(np.arange(1))['images'][0], jnp.float32)
  object.__setattr__(term, 'mean', np.asarray(picture))

  def optimum(x, t_N, y_N):
    velocity = (x - picture[None]) / jnp.maximum(t_N, 1e-6).reshape(-1, 1, 1, 1)
    return (velocity + 0.2 * picture[None]) / 0.8

  shape = dict(shape=picture.shape, null_label=10)
  network = tiny.Network(tiny.Model(optimum, **shape))
  keys_N = jax.random.split(jax.random.key(0), 3)
  config = trajectory.SamplerConfig(kind='euler', steps=8, guidance_scale=2.0)
  labels_N = jnp.arange(3)
  sample = lambda objective: objective.sample(network, keys_N, labels_N, config)
  found = sample(experiment.objective)
  np.testing.assert_allclose(found, jnp.broadcast_to(picture[None], found.shape), atol=1e-4)
  plain = dataclasses.replace(term, correct=False)
  without = sample(dataclasses.replace(experiment.objective, terms=(plain,)))
  assert np.abs(without - picture[None]).max() > 0.02
  assert experiment.objective.sampling_facts() == {
    'contrastive': {'corrected': 0.2, 'mean_of': len(experiment.source)}
  }
  assert prepared().objective.sampling_facts() == {}


def test_the_share_follows_time_and_label():
  (term,) = prepared(weighting='linear', skip_null=True, weight=0.1).objective.terms
  share_N = term.share(jnp.array([0.5, 1.0, 1.0]), jnp.array([3, 3, 10]))
  # 0.1 of 64 labels are dropped on average.
  factor = (1 - 0.1**64) / 0.9
  np.testing.assert_allclose(share_N, [0.05 * factor, 0.1 * factor, 0], rtol=1e-6)
  kept = np.random.default_rng(0).random((20_000, 64)) >= 0.1
  kept[:, 0] = True  # One that is there, and N over how many are.
  np.testing.assert_allclose(np.mean(64 / kept.sum(1)), factor, rtol=1e-3)


def test_the_mean_is_that_of_what_the_model_sees():
  source = sources.digits('train')
  images = source.gather(np.arange(len(source)))['images']
  expected = images.astype(np.float64).mean(0)
  np.testing.assert_allclose(contrastive.mean_of(source), expected, atol=1e-6)
  both = (expected + expected[:, ::-1]) / 2
  np.testing.assert_allclose(contrastive.mean_of(source, mirrored=True), both, atol=1e-6)

  class Moments:
    shape, scaling = (2, 2, 1), latents.Scaling(scale=2.0, shift=0.5)

    def __len__(self):
      return 3

    def gather(self, indices):
      mean = np.asarray(indices, np.float16).reshape(-1, 1, 1, 1) * np.ones((2, 2, 1), np.float16)
      return {'moments': np.concatenate([mean, 9 * np.ones_like(mean)], axis=-1)}

  traced = jax.jit(lambda: jnp.asarray(contrastive.mean_of(Moments())))()
  np.testing.assert_allclose(traced, np.full((2, 2, 1), (1 - 0.5) * 2))
  none = sources.ArraySource(
    name='none', space='pixels', num_classes=10, data=images[:0], labels=np.zeros(0, np.int64)
  )
  with pytest.raises(types.UserError, match='none has no examples'):
    contrastive.mean_of(none)


def test_a_description_of_data_has_no_mean():
  source = described.from_facts(described.describe(sources.digits('train')))
  term = contrastive.Contrastive(correct=True, source=source)
  with pytest.raises(types.UserError, match='needs the mean of the training data, and of .* only'):
    term.for_sampling(tiny.Network(tiny.Model(jnp.zeros(1))))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'contrastive.weight': 1.0}, 'contrastive.weight must be in'),
    ({'contrastive.other_class': True}, 'set contrastive.negatives=random'),
    ({'contrastive.skip_null': True, 'contrastive.weight': 0.95}, 'counts 1.11 times'),
    (
      {'interpolant.prediction': 'noise', 'sampler.start': 0.99},
      "is about velocities, got .*'noise'",
    ),
    ({'contrastive.correct': True, 'interpolant.path': 'cosine'}, 'interpolant.path=linear'),
    ({'contrastive.correct': True, 'contrastive.schedule': 'stop:9'}, 'must be one number'),
    (
      {'contrastive.correct': True, 'method': 'contrastive+direction'},
      'direction changes what the network learns',
    ),
    (
      {'contrastive.weighting': 'linear', 'method': 'selfflow+contrastive'},
      'and selfflow draws two',
    ),
    ({'train.accumulate': 64}, 'needs another example, got microbatches of 1'),
    ({'method': 'meanflow+contrastive'}, 'not go with meanflow: an average velocity'),
  ],
)
def test_refuses_what_has_no_meaning(changes, message):
  config = digits.get_config('method=contrastive,skips=False')
  config.update_from_flattened_dict(changes)
  with pytest.raises(types.UserError, match=message):
    experiment_lib.build(config)


def test_refuses_rules_about_classes_where_there_are_none():
  setup = python_types.SimpleNamespace(
    method='contrastive',
    interpolant=section.Interpolant(),
    architecture=tiny.architecture(num_classes=0),
    source=python_types.SimpleNamespace(name='pictures'),
  )
  with pytest.raises(types.UserError, match='skip_null=True is about classes, and pictures has'):
    contrastive.Contrastive(skip_null=True).prepare(setup)
