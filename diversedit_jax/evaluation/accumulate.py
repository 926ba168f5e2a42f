"""All statistics of a set of samples, from features that arrive in batches.

Give features of each batch to `Statistics.add`; `finish` returns what the scores need. Batches may
come in any order and size, padded at the end, from any number of devices and processes.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib
from typing import Self

import jax
import numpy as np

from diversedit_jax.evaluation import checks, moments, placement, rows, splits
from diversedit_jax.types import UserError

KINDS = ('pool', 'spatial', 'logits')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Summary:
  """What the scores of samples are made from; statistics are float64.

  n: samples.
  mu, sigma: mean [D] and covariance [D, D] of the pool features.
  mu_s, sigma_s: of the spatial features; None without them.
  pool_ND: float32 pool features of the first `keep` samples; None if none were kept.
  inception_score, inception_score_std: over the parts; None without logits.
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
  warnings: list[str] = dataclasses.field(default_factory=list)


class Statistics:
  """Sums over `count` samples of their pool features, spatial features and logits.

  Each process adds up samples of its own; `across_processes` then gives every one of them all.
  """

  def __init__(
    self,
    count: int,
    *,
    keep: int = 0,
    folder: str | os.PathLike[str] | None = None,
    split: int = splits.SPLIT,
  ):
    """Starts with no samples.

    Args:
      count: samples in all, of all processes.
      keep: the pool features of the samples with an index below it are kept, for precision, recall
        and the kernel distance; [keep, D] float32 once.
      folder: where they are kept, in a file `pool.npy` mapped into memory; None is memory.
      split: samples of one part of the Inception Score.
    """
    self.count, self.keep = count, min(keep, count)
    self._folder = folder
    self._kinds: set[str] | None = None
    self._pool, self._spatial = moments.Moments(), moments.Moments()
    self._scores = splits.SplitScores(count, split)
    # Rows without values: only which samples were seen.
    self._seen = rows.Rows(count, (0,), np.bool_)
    self._kept: rows.Rows | None = None
    self._next = 0

  def add(
    self,
    features: Mapping[str, np.ndarray | jax.Array],
    *,
    mask_N: np.ndarray | None = None,
    indices_N: np.ndarray | None = None,
  ) -> None:
    """Adds a batch.

    Args:
      features: 'pool' [N, D], and in every batch or in none 'spatial' [N, E] or [N, H, W, C] and
        'logits' [N, K]. Numpy arrays hold samples of this process; of JAX arrays that are split
        over several processes, which all call this, each takes the rows of its devices.
      mask_N: which rows are samples; None means all. The others may hold anything.
      indices_N: global indices of the rows; None continues from the last batch, without counting
        rows that the mask leaves out.

    Raises:
      UserError: for other shapes or kinds than before, values that are not finite, and samples
        beyond the count or added before.
    """
    self._check_kinds(features)
    n = len(features['pool'])
    mask_N = np.ones(n, bool) if mask_N is None else np.asarray(mask_N, bool)
    if indices_N is None:
      indices_N = np.where(mask_N, self._next + np.cumsum(mask_N) - 1, -1)
    indices_N = np.asarray(indices_N)
    if mask_N.shape != (n,) or indices_N.shape != (n,):
      raise UserError(
        f'{n} rows of features come with a mask {mask_N.shape} and indices {indices_N.shape}'
      )
    pool_MD, places_M = placement.own_rows(features['pool'], mask_N)
    own_M = indices_N[places_M]
    self._seen.add(np.zeros((len(own_M), 0), bool), own_M)
    self._next = int(max(indices_N[mask_N].max(initial=-1) + 1, self._next))
    self._pool.add(pool_MD, indices_N=own_M)
    if 'spatial' in features:
      spatial = features['spatial']
      self._spatial.add(spatial.reshape(n, -1), mask_N, indices_N)
    if 'logits' in features:
      logits_MK, places_M = placement.own_rows(features['logits'], mask_N)
      self._scores.add(logits_MK, indices_N[places_M], logits=True)
    if (own_M < self.keep).any():
      self._store(pool_MD.shape[1]).add(pool_MD[own_M < self.keep], own_M[own_M < self.keep])

  def merge(self, other: Self) -> None:
    """Adds what another has seen of the same samples.

    Raises:
      UserError: if the two differ in count, kept samples or kinds of features, or share samples.
    """
    mine, others = (self.count, self.keep), (other.count, other.keep)
    if mine != others or (self._kinds and other._kinds and self._kinds != other._kinds):
      raise UserError(
        f'cannot merge statistics of {mine[0]} samples ({mine[1]} kept, {self._kinds}) and of '
        f'{others[0]} ({others[1]} kept, {other._kinds})'
      )
    self._seen.merge(other._seen)
    self._kinds = self._kinds or other._kinds
    self._next = max(self._next, other._next)
    self._pool.merge(other._pool)
    self._spatial.merge(other._spatial)
    self._scores.merge(other._scores)
    if other._kept is not None:
      self._store(other._kept.values.shape[1]).merge(other._kept)

  def across_processes(self) -> None:
    """Adds what the other processes have seen; called by all of them, once."""
    if jax.process_count() == 1:
      return
    mine = np.array([kind in (self._kinds or ()) for kind in KINDS])
    present = placement.gather(mine).any(axis=0)
    self._kinds = {kind for kind, there in zip(KINDS, present, strict=True) if there} or None
    self._seen.across_processes()
    self._pool.across_processes()
    self._spatial.across_processes()
    if 'logits' in (self._kinds or ()):
      self._scores.across_processes()
    width = 0 if self._kept is None else self._kept.values.shape[1]
    width = int(placement.gather(np.int64(width)).max())
    if width:
      self._store(width).across_processes()

  def finish(self) -> Summary:
    """The statistics of all samples.

    Raises:
      UserError: if samples are missing, or there are fewer than two.
    """
    missing = np.flatnonzero(~self._seen.seen_N)
    if missing.size:
      raise UserError(
        f'{missing.size} of {self.count} samples are missing; the first is sample {missing[0]}'
      )
    n, mu, sigma = self._pool.statistics()
    found = {'warnings': checks.count_warnings(n, len(mu), 'the pool features')}
    if 'spatial' in self._kinds:
      _, mu_s, sigma_s = self._spatial.statistics()
      found |= {'mu_s': mu_s, 'sigma_s': sigma_s}
      # The sentence about the number of samples is said already.
      found['warnings'] += checks.rank_warnings(n, len(mu_s), 'the spatial features')
    if 'logits' in self._kinds:
      mean, std = self._scores.score()
      found |= {'inception_score': mean, 'inception_score_std': std}
      found['warnings'] += checks.split_warnings(n, self._scores.split)
    kept = None if self._kept is None else self._kept.values
    return Summary(n=n, mu=mu, sigma=sigma, pool_ND=kept, **found)

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

  def _store(self, width):
    if self._kept is None:
      path = None if self._folder is None else pathlib.Path(self._folder) / 'pool.npy'
      self._kept = rows.Rows(self.keep, (width,), path=path)
    return self._kept
