"""Fréchet distance and Inception Score against ADM's values, closed forms and scipy."""

import json

import numpy as np
import pytest
import scipy.linalg

from diversedit_jax.evaluation import scores
from diversedit_jax.types import UserError


def covariance(rng, d, n):
  x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
  return x.mean(0), np.cov(x, rowvar=False)


def test_statistics_are_those_of_numpy():
  x = np.random.default_rng(0).normal(3, 2, (50, 6)).astype(np.float32)
  mean, cov = scores.gaussian_statistics(x)
  assert mean.dtype == cov.dtype == np.float64
  # Sums of 50 numbers of size 10 in float64.
  np.testing.assert_allclose(mean, x.astype(np.float64).mean(0), rtol=1e-13)
  np.testing.assert_allclose(cov, np.cov(x.astype(np.float64), rowvar=False, ddof=1), atol=1e-12)


@pytest.mark.parametrize('d', [16, 300])
def test_agrees_with_the_matrix_root(d):
  """Healthy covariances; float64, traces of some hundreds and thousands."""
  rng = np.random.default_rng(1)
  (m1, s1), (m2, s2) = (covariance(rng, d, 12 * d) for _ in range(2))
  root = scipy.linalg.sqrtm(s1 @ s2).real
  expected = np.sum((m1 - m2) ** 2) + np.trace(s1 + s2 - 2 * root)
  np.testing.assert_allclose(scores.frechet_distance(m1, s1, m2, s2), expected, rtol=1e-8)


def test_closed_forms():
  d = 5
  zero, one = np.zeros(d), np.eye(d)
  shift = np.arange(d)
  # A shift alone: its squared length. Rounding of float64 only, here and below.
  assert scores.frechet_distance(zero, one, shift, one) == pytest.approx(30, abs=1e-12)
  # Deviations a and b on the same axes: sum of (a - b)^2.
  a, b = np.array([1, 2, 3, 0, 5.0]), np.array([2, 2, 1, 4, 0.0])
  q = np.linalg.qr(np.random.default_rng(0).normal(size=(d, d)))[0]
  turned = [q @ np.diag(x**2) @ q.T for x in (a, b)]
  assert scores.frechet_distance(zero, turned[0], zero, turned[1]) == pytest.approx(46, abs=1e-6)
  # One-dimensional Gaussians: (m1 - m2)^2 + (s1 - s2)^2.
  found = scores.frechet_distance(np.ones(1), 9 * np.eye(1), -np.ones(1), np.eye(1))
  assert found == pytest.approx(8, abs=1e-12)


@pytest.mark.parametrize('n', [10, 500], ids=['singular', 'full rank'])
def test_distance_to_itself_is_zero(n):
  x = np.random.default_rng(2).normal(size=(n, 64)) * 3
  statistics = scores.gaussian_statistics(x)
  assert 0 <= scores.frechet_distance(*statistics, *statistics) < 1e-6


def test_singular_covariances_against_their_shared_plane():
  """Gaussians in a 3-dimensional plane of 40: the distance is that of the 3 coordinates."""
  rng = np.random.default_rng(4)
  plane = np.linalg.qr(rng.normal(size=(40, 3)))[0]
  low = [scores.gaussian_statistics(rng.normal(size=(50, 3)) * s) for s in (1, 3)]
  high = [(plane @ m, plane @ s @ plane.T) for m, s in low]
  expected = scores.frechet_distance(*low[0], *low[1])
  # Rounding leaves roots of 1e-8 in 37 empty directions, whose products are 1e-16.
  assert scores.frechet_distance(*high[0], *high[1]) == pytest.approx(expected, abs=1e-10)


def frechet_pair(data, name):
  """Features of both sides of a golden case, maps flattened, float64."""
  x = data['fid_main/x'].astype(np.float64)
  made = {
    'fid_identical': (x, x),
    'fid_permuted': (x, x[::-1]),
    'fid_mean_shift': (x, x + data.get('fid_mean_shift/shift', 0)),
    'fid_scaled_by_3': (x, 3 * x),
  }
  if name in made:
    return made[name]
  return tuple(data[f'{name}/{side}'].reshape(len(data[f'{name}/{side}']), -1) for side in 'xy')


FRECHET = [
  'fid_main',
  'fid_fewer_samples_than_dims',
  'fid_identical',
  'fid_permuted',
  'fid_mean_shift',
  'fid_scaled_by_3',
  'fid_large_offset',
  'fid_constant_dims',
  'fid_one_dim',
  'sfid_small',
  'sfid_spatial',
]


def test_every_golden_case_is_tested(golden):
  cases = json.loads(str(golden('metrics')['meta']))['cases']
  assert {name for name in cases if 'fid' in name} == set(FRECHET)


