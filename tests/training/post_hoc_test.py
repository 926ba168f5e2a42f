"""Averages made afterwards: inner products against integration, sums against tracked averages."""

import numpy as np
import pytest

from diversedit_jax.training import average, post_hoc


def profile(step, std):
  return post_hoc.Profile(step, average.PowerFunction(std).gamma)


@pytest.mark.parametrize(
  ('a', 'b'),
  [((1.0, 0.05), (1.0, 0.05)), ((1.0, 0.1), (0.6, 0.05)), ((0.3, 0.2), (1.0, 0.1))],
)
def test_inner_products_are_integrals(a, b):
  a, b = profile(*a), profile(*b)
  t = (np.arange(1_000_000) + 0.5) / 1_000_000

  def value(of):
    return np.where(t <= of.step, (of.gamma + 1) * t**of.gamma / of.step ** (of.gamma + 1), 0)

  expected = np.mean(value(a) * value(b))
  np.testing.assert_allclose(post_hoc.inner(a, b), expected, rtol=1e-4)
  np.testing.assert_allclose(post_hoc.inner(b, a), expected, rtol=1e-4)


def tracked(walk, std, steps):
  """The average at each of some steps, in double precision; walk: parameters after each step."""
  power = average.PowerFunction(std).gamma + 1
  return [np.diff((np.arange(n + 1) / n) ** power) @ walk[:n] for n in steps]


@pytest.mark.parametrize('std', [0.03, 0.075, 0.15])
def test_the_sum_comes_to_the_tracked_average_with_the_number_of_snapshots(std):
  steps, rng = 4096, np.random.default_rng(0)
  walk = np.cumsum(rng.normal(size=(steps, 50)), axis=0)
  (expected,) = tracked(walk, std, [steps])
  errors, promised = [], []
  for count in (2, 8, 32):
    at = [steps * (i + 1) // count for i in range(count)]
    stored = [x for s in (0.05, 0.10) for x in tracked(walk, s, at)]
    found = post_hoc.fit([profile(n, s) for s in (0.05, 0.10) for n in at], profile(steps, std))
    np.testing.assert_allclose(found.coefficients.sum(), 1, rtol=1e-9)
    errors.append(np.linalg.norm(found.coefficients @ stored - expected))
    promised.append(found.error)
  scale = np.linalg.norm(walk[-1] - expected)  # What averaging does at all.
  assert errors[0] > 1.5 * errors[1] > 3 * errors[2] and errors[2] < 0.01 * scale
  assert promised[0] > 1.5 * promised[1] > 3 * promised[2]


def test_a_tracked_average_is_found_again():
  found = post_hoc.fit(
    [profile(n, s) for n in (100, 200, 300) for s in (0.05, 0.10)], profile(300, 0.10)
  )
  np.testing.assert_allclose(found.coefficients, [0, 0, 0, 0, 0, 1], atol=1e-9)
  assert found.error < 1e-6


def test_the_error_is_that_of_the_profiles():
  """One profile for another: the norm of their difference, by integration."""
  a, b = profile(1.0, 0.05), profile(1.0, 0.1)
  t = (np.arange(1_000_000) + 0.5) / 1_000_000
  p, q = ((of.gamma + 1) * t**of.gamma for of in (a, b))
  expected = np.sqrt(np.mean((p - q) ** 2) / np.mean(q**2))
  np.testing.assert_allclose(post_hoc.fit([a], b).error, expected, rtol=1e-4)
