"""Each part's arithmetic, against definitions written out, scikit-learn, and closed forms."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats
from sklearn import decomposition

from diversedit_jax import types
from diversedit_jax.analysis import similarity
from diversedit_jax.analysis.parts import cknna, gradients, pca, probe, rank, variance


def features(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


# Effective rank.


@pytest.mark.parametrize('n', [12, 40], ids=['gram', 'features'])
def test_effective_rank_is_the_entropy_of_the_singular_values(n):
  x = features(n, 20) * np.logspace(0, -2, 20) + 3
  values = linalg.svdvals(x - x.mean(axis=0))
  assert rank.effective_rank(x) == pytest.approx(np.exp(stats.entropy(values)), rel=1e-6)
  assert rank.effective_rank(7 * x + 1) == pytest.approx(rank.effective_rank(x), rel=1e-9)


def test_effective_rank_of_equal_and_single_directions():
  axes = np.concatenate([np.eye(5), -np.eye(5)])
  assert rank.effective_rank(axes) == pytest.approx(5)
  assert rank.effective_rank(np.outer(features(9), features(30))) == pytest.approx(1, abs=1e-6)
  with pytest.raises(types.UserError, match='same for every sample'):
    rank.effective_rank(np.ones((4, 3)))


# CKNNA.


def cknna_of_definition(x, y, k):
  """Sums over pairs and triples of samples, as the definition has them."""
  n = len(x)
  unit = lambda z: [row / np.sqrt(np.sum(row**2)) for row in z]
  kernel = lambda z: [[float(np.sum(a * b)) for b in unit(z)] for a in unit(z)]
  near = lambda g: [
    set(sorted((j for j in range(n) if j != i), key=lambda j: -g[i][j])[:k]) for i in range(n)
  ]

  def align(g, h):
    of_g, of_h = near(g), near(h)
    cut = lambda m: np.array(
      [[m[i][j] if j in of_g[i] & of_h[i] else 0.0 for j in range(n)] for i in range(n)]
    )
    a, b = cut(g), cut(h)
    trace = sum(a[i, j] * b[j, i] for i in range(n) for j in range(n))
    chain = sum(a[i, j] * b[j, l] for i, j, l in itertools.product(range(n), repeat=3))
    whole = trace + a.sum() * b.sum() / ((n - 1) * (n - 2)) - 2 * chain / (n - 2)
    return whole / (n * (n - 3))

  g, h = kernel(x), kernel(y)
  return align(g, h) / np.sqrt(align(g, g) * align(h, h))


@pytest.mark.parametrize('k', [3, 7])
def test_cknna_is_its_definition(k):
  x = features(14, 5)
  y = np.concatenate([x + 0.5 * features(14, 5, seed=1), features(14, 2, seed=2)], axis=1)
  assert cknna.cknna(x, y, k) == pytest.approx(cknna_of_definition(x, y, k), rel=1e-10)


def test_cknna_of_all_neighbours_is_unbiased_cka_of_cosines():
  x, y = features(20, 6), features(20, 4, seed=1)
  y[:, :2] += x[:, :2]
  gram = lambda z: (u := z / np.linalg.norm(z, axis=1, keepdims=True)) @ u.T
  hsic = lambda a, b: similarity.hsic(gram(a), gram(b), 'unbiased')
  expected = hsic(x, y) / np.sqrt(hsic(x, x) * hsic(y, y))
  assert cknna.cknna(x, y, 19) == pytest.approx(expected, rel=1e-10)


def test_cknna_of_the_same_and_of_others():
  x = features(300, 20)
  scaled = x @ linalg.qr(features(20, 20, seed=1))[0] * features(300, 1, seed=2).__abs__()
  assert cknna.cknna(x, scaled, 10) == pytest.approx(1, abs=1e-9)
  assert abs(cknna.cknna(x, features(300, 20, seed=3), 10)) < 0.1
  for y, k in ((x[:9], 3), (x, 1), (x, 300)):
    with pytest.raises(types.UserError, match='CKNNA needs'):
      cknna.cknna(x, y, k)


def test_the_floor_is_low_where_samples_of_a_class_follow_each_other():
  x = np.repeat(np.eye(8), 25, axis=0) + 0.1 * features(200, 8)
  y = x + 0.1 * features(200, 8, seed=1)
  assert cknna.cknna(x, np.roll(y, 100, axis=0), 10) > 0.3
  assert abs(cknna.floor(x, y, 10, jax.random.key(0))) < 0.1


# Variance.


def residual(design, f):
  """Sum of squares that a linear model leaves."""
  flat = f.reshape(-1, f.shape[-1])
  fitted = design @ np.linalg.lstsq(design, flat, rcond=None)[0]
  return np.sum((flat - fitted) ** 2)


def test_sums_of_squares_are_what_nested_models_leave():
  f = features(4, 3, 5, 2) + features(4, 1, 1, 2, seed=1) + 2 * features(1, 3, 1, 2, seed=2)
  s, t, _ = np.meshgrid(*map(range, f.shape[:3]), indexing='ij')
  one_hot = lambda index: np.eye(index.max() + 1)[index.ravel()]
  ones, of_s, of_t = np.ones((s.size, 1)), one_hot(s), one_hot(t)
  left = {
    'mean': residual(ones, f),
    's': residual(of_s, f),
    't': residual(of_t, f),
    'both': residual(np.concatenate([of_s, of_t], axis=1), f),
    'cell': residual(one_hot(s * 3 + t), f),
  }
  found = variance.sums_of_squares(f)
  assert found['source'] == pytest.approx(left['mean'] - left['s'])
  assert found['time'] == pytest.approx(left['mean'] - left['t'])
  assert found['interaction'] == pytest.approx(left['both'] - left['cell'])
  assert found['noise'] == pytest.approx(left['cell'])
  assert sum(found.values()) == pytest.approx(left['mean'])


def test_shares_are_the_variances_that_made_the_data():
  """4 variances of 1, 4, 0.25 and 2.25 over 60 x 60 cells; their errors are some percent."""
  shape = (60, 60, 3, 50)
  f = features(60, 1, 1, 50) + 2 * features(1, 60, 1, 50, seed=1)
  f = f + 0.5 * features(60, 60, 1, 50, seed=2) + 1.5 * features(*shape, seed=3)
  found = variance.shares(f)
  expected = dict(zip(variance.NAMES, np.array([1, 4, 0.25, 2.25]) / 7.5, strict=True))
  assert found == pytest.approx(expected, abs=0.02)
  noise = variance.shares(features(*shape))
  assert noise['noise'] > 0.99 and sum(noise.values()) == pytest.approx(1)


# Pictures.


def test_components_are_those_of_scikit_learn():
  f = features(3, 4, 10) * np.linspace(3, 0.1, 10) + 5
  found, share = pca.components(f)
  fitted = decomposition.PCA(3, svd_solver='full').fit(f.reshape(-1, 10))
  theirs = fitted.transform(f.reshape(-1, 10)).reshape(3, 4, 3)
  np.testing.assert_allclose(np.abs(found), np.abs(theirs), atol=1e-9)
  assert share == pytest.approx(fitted.explained_variance_ratio_.sum())
  one, all_of_it = pca.components(features(3, 4, 1))
  assert one.shape == (3, 4, 3) and all_of_it == 1


def test_components_are_matched_with_those_before():
  before = features(3, 4, 3)
  found = -before[..., [2, 0, 1]] * [1, -1, 1] + 0.1 * features(3, 4, 3, seed=1)
  again = pca.matched(found, before)
  for c in range(3):
    assert np.corrcoef(again[..., c].ravel(), before[..., c].ravel())[0, 1] > 0.9
  coloured = pca.colours(found)
  assert coloured.min() == 0 and coloured.max() == 1 and coloured.shape == found.shape


# Probes.


def test_probes_read_what_is_there_and_nothing_else():
  labels, times = np.arange(300) % 3, np.linspace(0, 1, 300)
  x = features(300, 12)
  x[:, 0] += 6 * labels
  x[:, 1] += 20 * times
  half = slice(None, None, 2), slice(1, None, 2)
  share, converged = probe.class_accuracy(x[half[0]], labels[half[0]], x[half[1]], labels[half[1]])
  assert share > 0.95 and converged
  assert probe.time_r2(x[half[0]], times[half[0]], x[half[1]], times[half[1]]) > 0.9
  nothing = features(300, 12, seed=1)
  share, _ = probe.class_accuracy(
    nothing[half[0]], labels[half[0]], nothing[half[1]], labels[half[1]]
  )
  assert 0.2 < share < 0.5
  r2 = probe.time_r2(nothing[half[0]], times[half[0]], nothing[half[1]], times[half[1]])
  assert -0.2 < r2 < 0.1


def test_scaling_of_features_does_not_matter_to_a_probe():
  labels, x = np.arange(60) % 2, features(60, 5)
  x[:, 0] += 2 * labels
  one = probe.class_accuracy(x, labels, x, labels)
  assert probe.class_accuracy(x * np.logspace(-4, 4, 5) + 9, labels, x, labels) != one
  scaled = x * np.logspace(-4, 4, 5) + 9
  assert probe.class_accuracy(scaled, labels, scaled, labels) == one


# Gradients.


@pytest.mark.parametrize('skips', [False, True])
def test_products_are_those_of_gradients_taken_alone(skips):
  """Quadratic losses of three blocks, whose gradients are known."""
  names = ('first', 'second', 'fuse') if skips else ('layers',)
  n = 2 if skips else 4
  blocks = {name: {'w': jnp.asarray(features(n, 3, seed=i))} for i, name in enumerate(names)}
  pulls = {'a': 1.0, 'b': -0.5, 'c': 0.0}

  def losses(blocks):
    squares = sum(jnp.sum(x**2) for x in jax.tree.leaves(blocks)) / 2
    return {name: factor * squares for name, factor in pulls.items()}

  found = gradients.products(losses, blocks, 4)
  w = {name: np.sum(np.square(x['w']), axis=1) for name, x in blocks.items()}
  squares = w['layers'] if not skips else np.r_[w['first'], (w['second'] + w['fuse'])[::-1]]
  for a, b in itertools.product(pulls, repeat=2):
    np.testing.assert_allclose(found[a][b], pulls[a] * pulls[b] * squares, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(('there', 'size', 'batches'), [(43, 10, 4), (40, 10, 4), (13, 10, 4)])
def test_batches_are_spread_evenly_without_repeats(there, size, batches):
  found = gradients.spaced(there, size, batches)
  assert found.shape == (batches, size) and found.min() >= 0 and found.max() < there
  assert all(len(np.unique(row)) == size for row in found)
  assert len(np.unique(found)) == min(there, size * batches)
  for row in np.sort(found):
    gaps = np.diff([*row, row[0] + there])
    assert gaps.max() - gaps.min() <= 1