@pytest.mark.parametrize('name', FRECHET)
def test_frechet_distance_equals_adm(golden, name):
  data = golden('metrics')
  one, two = (scores.gaussian_statistics(x) for x in frechet_pair(data, name))
  found = scores.frechet_distance(*one, *two)
  # The tolerance that the file states for float64; the zero cases are absolute.
  assert found == pytest.approx(float(data[f'{name}/value']), rel=1e-6, abs=1e-6)


def test_frechet_distance_from_statistics_and_of_a_shift(golden):
  data = golden('metrics')
  given = [data[f'fid_main/{name}'] for name in ('mu_x', 'sigma_x', 'mu_y', 'sigma_y')]
  expected = float(data['fid_main/value'])
  assert scores.frechet_distance(*given) == pytest.approx(expected, rel=1e-6)
  squared = float(np.sum(data['fid_mean_shift/shift'].astype(np.float64) ** 2))
  assert float(data['fid_mean_shift/value']) == pytest.approx(squared, rel=1e-9)


@pytest.mark.parametrize('split', [5000, 230, 115, 100, 64, 10])
def test_inception_score_equals_adm(golden, split):
  data = golden('metrics')
  mean, std = scores.inception_score(data['is/probs'], split=split)
  meta = json.loads(str(data['meta']))['cases'][f'is_split{split}']
  # Both in float64; the scores are of size 1 to 4.
  assert mean == pytest.approx(float(data[f'is/value_split{split}']), rel=1e-12)
  assert std == pytest.approx(meta['std_over_parts'], abs=1e-12)
  logits = data['is/features'].astype(np.float64) @ data['is/softmax_weights']
  found = scores.inception_score(logits, logits=True, split=split)
  assert found == pytest.approx((mean, std), abs=1e-12)


def test_inception_score_of_uniform_and_of_certain_probabilities(golden):
  data = golden('metrics')
  mean, std = scores.inception_score(np.full((60, 7), 1 / 7), split=20)
  assert (mean, std) == pytest.approx((1, 0), abs=1e-12)
  classes = int(data['is/probs_near_one_hot_classes'])
  p = np.full((3 * classes, classes), 1e-9 / (classes - 1))
  p[np.arange(len(p)), np.arange(len(p)) % classes] = 1 - 1e-9
  expected = float(data['is/value_near_one_hot'])
  assert scores.inception_score(p)[0] == pytest.approx(expected, rel=1e-12)
  # Zeros, which are NaN in ADM's evaluator, and logits whose softmax is exactly 0.
  assert scores.inception_score(np.eye(classes))[0] == pytest.approx(classes, rel=1e-12)
  logits = 2000 * np.eye(classes, dtype=np.float32)
  assert scores.inception_score(logits, logits=True)[0] == pytest.approx(classes, rel=1e-12)


def test_samples_sorted_by_class_ruin_the_inception_score():
  """Parts are consecutive, in the order of the samples: as in ADM, not shuffled."""
  p = np.repeat(np.eye(5), 20, axis=0)
  assert scores.inception_score(p, split=20)[0] == pytest.approx(1)
  shuffled = np.random.default_rng(0).permutation(p)
  assert scores.inception_score(shuffled, split=100)[0] == pytest.approx(5)
  assert scores.inception_score(shuffled, split=20)[0] > 4


def test_inception_score_refusals():
  with pytest.raises(UserError, match='sum to 1; the least is 0.1, sums go from 0.3 to 0.3'):
    scores.inception_score(np.full((4, 3), 0.1))
  with pytest.raises(UserError, match='class scores of 1 samples are NaN .* first is sample 2'):
    scores.inception_score(np.array([[0.0], [1], [np.nan], [2]]), logits=True)
  with pytest.raises(UserError, match=r'shape \(4,\)'):
    scores.inception_score(np.ones(4))
  with pytest.raises(UserError, match='at least 1'):
    scores.inception_score(np.ones((0, 3)))


def test_refusals():
  zero, one = np.zeros(3), np.eye(3)
  with pytest.raises(UserError, match=r'N >= 2, D\); got \(1, 3\)'):
    scores.gaussian_statistics(np.ones((1, 3)))
  with pytest.raises(UserError, match='NaN'):
    scores.gaussian_statistics(np.full((4, 3), np.nan))
  with pytest.raises(UserError, match=r'got \(\(3,\), \(3, 3\), \(3,\), \(2, 2\)\)'):
    scores.frechet_distance(zero, one, zero, np.eye(2))
  with pytest.raises(UserError, match='finite'):
    scores.frechet_distance(zero, one, zero + np.inf, one)
