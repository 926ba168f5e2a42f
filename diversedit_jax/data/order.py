"""The examples in the batch of a step: a function of (seed, step), never of an iterator's state.

Example j of the batch of step s stands at the global position

  p = s * batch + j                                                                   (1)
  epoch = p // n,   index = permutation(seed, epoch)[p % n]                           (2)

so every epoch shows each of the n examples once, a batch may span two epochs, resuming needs only
the step, and the batch is the same on any number of processes.
"""

import functools

import numpy as np

from diversedit_jax.types import UserError


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
  """Order of the n examples in an epoch, int64 [n], read-only; the last few results are cached.

  Examples are sorted by their 64-bit Philox words. NumPy may change `Generator.permutation`, but
  the raw stream of a bit generator is the same on all versions and platforms.

  Raises:
    UserError: the seed lies outside [0, 2**32), the epoch is negative, or n < 1.
  """
  # A longer seed would be cut into words, and another pair of seed and epoch could give the same.
  if not 0 <= seed < 2**32 or epoch < 0 or n < 1:
    raise UserError(
      f'data order needs 0 <= seed < 2**32, epoch >= 0 and n >= 1 examples; got seed={seed}, '
      f'epoch={epoch}, n={n}'
    )
  words = np.random.Philox(np.random.SeedSequence((seed, epoch))).random_raw(n)
  order = np.argsort(words, kind='stable').astype(np.int64)
  order.flags.writeable = False
  return order


def batch_indices(seed: int, step: int, batch_size: int, n: int) -> np.ndarray:
  """Indices of the global batch of a step, int64 [batch_size], by (1) and (2).

  Args:
    seed: seed of the data order, >= 0.
    step: the step, counted from 0.
    batch_size: examples of all processes together.
    n: number of examples in the source.

  Raises:
    UserError: the seed or the step is negative, or a size is below 1.
  """
  if step < 0 or batch_size < 1 or n < 1:
    raise UserError(
      f'data order needs step >= 0, batch_size >= 1 and n >= 1; got step={step}, '
      f'batch_size={batch_size}, n={n}'
    )
  first = step * batch_size
  parts = []
  position = first
  while position < first + batch_size:
    epoch, offset = divmod(position, n)
    length = min(n - offset, first + batch_size - position)
    parts.append(permutation(seed, epoch, n)[offset : offset + length])
    position += length
  return np.concatenate(parts)


@functools.lru_cache(maxsize=4)
def flips(seed: int, epoch: int, n: int) -> np.ndarray:
  """Whether each of the n examples is mirrored in an epoch, bool [n], read-only: fair coins."""
  # The trailing 1 gives a stream other than that of `permutation`; a trailing 0 would not.
  words = np.random.Philox(np.random.SeedSequence((seed, epoch, 1))).random_raw(-(-n // 64))
  bits = np.unpackbits(words.astype('<u8').view(np.uint8), count=n).astype(bool)
  bits.flags.writeable = False
  return bits


def batch_flips(seed: int, step: int, batch_size: int, n: int) -> np.ndarray:
  """Whether each example of the global batch of a step is mirrored, bool [batch_size]."""
  positions = step * batch_size + np.arange(batch_size)
  indices, epochs = batch_indices(seed, step, batch_size, n), positions // n
  mirrored = np.empty(batch_size, bool)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    mirrored[here] = flips(seed, int(epoch), n)[indices[here]]
  return mirrored
