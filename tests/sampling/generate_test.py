"""Samples are functions of (seed, index); labels by policy; the weights that are given."""

import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, rng, sharding, types
from diversedit_jax.methods import base, flow
from diversedit_jax.models import config as config_lib
from diversedit_jax.sampling import generate, trajectory

CLASSES = 4
SDE = trajectory.SamplerConfig(kind='euler_maruyama', steps=4, guidance_scale=2.0)
ODE = trajectory.SamplerConfig(kind='euler', steps=2)
LABELS = np.array([0, 3, 1, 1, 2, 0, 3, 2])
# Pictures lie near [-5, 5]. A batch of another size is another program, whose products are summed
# in another order: some float32 roundings.
TOLERANCE = 1e-5


@functools.cache
def network(num_classes=CLASSES):
  """(graphdef, fresh parameters, parameters without zeros)."""
  architecture = config_lib.Architecture(
    input_size=(4, 4), channels=2, num_classes=num_classes, depth=2, width=16, heads=2, patch_size=2
  )
  graphdef, state = nnx.split(
    base.Network(architecture, config_lib.Execution(), rngs=nnx.Rngs(0)), nnx.Param
  )
  fresh, generator = nnx.to_pure_dict(state), np.random.default_rng(0)
  noisy = lambda x: x + jnp.asarray(0.1 * generator.standard_normal(x.shape), x.dtype)
  return graphdef, fresh, jax.tree.map(noisy, fresh)


@functools.cache
def generator(config=SDE, *, batch_size=8, seed=0, num_classes=CLASSES):
  graphdef, _, _ = network(num_classes)
  made = flow.StochasticInterpolant(
    path=interpolants.linear(),
    time_law=interpolants.TIME_LAWS['uniform'](),
    null_label=num_classes or None,
  )
  return generate.Generator(
    graphdef, made.sample, config, mesh=sharding.make_mesh(), seed=seed, batch_size=batch_size
  )


@pytest.fixture(scope='module')
def pictures():
  """Eight samples in one batch."""
  return generator()(network()[2], LABELS)


def test_pictures_are_what_they_should_be(pictures):
  assert pictures.shape == (8, 4, 4, 2) and pictures.dtype == np.float32
  assert np.isfinite(pictures).all() and np.abs(pictures).max() < 5
  for i in range(8):
    for j in range(i):
      assert np.abs(pictures[i] - pictures[j]).max() > 0.1


@pytest.mark.parametrize('batch_size', [1, 3])
def test_a_picture_does_not_depend_on_the_batch_size(pictures, batch_size):
  # 8 = 3 + 3 + 2: the last batch of three is ragged.
  found = generator(batch_size=batch_size)(network()[2], LABELS)
  np.testing.assert_allclose(found, pictures, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(('first', 'last'), [(0, 3), (2, 7), (7, 8)])
def test_a_picture_is_found_again_by_its_index(pictures, first, last):
  found = generator()(network()[2], LABELS[first:last], np.arange(first, last))
  assert len(found) == last - first
  np.testing.assert_allclose(found, pictures[first:last], rtol=0, atol=TOLERANCE)


def test_offsets_reach_over_batches(pictures):
  found = generator(batch_size=3)(network()[2], LABELS[1:], np.arange(1, 8))
  np.testing.assert_allclose(found, pictures[1:], rtol=0, atol=TOLERANCE)


def test_labels_and_seed_make_the_picture(pictures):
  again = generator()(network()[2], (LABELS + 1) % CLASSES)
  assert min(np.abs(a - b).max() for a, b in zip(again, pictures, strict=True)) > 1e-3
  # The zero network leaves the ODE at its initial noise, so another seed is other noise.
  fresh = network()[1]
  noise, other = (generator(ODE, seed=s)(fresh, LABELS) for s in (0, 1))
  assert np.abs(noise - other).max(axis=(1, 2, 3)).min() > 0.1
  assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)


def test_noise_is_that_of_seed_and_index():
  found = generator(ODE)(network()[1], LABELS[:2], [100, 101])
  keys = [jax.random.fold_in(rng.stream(jax.random.key(0), 'sample'), i) for i in (100, 101)]
  noise = [jax.random.normal(rng.stream(k, 'sampling_start'), (4, 4, 2)) for k in keys]
  np.testing.assert_allclose(found, np.stack(noise), rtol=0, atol=1e-6)


