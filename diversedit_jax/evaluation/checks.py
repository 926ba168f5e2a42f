"""What makes a score untrustworthy: refused where it has no meaning, else said in a sentence.

Sentences are data, for the file of the evaluation and its reader.
"""

import hashlib
from typing import Self

import numpy as np

from diversedit_jax.evaluation import rows
from diversedit_jax.types import UserError

STANDARD_COUNT = 50_000
"""Samples of a FID-50K."""

_DIGEST_BYTES = 16


def refuse_not_finite(name: str, count: int, first: int) -> None:
  """Raises the error for rows that are not finite.

  Raises:
    UserError: always.
  """
  raise UserError(f'{name} of {count} samples are NaN or infinite; the first is sample {first}')


def check_finite(name: str, rows_ND: np.ndarray, indices_N: np.ndarray | None = None) -> None:
  """Refuses rows with values that are not finite.

  Args:
    name: of what the rows hold, in the plural.
    rows_ND: one row per sample, [N, ...].
    indices_N: global indices of the samples; None means 0, 1, ...

  Raises:
    UserError: naming how many rows are bad, and the first.
  """
  rows_ND = np.asarray(rows_ND)
  if rows_ND.dtype.kind != 'f':  # Whole numbers are finite.
    return
  bad = np.flatnonzero(~np.isfinite(rows_ND).all(axis=tuple(range(1, rows_ND.ndim))))
  if bad.size:
    refuse_not_finite(name, bad.size, bad[0] if indices_N is None else indices_N[bad[0]])


def count_warnings(count: int, width: int, name: str = 'features') -> list[str]:
  """Sentences about too few samples for a Fréchet distance in `width` dimensions."""
  found = rank_warnings(count, width, name)
  if count < STANDARD_COUNT:
    found.append(
      f'FID-{count} is not FID-50K: with fewer samples the distance is larger, and the two cannot '
      'be compared'
    )
  return found


def rank_warnings(count: int, width: int, name: str = 'features') -> list[str]:
  """A sentence about a covariance that cannot have full rank."""
  if count > width:
    return []
  return [
    f'{count} samples cannot give a covariance of full rank in the {width} dimensions of {name}; '
    f'their Fréchet distance needs at least {width + 1}'
  ]


def split_warnings(count: int, split: int) -> list[str]:
  """Sentences about parts of the Inception Score that are shorter than they should be."""
  if count < split:
    return [
      f'the Inception Score is of one part of {count} samples instead of parts of {split}, and so '
      'is smaller'
    ]
  if count % split:
    return [
      f'the last part of the Inception Score has {count % split} samples instead of {split}, and '
      'counts as much as the others'
    ]
  return []


def order_warnings(labels_N: np.ndarray) -> list[str]:
  """A sentence about samples in the order of their labels."""
  if len(np.unique(labels_N)) < 2 or (np.diff(labels_N) < 0).any():
    return []
  return [
    'the samples are sorted by label, so each part of the Inception Score sees few classes and the '
    'score is too small'
  ]


class ImageChecks:
  """Constant and repeated images among samples that arrive in batches; keeps 16 bytes of each."""

  def __init__(self, count: int):
    """For `count` samples in all."""
    self._digests = rows.Rows(count, (_DIGEST_BYTES,), np.uint8)
    self._constant = rows.Rows(count, (), np.bool_)

  def add(self, images_NHWC: np.ndarray, indices_N: np.ndarray) -> None:
    """Looks at images, uint8 or floating, under their global indices.

    Raises:
      UserError: for another rank, floating values that are not finite, or an index that is out of
        range or was added before.
    """
    images_NHWC, indices_N = np.asarray(images_NHWC), np.asarray(indices_N)
    if images_NHWC.ndim != 4 or len(images_NHWC) != len(indices_N):
      raise UserError(
        f'images have shape {images_NHWC.shape}, expected ({len(indices_N)}, H, W, C)'
      )
    check_finite('images', images_NHWC, indices_N)
    digests = [
      hashlib.blake2b(x.tobytes(), digest_size=_DIGEST_BYTES).digest() for x in images_NHWC
    ]
    digests = np.frombuffer(b''.join(digests), np.uint8).reshape(-1, _DIGEST_BYTES)
    self._digests.add(digests, indices_N)
    # A row tells most pictures, so that few are compared whole.
    constant = (images_NHWC[:, :1] == images_NHWC[:, :1, :1]).all(axis=(1, 2, 3))
    for i in np.flatnonzero(constant):
      constant[i] = (images_NHWC[i] == images_NHWC[i, :1, :1]).all()
    self._constant.add(constant, indices_N)

  def merge(self, other: Self) -> None:
    """Adds what another has seen."""
    self._digests.merge(other._digests)
    self._constant.merge(other._constant)

  def across_processes(self) -> None:
    """Adds what the other processes have seen; called by all of them."""
    self._digests.across_processes()
    self._constant.across_processes()

  def warnings(self) -> list[str]:
    """Sentences about constant images and exact copies among the images seen."""
    seen = self._digests.seen_N
    count, found = int(seen.sum()), []
    constant = np.flatnonzero(self._constant.values)
    if constant.size:
      found.append(
        f'{constant.size} of {count} images are of one colour; the first is sample {constant[0]}'
      )
    of_seen, places = self._digests.values[seen], np.flatnonzero(seen)
    firsts = np.unique(of_seen, axis=0, return_index=True)[1]
    copies = np.setdiff1d(np.arange(count), firsts)
    if copies.size:
      found.append(
        f'{copies.size} of {count} images are exact copies of an earlier one; the first is sample '
        f'{places[copies[0]]}'
      )
    return found
