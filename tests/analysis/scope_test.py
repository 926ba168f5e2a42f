"""Block outputs of fixed examples: shape, batches, one noise for all times, labels, options."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, rng, sharding, types
from diversedit_jax.analysis import registry, section
from diversedit_jax.analysis import scope as scope_lib
from diversedit_jax.data import sources
from diversedit_jax.methods import base, flow
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import config

KEY = jax.random.key(3)
DEPTH, WIDTH, TOKENS = 4, 16, 4
TIMES = (0.25, 0.75)
OBJECTIVE = objective_lib.Objective(
  flow=flow.StochasticInterpolant(
    path=interpolants.linear(), time_law=interpolants.TIME_LAWS['uniform'](), null_label=10
  )
)


def network(skips=False, noise=0.0):
  """A network for 8x8 pictures, away from the initial identity by `noise`."""
  architecture = config.Architecture(
    input_size=(8, 8),
    channels=1,
    num_classes=10,
    depth=DEPTH,
    width=WIDTH,
    heads=2,
    patch_size=4,
    skip=config.Skip(enabled=skips),
  )
  made = base.Network(architecture, config.Execution(), rngs=nnx.Rngs(0))
  graphdef, state = nnx.split(made, nnx.Param)
  generator = np.random.default_rng(0)
  noisy = lambda x: x + jnp.asarray(noise * generator.standard_normal(x.shape), x.dtype)
  return scope_lib.Subject(
    name='small',
    graphdef=graphdef,
    params=jax.tree.map(noisy, nnx.to_pure_dict(state)),
    objective=OBJECTIVE,
    frozen={},
    mesh=sharding.make_mesh(),
    architecture=architecture,
  )


def scope(subject, source, **fields):
  return scope_lib.Scope(
    config=section.AnalysisConfig(**(dict(examples=70, times=TIMES) | fields)),
    subject=subject,
    held_out=source,
    training=source,
    objective=OBJECTIVE,
    key=KEY,
  )


@pytest.fixture(scope='module')
def digits():
  return sources.digits('test')


@pytest.fixture(scope='module')
def subject():
  return network(True, 0.2)


@pytest.fixture(scope='module')
def found(subject, digits):
  """Features of 70 digits, a batch of 64 and one of 6."""
  return scope(subject, digits).features()


def few(digits, labels=None, n=6):
  labels = digits.labels[:n] if labels is None else np.array(labels)
  return sources.ArraySource(
    name='few', space='pixels', num_classes=10, data=digits.data[:n], labels=labels
  )


def test_shape_is_times_blocks_examples_features(found):
  assert found.shape == (2, DEPTH, 70, WIDTH) and found.dtype == np.float32
  # Every time, block and example has features of its own.
  rows = found.reshape(-1, WIDTH)
  assert len(np.unique(rows.round(4), axis=0)) == len(rows)


def test_batches_change_nothing(found, subject, digits):
  other = scope(subject, digits, batch_size=27).features()  # 27 + 27 + 16.
  # Products of another size are summed in another order: float32 roundings.
  np.testing.assert_allclose(other, found, rtol=0, atol=1e-5 * np.abs(found).max())


def test_examples_are_spread_over_the_split_and_computed_once(subject, digits):
  made = scope(subject, digits, examples=5)
  np.testing.assert_array_equal(made.indices, [0, 71, 142, 213, 284])
  assert made.features() is made.features(view='mean', labels='true')
  assert made.features(labels='null') is not made.features()


def test_one_noise_for_all_times_and_no_more_examples_than_there_are(digits):
  source, small = few(digits), network()
  made = scope(small, source, examples=256, times=(0.0, 0.5, 1.0), view='flatten')
  f = made.features()
  assert f.shape == (3, DEPTH, 6, TOKENS * WIDTH)
  # A fresh block is the identity, so features are the tokens of x_t, affine in it; and x_t at 1/2
  # lies half way between data and noise if that noise is the same.
  np.testing.assert_allclose(f[1], (f[0] + f[2]) / 2, rtol=0, atol=1e-5)
  tokens = nnx.merge(small.graphdef, small.params).model.tokens
  np.testing.assert_allclose(f[0, 0], tokens(jnp.asarray(source.data)).reshape(6, -1), atol=1e-5)
  keys = [rng.stream(jax.random.fold_in(KEY, i), 'noise') for i in range(6)]
  noise = np.stack([jax.random.normal(key, (8, 8, 1)) for key in keys])
  np.testing.assert_allclose(f[2, 0], tokens(jnp.asarray(noise)).reshape(6, -1), atol=1e-5)
  (x_t,) = next(made.batches(1.0, view=scope_lib.INPUT))
  np.testing.assert_allclose(x_t, noise, atol=1e-6)
  each = np.concatenate([next(made.batches(t, view='all')) for t in (0.0, 1.0)])
  np.testing.assert_allclose(each.reshape(2, DEPTH, 6, -1), f[[0, 2]], atol=1e-6)


def test_every_example_may_have_a_time_of_its_own(subject, digits):
  options = {'key': KEY, 'size': 8}
  own = next(subject.batches(few(digits), np.arange(6), np.linspace(0, 1, 6), **options))
  for i, t in enumerate(np.linspace(0, 1, 6)):
    all_at = next(subject.batches(few(digits), np.arange(6), t, **options))
    np.testing.assert_allclose(own[:, i], all_at[:, i], atol=1e-6)


def test_true_labels_are_used_unless_the_network_is_told_none(subject, digits):
  labels = [1, 2, 3, 4], [1, 2, 3, 5], [10] * 4
  of = lambda given, **how: scope(
    subject, few(digits, given, 4), examples=4, times=(0.5,)
  ).features(**how)
  one, other, null = (of(given) for given in labels)
  changed = np.abs(one - other).max(axis=(0, 1, 3))
  assert changed[:3].max() == 0 and changed[3] > 1e-3
  np.testing.assert_array_equal(of(labels[0], labels='null'), null)
  np.testing.assert_array_equal(of(labels[1], **scope_lib.UNTOLD), null)


@pytest.mark.parametrize('part', ['variance', 'pca'])
def test_parts_of_other_examples_tell_the_labels_that_are_chosen(part, subject, digits):
  of = lambda given, **how: (
    registry.PARTS[part].run(scope(subject, few(digits, given, 4), examples=4, **how)).summary
  )
  assert of([1, 2, 3, 4], labels='null') == of([10] * 4) != of([1, 2, 3, 4])


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (dict(examples=3), 'analysis.examples must be at least 4'),
    (dict(times=()), 'analysis.times is empty'),
    (dict(times=(0.5, 1.5)), 'analysis.times must be in'),
    (dict(time_grid=(0.5, 0.5)), 'two different times'),
    (dict(view='flat'), "did you mean 'flatten'"),
    (dict(parts=('cka', 'prob')), "unknown part of analysis.parts 'prob'; did you mean 'probe'"),
    (dict(parts=('cka', 'cka')), 'names a part twice'),
    (dict(parts=('all', 'cka')), 'names a part twice'),
  ],
)
def test_impossible_options_are_refused(fields, words):
  with pytest.raises(types.UserError, match=words):
    section.AnalysisConfig(**fields)


def test_the_help_names_every_part():
  doc = section.AnalysisConfig.__dataclass_fields__['parts'].metadata['option'].doc
  listed = doc.rpartition(': ')[2].removesuffix('.').split(', ')
  assert listed == sorted(registry.PARTS)
  assert f'({", ".join(registry.defaults())})' in doc


def test_parts_that_a_run_does_not_allow(subject, digits):
  made = scope(subject, digits)
  names, left_out = registry.chosen(('all',), made)
  assert set(left_out) == {'steps', 'compare', 'gradients'}
  assert {*names, *left_out} == set(registry.PARTS)
  assert registry.chosen((), made) == (list(registry.defaults()), {})
  for name in left_out:
    with pytest.raises(types.UserError, match=f'analysis.parts: {name} '):
      registry.chosen(('cka', name), made)
