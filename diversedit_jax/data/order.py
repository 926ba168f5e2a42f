"""Which examples form the batch of a step: a function of (seed, step), never of an iterator.

Example j of the batch of step s stands at the global position

  p = s * batch + j                                                                   (1)
  epoch = p // n,   index = permutation(seed, epoch)[p % n]                           (2)

so that every epoch shows each of the n examples once, a batch may cross two epochs, resuming
needs the step alone, and the batch is the same on any number of processes.
"""

import functools

import numpy as np

from diversedit_jax.types import UserError


@functools.lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n: int) -> np.ndarray:
  """Order of the n examples in an epoch, int64 [n], read-only; the last few are kept.

  The rank of each example's 64-bit Philox word. Unlike `Generator.permutation`, whose algorithm
  NumPy may change, the raw stream of a bit generator is the same on all versions and platforms.

  Raises:
    UserError: for a seed outside [0, 2**32), a negative epoch, or n < 1.
  """
  # A longer seed would be cut into words, of which another seed and epoch may have the same.
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
    seed: of the run, >= 0.
    step: counted from 0.
    batch_size: examples of all processes together.
    n: examples of the source.

  Raises:
    UserError: for a negative seed or step, or a size below 1.
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
  """Which of the n examples are mirrored in an epoch, bool [n], read-only: a fair coin for each."""
  # Unlike a trailing 0, a trailing 1 makes another sequence than that of `permutation`.
  words = np.random.Philox(np.random.SeedSequence((seed, epoch, 1))).random_raw(-(-n // 64))
  bits = np.unpackbits(words.astype('<u8').view(np.uint8), count=n).astype(bool)
  bits.flags.writeable = False
  return bits


def batch_flips(seed: int, step: int, batch_size: int, n: int) -> np.ndarray:
  """Which examples of the global batch of a step are mirrored, bool [batch_size]."""
  positions = step * batch_size + np.arange(batch_size)
  indices, epochs = batch_indices(seed, step, batch_size, n), positions // n
  mirrored = np.empty(batch_size, bool)
  for epoch in np.unique(epochs):
    here = epochs == epoch
    mirrored[here] = flips(seed, int(epoch), n)[indices[here]]
  return mirrored