def test_the_given_tree_is_sampled():
  _, fresh, params = network()
  run = generator(ODE)
  by_params, by_ema = run(params, LABELS), run(fresh, LABELS)
  assert np.abs(by_params - by_ema).max() > 0.1
  # The same two Euler steps by hand, of the model with the given weights.
  graphdef, x, labels = network()[0], by_ema, jnp.asarray(LABELS)
  model = jax.jit(lambda x, t: nnx.merge(graphdef, params).model(x, t, labels).pred)
  for t in (1.0, 0.5):
    x = x - 0.5 * model(x, jnp.full(8, t))
  np.testing.assert_allclose(by_params, x, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(
  ('config', 'per_sample', 'calls'),
  [
    (SDE, 8, 4),  # Guided everywhere: twice.
    (ODE, 2, 2),
    (trajectory.SamplerConfig(kind='heun', steps=5, guidance_scale=1.5, guidance_high=0.5), 12, 9),
  ],
)
def test_evaluations_are_reported(config, per_sample, calls):
  # Heun: steps from t = 1, 0.8, 0.6, 0.4 take two, the last from 0.2 one; guided are 0.4 and 0.2.
  evaluations = generator(config).evaluations
  assert (evaluations.per_sample, evaluations.calls) == (per_sample, calls)


def test_a_model_without_classes_samples_but_is_not_guided():
  _, _, params = network(0)
  made = generator(ODE, num_classes=0)(params, np.zeros(2, np.int32))
  assert made.shape == (2, 4, 4, 2)
  with pytest.raises(types.UserError, match='guidance_scale=2.0 needs a network with classes'):
    generator(SDE, num_classes=0)(params, np.zeros(2, np.int32))


# Labels.


def test_balanced_labels_go_round():
  found = generate.make_labels('balanced', np.arange(3, 12), 4, seed=0)
  assert found.tolist() == [3, 0, 1, 2, 3, 0, 1, 2, 3] and found.dtype == np.int32


def test_random_labels_are_a_function_of_seed_and_index():
  labels = generate.make_labels('random', np.arange(2000), 10, seed=5)
  assert labels.dtype == np.int32
  some = generate.make_labels('random', np.array([1999, 3, 3, 70]), 10, seed=5)
  assert some.tolist() == labels[[1999, 3, 3, 70]].tolist()
  other = generate.make_labels('random', np.arange(2000), 10, seed=6)
  # Ten classes: a share of 0.1 agrees by chance and each has 200; five standard deviations.
  assert abs(np.mean(labels == other) - 0.1) < 5 * np.sqrt(0.09 / 2000)
  counts = np.bincount(labels, minlength=10)
  assert counts.sum() == 2000 and np.abs(counts - 200).max() < 5 * np.sqrt(180)
  # Neighbouring indices are unrelated.
  assert abs(np.mean(labels[1:] == labels[:-1]) - 0.1) < 5 * np.sqrt(0.09 / 2000)


@pytest.mark.parametrize('policy', ['3', 3])
def test_one_class(policy):
  assert generate.make_labels(policy, np.arange(3), 4, seed=0).tolist() == [3, 3, 3]


@pytest.mark.parametrize('policy', ['4', 'null'])
def test_the_null_label_has_a_name(policy):
  assert generate.make_labels(policy, np.arange(3), 4, seed=0).tolist() == [4, 4, 4]
  assert generate.canonical(policy, 4) == 'null' and generate.canonical('3', 4) == '3'


@pytest.mark.parametrize('policy', [*generate.LABEL_POLICIES, 'null'])
def test_without_classes_all_labels_are_0(policy):
  found = generate.make_labels(policy, np.arange(3), 0, seed=0)
  assert found.tolist() == [0, 0, 0] and found.dtype == np.int32


@pytest.mark.parametrize('policy', ['5', '-1', 'evenly', '1.0', '', '²', '04', '9' * 5000])
def test_impossible_labels_are_refused(policy):
  words = rf'sample.labels={policy!r} is neither .* null \(without a class\) nor .* 0 to 3'
  with pytest.raises(types.UserError, match=words):
    generate.make_labels(policy, np.arange(3), 4, seed=0)
  with pytest.raises(types.UserError, match='but the model has no classes: leave'):
    generate.make_labels(policy, np.arange(3), 0, seed=0)
