"""The kernel distance against a plain loop, and its expectation."""

import numpy as np
import pytest

from diversedit_jax import sharding
from diversedit_jax.evaluation import scores
from diversedit_jax.types import UserError


def sets(n=60, m=60, d=12):
  rng = np.random.default_rng(0)
  return rng.normal(0.5, 1, (n, d)).astype(np.float32), rng.normal(0.6, 1.3, (m, d)).astype('f4')


def plain(x, y):
  """Equation (2) by loops over pairs, float64."""
  k = lambda a, b: (float(np.float64(a) @ np.float64(b)) / len(a) + 1) ** 3
  within = lambda z: np.mean([k(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j])
  return within(x) + within(y) - 2 * np.mean([k(a, b) for a in x for b in y])


def full(x, y, mesh=None):
  """The distance of all points: one subset of everything."""
  return scores.kernel_distance(x, y, subsets=1, size=len(x), mesh=mesh).mean


def test_all_points_equal_plain_loops():
  x, y = sets()
  # Float32 kernels of size 10, of which 1e4 are averaged.
  assert full(x, y) == pytest.approx(plain(x, y), abs=1e-6)
  assert plain(x, y) > 0.1
  assert scores.kernel_distance(x, y, subsets=1, size=len(x)).std == 0


def test_subsets_are_seeded_draws_without_replacement():
  x, y = sets()
  found = scores.kernel_distance(x, y, subsets=3, size=20, seed=7)
  draw = np.random.default_rng(7)
  choose = lambda z: z[draw.choice(len(z), 20, replace=False)]
  expected = [plain(choose(x), choose(y)) for _ in range(3)]
  assert found.mean == pytest.approx(np.mean(expected), abs=1e-6)
  assert found.std == pytest.approx(np.std(expected), abs=1e-6)
  assert scores.kernel_distance(x, y, subsets=3, size=20, seed=8) != found


def test_unbiased():
  """Over disjoint draws of one distribution its mean is 0 within four standard errors."""
  rng = np.random.default_rng(1)
  found = [full(*rng.normal(0.3, 1, (2, 40, 6)).astype(np.float32)) for _ in range(200)]
  error = np.std(found) / np.sqrt(len(found))
  assert abs(np.mean(found)) < 4 * error
  # The mean with the diagonal is larger by more than that, so the test would see it.
  x = rng.normal(0.3, 1, (40, 6))
  k = (x @ x.T / 6 + 1) ** 3
  bias = 2 * (k.mean() - k[~np.eye(40, dtype=bool)].mean())
  assert bias > 8 * error
  assert min(found) < 0


def test_a_mesh_changes_nothing():
  x, y = sets()
  found = full(x, y, mesh=sharding.make_mesh())
  assert found == pytest.approx(full(x, y), abs=1e-7)


def test_refusals():
  x, y = sets()
  with pytest.raises(UserError, match='subsets of 1000 points .* sets of 60 and 60'):
    scores.kernel_distance(x, y)
  with pytest.raises(UserError, match=r'\(\(60, 12\), \(60, 11\)\)'):
    scores.kernel_distance(x, y[:, 1:])
  with pytest.raises(UserError, match='at least 2 points'):
    scores.kernel_distance(x[:1], y)
  y[9] = np.nan
  with pytest.raises(UserError, match='reference features of 1 samples .* first is sample 9'):
    scores.kernel_distance(x, y)
