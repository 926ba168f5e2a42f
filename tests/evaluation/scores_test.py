"""Fréchet distance against closed forms, scipy's matrix root, and its invariances."""

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


def test_agrees_with_the_matrix_root():
  """Healthy covariances of dimension 16; float64, traces of some hundreds."""
  rng = np.random.default_rng(1)
  (m1, s1), (m2, s2) = (covariance(rng, 16, 200) for _ in range(2))
  root = scipy.linalg.sqrtm(s1 @ s2).real
  expected = np.sum((m1 - m2) ** 2) + np.trace(s1 + s2 - 2 * root)
  np.testing.assert_allclose(scores.frechet_distance(m1, s1, m2, s2), expected, rtol=1e-10)


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


def test_order_of_the_samples_does_not_matter():
  rng = np.random.default_rng(3)
  x, y = rng.normal(size=(100, 8)), rng.normal(1, 2, (80, 8))
  one, two = (scores.gaussian_statistics(a) for a in (x, y))
  shuffled = scores.gaussian_statistics(rng.permutation(x))
  distance = scores.frechet_distance(*one, *two)
  assert scores.frechet_distance(*shuffled, *two) == pytest.approx(distance, rel=1e-10)
  assert scores.frechet_distance(*two, *one) == pytest.approx(distance, rel=1e-10)
  assert distance > 8  # The means alone are about 8 apart.


def test_singular_covariances_against_their_shared_plane():
  """Gaussians in a 3-dimensional plane of 40: the distance is that of the 3 coordinates."""
  rng = np.random.default_rng(4)
  plane = np.linalg.qr(rng.normal(size=(40, 3)))[0]
  low = [scores.gaussian_statistics(rng.normal(size=(50, 3)) * s) for s in (1, 3)]
  high = [(plane @ m, plane @ s @ plane.T) for m, s in low]
  expected = scores.frechet_distance(*low[0], *low[1])
  # Rounding leaves roots of 1e-8 in 37 empty directions, whose products are 1e-16.
  assert scores.frechet_distance(*high[0], *high[1]) == pytest.approx(expected, abs=1e-10)


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
