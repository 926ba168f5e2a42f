"""Block features of fixed examples: shape, batches, one noise for all times; CKA of them."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, rng, sharding, types
from diversedit_jax.analysis import blocks
from diversedit_jax.data import sources
from diversedit_jax.methods import base, flow
from diversedit_jax.models import config

KEY = jax.random.key(3)
DEPTH, WIDTH, TOKENS = 4, 16, 4
TIMES = (0.25, 0.75)
OBJECTIVE = base.Objective(
  flow=flow.StochasticInterpolant(
    path=interpolants.linear(), time_law=interpolants.TIME_LAWS['uniform'](), null_label=10
  )
)


def network(skips=False, noise=0.0):
  """(graphdef, params) for 8x8 pictures, away from the initial identity by `noise`."""
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
  graphdef, state = nnx.split(base.Network(architecture, rngs=nnx.Rngs(0)), nnx.Param)
  generator = np.random.default_rng(0)
  noisy = lambda x: x + jnp.asarray(noise * generator.standard_normal(x.shape), x.dtype)
  return graphdef, jax.tree.map(noisy, nnx.to_pure_dict(state))


def options(**fields):
  return blocks.AnalysisConfig(
    **(dict(examples=70, times=TIMES, view='mean', bandwidth=1.0) | fields)
  )


def features(graphdef, params, source, config):
  return blocks.block_features(
    graphdef,
    params,
    source,
    config,
    objective=OBJECTIVE,
    frozen={},
    key=KEY,
    mesh=sharding.make_mesh(),
  )


@pytest.fixture(scope='module')
def digits():
  return sources.digits('test')


@pytest.fixture(scope='module')
def found(digits):
  """Features of 70 digits, a batch of 64 and one of 6."""
  return features(*network(True, 0.2), digits, options())


def test_shape_is_times_blocks_examples_features(found):
  assert found.shape == (2, DEPTH, 70, WIDTH) and found.dtype == np.float32
  # Every time, block and example has features of its own.
  rows = found.reshape(-1, WIDTH)
  assert len(np.unique(rows.round(4), axis=0)) == len(rows)


def test_batches_change_nothing(found, digits, monkeypatch):
  monkeypatch.setattr(blocks, '_BATCH', 27)  # 27 + 27 + 16.
  other = features(*network(True, 0.2), digits, options())
  # Products of another size are summed in another order: float32 roundings.
  np.testing.assert_allclose(other, found, rtol=0, atol=1e-5 * np.abs(found).max())


def test_one_noise_for_all_times_and_no_more_examples_than_there_are(digits):
  few = sources.ArraySource(
    name='few', space='pixels', num_classes=10, data=digits.data[:6], labels=digits.labels[:6]
  )
  config = options(examples=256, times=(0.0, 0.5, 1.0), view='flatten')
  graphdef, params = network()
  f = features(graphdef, params, few, config)
  assert f.shape == (3, DEPTH, 6, TOKENS * WIDTH)
  # A fresh block is the identity, so features are the tokens of x_t, affine in it; and x_t at 1/2
  # lies half way between data and noise if that noise is the same.
  np.testing.assert_allclose(f[1], (f[0] + f[2]) / 2, rtol=0, atol=1e-5)
  tokens = nnx.merge(graphdef, params).model.tokens
  np.testing.assert_allclose(f[0, 0], tokens(jnp.asarray(few.data)).reshape(6, -1), atol=1e-5)
  keys = [rng.stream(jax.random.fold_in(KEY, i), 'noise') for i in range(6)]
  noise = [jax.random.normal(key, (8, 8, 1)) for key in keys]
  np.testing.assert_allclose(f[2, 0], tokens(jnp.stack(noise)).reshape(6, -1), atol=1e-5)


def test_true_labels_are_used(digits):
  few = dict(name='few', space='pixels', num_classes=10, data=digits.data[:4])
  model = network(noise=0.2)
  config = options(examples=4, times=(0.5,))
  one, other = (
    features(*model, sources.ArraySource(labels=np.array(labels), **few), config)
    for labels in ([1, 2, 3, 4], [1, 2, 3, 5])
  )
  changed = np.abs(one - other).max(axis=(0, 1, 3))
  assert changed[:3].max() == 0 and changed[3] > 1e-3


def test_cka_of_every_kernel_estimator_and_time(found):
  matrices = blocks.cka_matrices(found, TIMES, 1.0)
  kernels, estimators = ('linear', 'rbf'), ('biased', 'unbiased')
  assert set(matrices) == {(k, e, t) for k in kernels for e in estimators for t in TIMES}
  for name, matrix in matrices.items():
    assert matrix.shape == (DEPTH, DEPTH), name
    np.testing.assert_allclose(np.diag(matrix), 1.0, rtol=1e-12, err_msg=str(name))
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-12, err_msg=str(name))
    assert matrix.max() < 1 + 1e-9 and np.ptp(matrix) > 1e-3, name
  for kernel in kernels:
    for estimator in estimators:
      first, second = (matrices[kernel, estimator, t] for t in TIMES)
      assert np.abs(first - second).max() > 1e-4  # Each time has its own features.


def test_times_must_match_the_features(found):
  with pytest.raises(ValueError, match='zip'):
    blocks.cka_matrices(found, (0.25,), 1.0)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (dict(examples=3), 'at least 4 examples'),
    (dict(times=()), r'times=\(\)'),
    (dict(times=(0.5, 1.5)), r'times in \[0, 1\]'),
    (dict(view='flat'), "did you mean 'flatten'"),
  ],
)
def test_impossible_options_are_refused(fields, words):
  with pytest.raises(types.UserError, match=words):
    options(**fields)
