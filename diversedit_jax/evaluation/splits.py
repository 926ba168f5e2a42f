"""Inception Score of samples that arrive in batches, in parts of their global order.

Inception Score (arXiv 1606.03498) of p_ic, the probability of class c for sample i, over one part:

  IS = exp(mean_i sum_c p_ic (log p_ic - log q_c)),  q_c = mean_i p_ic                (1)
     = exp(mean_i sum_c p_ic log p_ic - sum_c q_c log q_c)                            (2)

averaged over consecutive parts of 5000 samples, as ADM's evaluator does. The last part may be
shorter; it counts as much as the others. Classes of probability 0 contribute 0, the limit; ADM's
evaluator returns NaN for them.
"""

import numpy as np

from diversedit_jax.evaluation import checks
from diversedit_jax.types import UserError

SPLIT = 5000
"""Number of samples of one part in ADM's evaluator."""

_CHUNK = 1024  # Rows turned to float64 at once.


class SplitScores:
  """The sums of (2), by parts of the global order of the samples."""

  def __init__(self, count: int, split: int = SPLIT):
    """For `count` samples in all, of which each `split` consecutive ones make a part."""
    if count < 1 or split < 1:
      raise UserError(
        f'Inception Score needs samples and parts of at least 1; got {count}, {split}'
      )
    self.split = split
    self._sizes_P = np.diff(np.append(np.arange(0, count, split), count))
    self._seen_P = np.zeros(len(self._sizes_P), np.int64)
    self._p_log_p_P = np.zeros(len(self._sizes_P))
    self._p_PK = None

  def add(
    self, values_NK: np.ndarray, indices_N: np.ndarray | None = None, *, logits: bool
  ) -> None:
    """Adds samples; all arithmetic is float64 on the host, about 1 s for 50,000 x 1008.

    Args:
      values_NK: probabilities, or logits before the softmax.
      indices_N: indices of the samples; None means that these are all, in order.
      logits: whether the values are logits.

    Raises:
      UserError: other shapes, indices out of range, values that are not finite, or probabilities
        that are negative or do not sum to 1 within 1e-3.
    """
    values_NK = np.asarray(values_NK)
    indices_N = np.arange(len(values_NK)) if indices_N is None else np.asarray(indices_N)
    if self._p_PK is None and values_NK.ndim == 2:
      self._p_PK = np.zeros((len(self._sizes_P), values_NK.shape[1]))
    if values_NK.ndim != 2 or values_NK.shape != (len(indices_N), self._p_PK.shape[1]):
      raise UserError(f'class scores have shape {values_NK.shape}, expected (N, classes)')
    if len(indices_N) and not 0 <= indices_N.min() <= indices_N.max() < self._sizes_P.sum():
      raise UserError(f'sample indices go beyond the {self._sizes_P.sum()} samples of the score')
    checks.check_finite('class scores', values_NK, indices_N)
    for begin in range(0, len(values_NK), _CHUNK):
      part = slice(begin, begin + _CHUNK)
      values, parts = values_NK[part].astype(np.float64), indices_N[part] // self.split
      p, p_log_p = _entropy_terms(values, logits)
      for i in np.unique(parts):
        self._p_PK[i] += p[parts == i].sum(axis=0)
        self._p_log_p_P[i] += p_log_p[parts == i].sum()
        self._seen_P[i] += np.count_nonzero(parts == i)

  def score(self) -> tuple[float, float]:
    """Mean over the parts, and their standard deviation (divisor: number of parts).

    Raises:
      UserError: if samples are missing or were added twice.
    """
    if not np.array_equal(self._seen_P, self._sizes_P):
      i = int(np.flatnonzero(self._seen_P != self._sizes_P)[0])
      raise UserError(
        f'part {i} of the Inception Score has {self._seen_P[i]} samples, expected '
        f'{self._sizes_P[i]}'
      )
    from scipy import special  # Here: its import takes a fifth of a second.

    q_PK = self._p_PK / self._sizes_P[:, None]
    divergence = self._p_log_p_P / self._sizes_P - special.xlogy(q_PK, q_PK).sum(axis=1)
    scores = np.exp(divergence)
    return float(scores.mean()), float(scores.std())


def _entropy_terms(values_NK, logits):
  """Probabilities [N, K], and sum_c p log p of each sample [N]."""
  from scipy import special  # As in `score`.

  if logits:
    log_p = special.log_softmax(values_NK, axis=1)
    p = np.exp(log_p)
    return p, np.einsum('nk,nk->n', p, log_p)
  sums = values_NK.sum(axis=1)
  if values_NK.min() < 0 or np.abs(sums - 1).max() > 1e-3:
    raise UserError(
      f'class probabilities must be >= 0 and sum to 1; the least is {values_NK.min():.3g}, sums go '
      f'from {sums.min():.6g} to {sums.max():.6g}'
    )
  return values_NK, special.xlogy(values_NK, values_NK).sum(axis=1)
