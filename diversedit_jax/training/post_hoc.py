"""Averages of any width, after training, from those that a run tracked (arXiv 2312.02696).

The average at step T by a power function weighs the parameters of step t with its profile

  p(t) = (gamma + 1) t^gamma / T^(gamma + 1)     for 0 <= t <= T, else 0

A sum of stored averages has the sum of their profiles as its own. Its coefficients are those with
which that is nearest to the wanted profile: least squares, of which the inner products are

  <p_a, p_b> = a b / (a + b - 1) / m (m / T_a)^a (m / T_b)^b                             (1)

with a, b = gamma + 1 and m = min(T_a, T_b) (section 3.2 and appendix C there). Here they add up to
1 besides, so that weights which no longer move are what they are in every average.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Profile(NamedTuple):
  """step: T, of the checkpoint that holds the average. gamma: exponent of its power function."""

  step: float
  gamma: float


class Fit(NamedTuple):
  """A wanted profile as a sum of others.

  coefficients: of each. error: L2 norm of the difference, as a share of that of the wanted one.
  """

  coefficients: np.ndarray
  error: float


def inner(a: Profile, b: Profile) -> np.ndarray:
  """The integral (1) of the product of two profiles, or of arrays of them."""
  p, q, least = a.gamma + 1, b.gamma + 1, np.minimum(a.step, b.step)
  return p * q / (p + q - 1) / least * (least / a.step) ** p * (least / b.step) ** q


def fit(found: Sequence[Profile], wanted: Profile) -> Fit:
  """The sum of profiles that is nearest to another."""
  column = Profile(*np.array(found, np.float64).T[..., None])
  row = Profile(*(x.T for x in column))
  products, with_wanted = inner(column, row), inner(column, wanted)[:, 0]
  norms, whole = np.sqrt(np.diag(products)), float(inner(wanted, wanted))
  # Normal equations of unit vectors, with a Lagrange multiplier l: G x + l / n = g, sum(x / n) = 1.
  gram, target, edge = products / np.outer(norms, norms), with_wanted / norms, norms.min() / norms
  system = np.block([[gram, edge[:, None]], [edge, np.zeros((1, 1))]])
  x = np.linalg.lstsq(system, np.append(target, norms.min()), rcond=1e-14)[0][:-1]
  missed = whole - 2 * x @ target + x @ gram @ x
  return Fit(x / norms, float(np.sqrt(max(missed, 0.0) / whole)))
