"""Scores between feature distributions, in float64 numpy.

Fréchet distance of Gaussians (arXiv 1706.08500):

  d^2 = |mu1 - mu2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))                                 (1)
  Tr (S1 S2)^(1/2) = sum of the singular values of S1^(1/2) S2^(1/2)                  (2)

The singular values in (2) are the square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2). Taken
so, the rounding error of a singular covariance stays of order eps, where the square root of an
eigenvalue would make it sqrt(eps), and no complex numbers or added multiples of I are needed.
"""

import numpy as np

from diversedit_jax.types import UserError


def gaussian_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean [D] and covariance [D, D] (divisor N - 1), float64, of features [N, D].

  Raises:
    UserError: for another rank, fewer than two rows, or values that are not finite.
  """
  features = np.asarray(features, np.float64)
  if features.ndim != 2 or len(features) < 2:
    raise UserError(f'Gaussian statistics need features (N >= 2, D); got {features.shape}')
  if not np.isfinite(features).all():
    raise UserError('Gaussian statistics need finite features; some are NaN or infinite')
  mean = features.mean(axis=0)
  centred = features - mean[None]
  return mean, centred.T @ centred / (len(features) - 1)


def frechet_distance(
  mu1: np.ndarray, sigma1: np.ndarray, mu2: np.ndarray, sigma2: np.ndarray
) -> float:
  """Squared Fréchet distance (1) of two Gaussians: the number called FID on Inception features.

  Args:
    mu1: mean [D].
    sigma1: covariance [D, D]; may be singular.
    mu2: mean [D].
    sigma2: covariance [D, D]; may be singular.

  Returns:
    Distance in squared units of the features, >= 0.

  Raises:
    UserError: for shapes that do not fit or values that are not finite.
  """
  mu1, sigma1, mu2, sigma2 = (np.asarray(x, np.float64) for x in (mu1, sigma1, mu2, sigma2))
  d = mu1.size
  shapes = (mu1.shape, sigma1.shape, mu2.shape, sigma2.shape)
  if shapes != ((d,), (d, d), (d,), (d, d)):
    raise UserError(f'Fréchet distance needs shapes (D,), (D, D), (D,), (D, D); got {shapes}')
  if not all(np.isfinite(x).all() for x in (mu1, sigma1, mu2, sigma2)):
    raise UserError('Fréchet distance needs finite means and covariances')
  # The nuclear norm is (2).
  overlap = np.linalg.norm(_root(sigma1) @ _root(sigma2), ord='nuc')
  gap = mu1 - mu2
  return max(0.0, float(gap @ gap + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap))


def _root(sigma: np.ndarray) -> np.ndarray:
  """Symmetric square root of a covariance; eigenvalues below 0 are rounding and count as 0."""
  values, vectors = np.linalg.eigh(sigma)
  return (vectors * np.sqrt(np.clip(values, 0, None))[None]) @ vectors.T
