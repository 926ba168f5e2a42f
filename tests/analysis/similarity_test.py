"""CKA against the golden matrices, its definition written out, and its invariances."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import pairwise

from diversedit_jax.analysis import kernels, similarity
from diversedit_jax.types import UserError

KINDS = list(itertools.product(similarity.KERNELS, kernels.ESTIMATORS))


def features(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize('samples', ['tokens', 'pooled'])
@pytest.mark.parametrize('kernel', ['linear', 'rbf_median_offdiag', 'rbf_median_full'])
def test_golden(golden, samples, kernel):
  """Both sides are float64 from the same float32 features: 1e-10 leaves room for rounding only."""
  stored = golden('cka')
  x = similarity.view(stored['feats'], {'tokens': 'tokens', 'pooled': 'mean'}[samples])
  options = {'kernel': kernel.split('_')[0]}
  if kernel != 'linear':
    options['median'] = kernel.rsplit('_', 1)[1]
  found = similarity.cka(x, **options)
  np.testing.assert_allclose(found, stored[f'{samples}/{kernel}'], rtol=0, atol=1e-10)


def kernel_matrix(x, kernel, fraction):
  """Entry by entry, from the definition."""
  n = len(x)
  if kernel == 'linear':
    return np.array([[np.sum(x[i] * x[j]) for j in range(n)] for i in range(n)])
  if kernel == 'poly':
    x = x - x.mean(axis=0)
    gamma = 1 / np.mean(np.sum(x**2, axis=1))
    return pairwise.polynomial_kernel(x, degree=3, gamma=gamma, coef0=1)
  squares = np.array([[np.sum((x[i] - x[j]) ** 2) for j in range(n)] for i in range(n)])
  width = fraction**2 * np.median([squares[i, j] for i, j in itertools.combinations(range(n), 2)])
  return np.exp(-squares / (2 * width))


def biased_hsic(k, l):
  n = len(k)
  h = np.eye(n) - np.full((n, n), 1 / n)
  return np.trace(k @ h @ l @ h) / (n - 1) ** 2


def u_statistic(k, l):
  """Mean over all ordered quadruples of different samples of k_ij (l_ij + l_qr - 2 l_iq)."""
  n = len(k)
  terms = [
    k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q])
    for i, j, q, r in itertools.permutations(range(n), 4)
  ]
  return np.mean(terms)


DEFINITIONS = {'biased': biased_hsic, 'unbiased': u_statistic}


@pytest.mark.parametrize(('kernel', 'estimator'), KINDS)
@pytest.mark.parametrize('p', [3, 20], ids=['features', 'gram'])
def test_definition(kernel, estimator, p):
  """Both linear forms (p below and above n) and both estimators; float64 on numbers near 1."""
  n = 8
  x = features(3, n, p) + 2
  x[1] += 0.8 * x[0]  # Else all unbiased values would lie near 0.
  k = [kernel_matrix(x_NP, kernel, 0.7) for x_NP in x]
  hsic = np.array([[DEFINITIONS[estimator](a, b) for b in k] for a in k])
  scale = np.sqrt(np.diag(hsic))
  found = similarity.cka(x, kernel=kernel, estimator=estimator, bandwidth=0.7)
  np.testing.assert_allclose(found, hsic / scale[:, None] / scale[None], atol=1e-10)
  # The layers are told apart, by far more than the tolerance.
  assert abs(found[0, 1] - found[0, 2]) > 1e-3


@pytest.mark.parametrize('estimator', kernels.ESTIMATORS)
def test_hsic_of_matrices(estimator):
  k, l = (kernel_matrix(features(7, 4, seed=s) + 1, 'linear', 1) for s in (0, 1))
  found = similarity.hsic(k, l, estimator)
  assert found == pytest.approx(DEFINITIONS[estimator](k, l), rel=1e-10)


@pytest.mark.parametrize(('kernel', 'estimator'), KINDS)
@pytest.mark.parametrize('p', [6, 60], ids=['features', 'gram'])
def test_invariances(kernel, estimator, p):
  """Orthogonal maps, isotropic scaling and shifts of each layer change nothing but rounding."""
  n = 20
  x = features(3, n, p)
  x[1] += x[0]
  q = [np.linalg.qr(features(p, p, seed=s))[0] for s in (1, 2, 3)]
  scale, shift = np.array([0.01, 1, 300])[:, None, None], features(3, 1, p, seed=5) * 10
  moved = scale * (x @ np.stack(q) + shift)
  options = {'kernel': kernel, 'estimator': estimator}
  expected = similarity.cka(x, **options)
  np.testing.assert_allclose(similarity.cka(moved, **options), expected, atol=1e-9)
  np.testing.assert_allclose(np.diag(expected), 1, atol=1e-12)
  np.testing.assert_array_equal(expected, expected.T)
  # Not invariant to what it must see, other samples against each other, by far more than 1e-9.
  moved[1] = moved[1][::-1]
  assert np.abs(similarity.cka(moved, **options) - expected).max() > 1e-3


@pytest.mark.parametrize('kernel', similarity.KERNELS)
def test_independent_layers(kernel):
  """n = 100 samples of p = 400: the unbiased estimate is about 0, the biased one far above."""
  x = features(6, 100, 400)
  off = ~np.eye(6, dtype=bool)
  unbiased = similarity.cka(x, kernel=kernel, estimator='unbiased')[off]
  # Independent entries have a deviation of about 1.4 / n; 15 pairs, 5 deviations for the largest.
  assert np.abs(unbiased).max() < 5 * 1.4 / 100
  assert similarity.cka(x, kernel=kernel, estimator='biased')[off].min() > 0.5


def test_narrow_rbf_separates_and_wide_rbf_is_linear():
  x = features(2, 30, 5)
  x[1] += x[0]
  linear = similarity.cka(x)[0, 1]
  wide = similarity.cka(x, kernel='rbf', bandwidth=1e3)[0, 1]
  # The next term of exp is smaller by (distance / (2 s))^2, about 1e-6.
  assert wide == pytest.approx(linear, abs=1e-5)
  assert abs(similarity.cka(x, kernel='rbf', bandwidth=0.5)[0, 1] - linear) > 0.01


@pytest.mark.parametrize(('kernel', 'estimator'), KINDS)
def test_two_sets_of_layers(kernel, estimator):
  """Blocks of [L, M] are those of the stacked matrix, also when p and q take different forms."""
  options = {'kernel': kernel, 'estimator': estimator}
  x, y = features(2, 12, 5), features(3, 12, 5, seed=1)
  whole = similarity.cka(np.concatenate([x, y]), **options)
  np.testing.assert_allclose(similarity.cka(x, y, **options), whole[:2, 2:], atol=1e-12)
  padded = np.concatenate([y, np.zeros((3, 12, 30))], axis=-1)
  np.testing.assert_allclose(similarity.cka(x, padded, **options), whole[:2, 2:], atol=1e-12)
  one = similarity.cka(x[0], y[2], **options)
  assert isinstance(one, float)
  assert one == pytest.approx(whole[0, 4], abs=1e-12)


@pytest.mark.parametrize('kernel', similarity.KERNELS)
def test_minibatches_are_summed_before_they_are_divided(kernel):
  """Against the definition (6), with terms that are u-statistics over quadruples."""
  x, y = features(2, 14, 4) + 1, features(3, 14, 5, seed=1)
  y[0, :, :4] += x[0]
  parts = [slice(0, 7), slice(7, 14)]
  gram = lambda z, part: kernel_matrix(z[part], kernel, 0.7)
  term = lambda a, b: sum(u_statistic(gram(a, part), gram(b, part)) for part in parts)
  expected = [[term(a, b) / np.sqrt(term(a, a) * term(b, b)) for b in y] for a in x]
  batches = lambda z: (z[:, part] for part in parts)
  numbers = {'kernel': kernel, 'bandwidth': 0.7}
  found = similarity.of_batches(batches(x), batches(y), **numbers)
  np.testing.assert_allclose(found, expected, atol=1e-10)
  whole = similarity.of_batches(batches(np.concatenate([x, y[..., :4]])), **numbers)
  np.testing.assert_allclose(np.diag(whole), 1, atol=1e-12)
  own = similarity.of_batches(batches(x), batches(y[..., :4]), **numbers)
  np.testing.assert_allclose(whole[:2, 2:], own, atol=1e-12)
  ratios = [similarity.cka(x[:, p], y[:, p], estimator='unbiased', **numbers) for p in parts]
  assert np.abs(np.mean(ratios, axis=0) - found).max() > 1e-3  # Which is another number.


def test_many_minibatches_come_to_what_all_examples_say():
  """2,000 samples of 300 features that share half: the biased estimate of 32 would be near 1."""
  common, n = features(2000, 300), 32
  x = np.stack([common + features(2000, 300, seed=s) for s in (1, 2)])
  batches = [x[:, i : i + n] for i in range(0, 2000, n)]  # The last one, of 16, is left out.
  found = similarity.of_batches(iter(batches))[0, 1]
  assert found == similarity.of_batches(batches[:-1])[0, 1]
  whole = similarity.cka(x, estimator='unbiased')[0, 1]
  assert found == pytest.approx(whole, abs=0.03) and whole == pytest.approx(0.25, abs=0.03)
  assert similarity.cka(x[:, :n], estimator='biased')[0, 1] > 0.5


@pytest.mark.parametrize('estimator', kernels.ESTIMATORS)
def test_batches_of_other_estimators_are_put_together(estimator):
  x, y = features(2, 20, 3), features(3, 20, 3, seed=1)
  split = lambda z: iter([z[:, :11], z[:, 11:]])
  found = similarity.of_batches(split(x), split(y), estimator=estimator)
  np.testing.assert_array_equal(found, similarity.cka(x, y, estimator=estimator))
  with pytest.raises(UserError, match="did you mean 'minibatch'"):
    similarity.of_batches([x], estimator='minibatches')


def test_views():
  f_LNTD = features(2, 3, 4, 5)
  flat, mean, tokens = (similarity.view(f_LNTD, kind) for kind in ('flatten', 'mean', 'tokens'))
  assert (flat.shape, mean.shape, tokens.shape) == ((2, 3, 20), (2, 3, 5), (2, 12, 5))
  for i, n, t in itertools.product(range(2), range(3), range(4)):
    np.testing.assert_array_equal(flat[i, n, 5 * t : 5 * t + 5], f_LNTD[i, n, t])
    np.testing.assert_array_equal(tokens[i, 4 * n + t], f_LNTD[i, n, t])
    np.testing.assert_allclose(mean[i, n], sum(f_LNTD[i, n]) / 4, rtol=1e-12, atol=1e-14)
  with pytest.raises(UserError, match="did you mean 'flatten'"):
    similarity.view(f_LNTD, 'flat')
  with pytest.raises(ValueError, match='expected'):
    similarity.view(flat, 'mean')


def test_diversity_score():
  assert similarity.diversity_score(np.ones((3, 3))) == 0
  assert similarity.diversity_score(np.eye(4)) == 1
  matrix = np.array([[1, 0.2, 0.6], [0.2, 1, 0.1], [0.6, 0.1, 1]])
  assert similarity.diversity_score(matrix) == pytest.approx(0.7)
  of_blocks = similarity.block_diversity(matrix)
  np.testing.assert_allclose(of_blocks, [0.6, 0.85, 0.65])
  assert of_blocks.mean() == pytest.approx(similarity.diversity_score(matrix))
  for bad in (np.ones((2, 3)), np.ones((1, 1)), np.float64(1)):
    for function in (similarity.diversity_score, similarity.block_diversity):
      with pytest.raises(UserError, match='L >= 2'):
        function(bad)


CONSTANT = np.stack([features(9, 3), np.full((9, 3), 0.1)])
COPIES = np.stack([features(9, 3), np.concatenate([np.ones((8, 3)) / 3, np.zeros((1, 3))])])


@pytest.mark.parametrize(
  ('x', 'options', 'message'),
  [
    (features(2, 3, 5), {'estimator': 'unbiased'}, 'n >= 4 samples; got 3'),
    (features(2, 1, 5), {}, 'n >= 2 samples; got 1'),
    (features(9, 3), {}, r'got \(9, 3\)'),
    (features(2, 9, 3), {'kernel': 'rfb'}, "did you mean 'rbf'"),
    (features(2, 9, 3), {'estimator': 'unbaised'}, "did you mean 'unbiased'"),
    (features(2, 9, 3), {'median': 'offdiagonal'}, "did you mean 'offdiag'"),
    (features(2, 9, 3), {'bandwidth': 0.0}, '> 0; got 0.0'),
    (features(2, 9, 3), {'kernel': 'poly', 'degree': 0}, 'at least 1; got 0'),
    (features(2, 9, 3) * np.nan, {}, 'layer 0 .* not finite'),
    (CONSTANT, {}, 'layer 1 .* same for every sample'),
    (COPIES, {'kernel': 'rbf'}, 'layer 1 .* median distance'),
  ],
)
def test_refusals(x, options, message):
  with pytest.raises(UserError, match=message):
    similarity.cka(x, **options)


def test_other_samples_are_refused():
  with pytest.raises(UserError, match='n = 9 and 8'):
    similarity.cka(features(2, 9, 3), features(2, 8, 3))
