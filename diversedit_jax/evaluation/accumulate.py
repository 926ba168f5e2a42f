"""All statistics of a set of samples, from features that arrive in batches.

`Statistics.add` takes the features of a batch; `finish` returns what the scores need.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from diversedit_jax.evaluation import checks, moments, splits
from diversedit_jax.types import UserError

KINDS = ('pool', 'spatial', 'logits')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
  """What the scores of samples are made from; statistics are float64.

  n: number of samples.
  mu, sigma: mean [D] and covariance [D, D] of the pool features.
  mu_s, sigma_s: the same of the spatial features; None without them.
  pool_ND: float32 pool features of the first `keep` samples; None if none were kept.
  inception_score, inception_score_std: mean and deviation over the parts; None without logits.
  classes_N: the likeliest class of each sample, int32 [n]; None without logits.
  warnings: sentences about counts that make the scores doubtful.
  """

  n: int
  mu: np.ndarray
  sigma: np.ndarray
  mu_s: np.ndarray | None = None
  sigma_s: np.ndarray | None = None
  pool_ND: np.ndarray | None = None
  inception_score: float | None = None
  inception_score_std: float | None = None
  classes_N: np.ndarray | None = None
  warnings: list[str] = dataclasses.field(default_factory=list)


class Statistics:
  """Sums over `count` samples of their pool features, spatial features and logits."""

  def __init__(
    self,
    count: int,
    *,
    keep: int = 0,
    places_N: np.ndarray | None = None,
    split: int = splits.SPLIT,
  ):
    """Starts with no samples.

    Args:
      count: number of samples that will come.
      keep: number of samples, the first ones, whose pool features are kept for precision, recall
        and the kernel distance; [keep, D] float32.
      places_N: place of each sample, in their order of coming; a permutation. None means that they
        come in order. Places decide the parts of the Inception Score and what is kept.
      split: number of samples of one part of the Inception Score.
    """
    self._count, self._keep, self._places_N = count, min(keep, count), places_N
    self._seen, self._kinds = 0, None
    self._pool, self._spatial = moments.Moments(), moments.Moments()
    self._scores = splits.SplitScores(count, split)
    self._kept_KD = None
    self._classes_N = np.zeros(count, np.int32)  # The likeliest of each.

  def add(self, features: Mapping[str, np.ndarray]) -> None:
    """Adds the next samples.

    Args:
      features: 'pool' [N, D], and in every batch or in none 'spatial' [N, E] and 'logits' [N, K].

    Raises:
      UserError: other shapes or kinds than before, more samples than there should be, or values
        that are not finite.
    """
    features = {kind: np.asarray(x) for kind, x in features.items()}
    self._check_kinds(features)
    pool_ND = features['pool']
    indices_N = np.arange(self._seen, self._seen + len(pool_ND))
    if self._seen + len(pool_ND) > self._count:
      raise UserError(f'more than {self._count} samples came')
    self._seen += len(pool_ND)
    if self._places_N is not None:
      indices_N = self._places_N[indices_N]
    self._pool.add(pool_ND, indices_N)
    if 'spatial' in features:
      self._spatial.add(features['spatial'], indices_N)
    if 'logits' in features:
      self._scores.add(features['logits'], indices_N, logits=True)
      self._classes_N[indices_N] = features['logits'].argmax(axis=1)
    if self._keep:
      if self._kept_KD is None:
        self._kept_KD = np.zeros((self._keep, pool_ND.shape[1]), np.float32)
      kept_N = indices_N < self._keep
      self._kept_KD[indices_N[kept_N]] = pool_ND[kept_N]

  def finish(self) -> Summary:
    """The statistics of all samples.

    Raises:
      UserError: samples are missing, or there are fewer than two.
    """
    if self._seen != self._count:
      raise UserError(f'{self._seen} samples came, expected {self._count}')
    n, mu, sigma = self._pool.statistics()
    found = {'warnings': checks.count_warnings(n, len(mu), 'the pool features')}
    if 'spatial' in self._kinds:
      _, mu_s, sigma_s = self._spatial.statistics()
      found |= {'mu_s': mu_s, 'sigma_s': sigma_s}
      # The sentence about the number of samples is there already.
      found['warnings'] += checks.rank_warnings(n, len(mu_s), 'the spatial features')
    if 'logits' in self._kinds:
      mean, std = self._scores.score()
      found |= {'inception_score': mean, 'inception_score_std': std}
      found['classes_N'] = self._classes_N
      found['warnings'] += checks.split_warnings(n, self._scores.split)
      found['warnings'] += checks.alike_warnings(self._classes_N)
    return Summary(n=n, mu=mu, sigma=sigma, pool_ND=self._kept_KD, **found)

  def _check_kinds(self, features):
    kinds = set(features)
    if 'pool' not in kinds or not kinds <= set(KINDS):
      raise UserError(f"features are {sorted(kinds)}, expected 'pool' and any of {KINDS[1:]}")
    if self._kinds is not None and kinds != self._kinds:
      raise UserError(f'features are {sorted(kinds)}, but {sorted(self._kinds)} before')
    lengths = {kind: len(x) for kind, x in features.items()}
    if len(set(lengths.values())) > 1:
      raise UserError(f'features of one batch have different numbers of rows: {lengths}')
    self._kinds = kinds
