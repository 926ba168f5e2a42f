"""Scores of samples: Fréchet distance, Inception Score, and the names of the others.

Fréchet distance of Gaussians (arXiv 1706.08500), in float64 numpy:

  d^2 = |mu1 - mu2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))                                 (1)
  Tr (S1 S2)^(1/2) = sum of the singular values of M = L1^(1/2) V1' V2 L2^(1/2)       (2)

where S = V L V'. No matrix root, complex number or added multiple of I is needed, and directions
without variance are left out, in which the root of a rounding error would be sqrt(eps).
"""

import numpy as np

from diversedit_jax.evaluation import kernel, manifold, splits
from diversedit_jax.types import UserError

precision_recall = manifold.precision_recall
kernel_distance = kernel.kernel_distance


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
  (scale1, v1), (scale2, v2) = _axes(sigma1), _axes(sigma2)
  overlap = np.linalg.svd(scale1[:, None] * (v1.T @ v2) * scale2[None], compute_uv=False).sum()
  gap = mu1 - mu2
  return max(0.0, float(gap @ gap + np.trace(sigma1) + np.trace(sigma2) - 2 * overlap))


def inception_score(
  values_NK: np.ndarray, *, logits: bool = False, split: int = splits.SPLIT
) -> tuple[float, float]:
  """Inception Score (1 in `splits`) of samples in their order.

  Args:
    values_NK: class probabilities, or logits before the softmax. ADM's logits have no bias.
    logits: whether the values are logits.
    split: number of samples of one part.

  Returns:
    Mean over the parts, and their standard deviation (divisor: number of parts).

  Raises:
    UserError: as `splits.SplitScores`.
  """
  scores = splits.SplitScores(len(values_NK), split)
  scores.add(values_NK, logits=logits)
  return scores.score()


def _axes(sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Standard deviations [R] and directions [D, R] in which a covariance is not rounding alone."""
  values, vectors = np.linalg.eigh(sigma)
  keep = values > len(values) * np.finfo(np.float64).eps * values[-1]
  return np.sqrt(values[keep]), vectors[:, keep]
