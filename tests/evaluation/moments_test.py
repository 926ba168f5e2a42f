"""Moments of batches are those of one pass, whatever the batches and their order."""

import gc
import weakref

import numpy as np
import pytest

from diversedit_jax.evaluation import moments, scores
from diversedit_jax.types import UserError


def features(n, d=24, seed=0):
  """Skewed and of unequal variance, as pool features are."""
  rng = np.random.default_rng(seed)
  mixed = np.random.default_rng(9).normal(size=(d, d)) * np.geomspace(1, 0.05, d)[:, None]
  x = rng.normal(size=(n, d)) @ mixed
  return np.maximum(x + 0.4, 0).astype(np.float32)


def of(*batches):
  made = moments.Moments()
  for x in batches:
    made.add(x)
  return made


def check_same(found, expected):
  """The same statistics, and the same Fréchet distance to other features: float64 rounding."""
  other = scores.gaussian_statistics(1.05 * features(900, seed=5))
  n, mu, sigma = found.statistics()
  assert n == expected[0]
  scale = np.sqrt(np.diag(expected[2]).max())
  np.testing.assert_allclose(mu, expected[1], atol=1e-12 * scale)
  np.testing.assert_allclose(sigma, expected[2], atol=1e-12 * scale**2)
  distance = scores.frechet_distance(*expected[1:], *other)
  assert scores.frechet_distance(mu, sigma, *other) == pytest.approx(distance, rel=1e-10)
  # Small beside the variances, so that an error of theirs would show.
  assert 0 < distance < 0.1 * np.trace(sigma)


@pytest.fixture(scope='module')
def x():
  return features(2500)


@pytest.fixture(scope='module')
def expected(x):
  return len(x), *scores.gaussian_statistics(x)


@pytest.mark.parametrize('size', [1, 37, 1025, 2500])
def test_batch_size_does_not_matter(x, expected, size):
  found = of(*(x[i : i + size] for i in range(0, len(x), size)))
  check_same(found, expected)
  # To the last bit: the sums are over the same chunks.
  np.testing.assert_array_equal(found.statistics()[2], of(x).statistics()[2])


FRECHET = ['fid_main', 'fid_fewer_samples_than_dims', 'fid_large_offset', 'fid_constant_dims']


@pytest.mark.parametrize('name', [*FRECHET, 'fid_one_dim', 'sfid_small'])
def test_golden_distances(golden, name):
  data = golden('metrics')
  pair = []
  for side in 'xy':
    points = data[f'{name}/{side}'].reshape(len(data[f'{name}/{side}']), -1)
    pair += of(points[:20], points[20:]).statistics()[1:]
  # The tolerance that the file states for float64.
  assert scores.frechet_distance(*pair) == pytest.approx(float(data[f'{name}/value']), rel=1e-6)


def test_a_large_common_offset_cancels():
  """Mean 4000, deviation 0.05: sums of squares in float32 would have steps of 1000."""
  rng = np.random.default_rng(0)
  x = (4000 + 0.05 * rng.normal(size=(3000, 8))).astype(np.float32)
  _, mu, sigma = of(x[:40], x[40:]).statistics()
  exact = scores.gaussian_statistics(x)
  np.testing.assert_allclose(mu, exact[0], rtol=1e-12)
  np.testing.assert_allclose(np.diag(sigma), np.diag(exact[1]), rtol=1e-10)


def test_features_are_not_kept(x):
  made = moments.Moments()
  for i in range(0, 2500, 250):
    part = x[i : i + 250].copy()
    last = weakref.ref(part)
    made.add(part)
    del part
  gc.collect()
  assert last() is None
  held = [v for v in vars(made).values() if isinstance(v, np.ndarray)]
  # One chunk waits to be summed, however many samples there were.
  assert sum(v.size for v in held) == moments.CHUNK * 24 + 24 * 24 + 24


def test_refusals(x):
  made = of(x)
  with pytest.raises(UserError, match=r'shape \(5, 23\), expected \(N, 24\)'):
    made.add(x[:5, 1:])
  with pytest.raises(UserError, match='at least 2 samples; got 1'):
    of(x[:1]).statistics()
  bad = x[:200].copy()
  bad[[31, 70, 90], 3] = np.nan, np.inf, -np.inf
  message = 'features of 3 samples are NaN or infinite; the first is sample 1031'
  with pytest.raises(UserError, match=message):
    made.add(bad, indices_N=1000 + np.arange(200))
