"""What makes a score untrustworthy: an error if the score has no meaning, else a sentence.

The sentences go into the file of the evaluation, for its reader.
"""

import hashlib

import numpy as np

from diversedit_jax.types import UserError

STANDARD_COUNT = 50_000
"""Number of samples of a FID-50K."""

_DIGEST_BYTES = 16


class NotFinite(UserError):
  """Samples, or what a network sees in them, hold a NaN or an infinity."""


def check_finite(name: str, rows_ND: np.ndarray, indices_N: np.ndarray | None = None) -> None:
  """Refuses rows with values that are not finite.

  Args:
    name: name of what the rows hold, in the plural.
    rows_ND: one row per sample, [N, ...].
    indices_N: indices of the samples; None means 0, 1, ...

  Raises:
    NotFinite: naming how many rows are bad, and the first.
  """
  rows_ND = np.asarray(rows_ND)
  if rows_ND.dtype.kind != 'f':  # Whole numbers are finite.
    return
  bad = np.flatnonzero(~np.isfinite(rows_ND).all(axis=tuple(range(1, rows_ND.ndim))))
  if bad.size:
    first = bad[0] if indices_N is None else indices_N[bad[0]]
    raise NotFinite(
      f'{name} of {bad.size} samples are NaN or infinite; the first is sample {first}'
    )


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


ALIKE = 'neighbouring samples are alike'
_EFFECT = 'each part of the Inception Score sees few classes and the score is too small'


def order_warnings(labels_N: np.ndarray) -> list[str]:
  """A sentence about samples in the order of their labels, up or down or in blocks of one label."""
  steps = np.diff(labels_N)
  if len(np.unique(labels_N)) < 2:
    return []
  if (steps >= 0).all() or (steps <= 0).all() or _in_blocks(labels_N) is not None:
    return [f'the samples are sorted by label, so {_EFFECT}']
  return []


def alike_warnings(classes_N: np.ndarray) -> list[str]:
  """A sentence about samples in the order of their classes as a network sees them, in [N]."""
  if (found := _in_blocks(classes_N)) is None:
    return []
  share, chance = found
  return [
    f'{ALIKE}: {share:.0%} of them are of one class to Inception, and {chance:.1%} would be in a '
    f'random order. If they are sorted by class, {_EFFECT}'
  ]


def _in_blocks(classes_N):
  """(share of neighbours of one class, its expectation in a random order) if the order is not."""
  if len(classes_N) < 2:
    return None
  n, share = len(classes_N), float(np.mean(classes_N[1:] == classes_N[:-1]))
  _, counts = np.unique(classes_N, return_counts=True)
  chance = float(np.sum(counts * (counts - 1)) / (n * (n - 1)))
  # Six standard deviations, as far as neighbours are independent of each other.
  surely = share - chance > 6 * np.sqrt(chance * (1 - chance) / (n - 1)) + 1 / (n - 1)
  return (share, chance) if surely and share > 1.5 * chance else None


class ImageChecks:
  """Looks for constant and repeated images in a set that arrives in batches, in its order.

  It keeps 16 bytes of each image.
  """

  def __init__(self):
    self._digests: list[bytes] = []
    self._constant: list[int] = []

  def add(self, images_NHWC: np.ndarray) -> None:
    """Looks at the next images, uint8 or floating.

    Raises:
      UserError: another rank, or floating values that are not finite.
    """
    images_NHWC, first = np.asarray(images_NHWC), len(self._digests)
    if images_NHWC.ndim != 4:
      raise UserError(f'images have shape {images_NHWC.shape}, expected (N, H, W, C)')
    check_finite('images', images_NHWC, np.arange(first, first + len(images_NHWC)))
    self._digests += [
      hashlib.blake2b(x.tobytes(), digest_size=_DIGEST_BYTES).digest() for x in images_NHWC
    ]
    # The first row tells most images apart from constant ones, so few are compared whole.
    candidates = (images_NHWC[:, :1] == images_NHWC[:, :1, :1]).all(axis=(1, 2, 3))
    self._constant += [
      first + int(i)
      for i in np.flatnonzero(candidates)
      if (images_NHWC[i] == images_NHWC[i, :1, :1]).all()
    ]

  def warnings(self) -> list[str]:
    """Sentences about constant images and exact copies among the images so far."""
    count, found, seen, copies = len(self._digests), [], set(), []
    if self._constant:
      found.append(
        f'{len(self._constant)} of {count} images are of one colour; the first is sample '
        f'{self._constant[0]}'
      )
    for i, digest in enumerate(self._digests):
      if digest in seen:
        copies.append(i)
      seen.add(digest)
    if copies:
      found.append(
        f'{len(copies)} of {count} images are exact copies of an earlier one; the first is sample '
        f'{copies[0]}'
      )
    return found
