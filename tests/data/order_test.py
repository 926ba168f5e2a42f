"""Data order depends on seed and step alone."""

import numpy as np
import pytest

from diversedit_jax.data import order
from diversedit_jax.types import UserError


@pytest.mark.parametrize('n', [1, 7, 1000])
def test_every_epoch_is_a_permutation_of_its_own(n):
  orders = [order.permutation(seed, epoch, n) for seed in range(3) for epoch in range(3)]
  for x in orders:
    np.testing.assert_array_equal(np.sort(x), np.arange(n))
  assert n < 1000 or len({tuple(x) for x in orders}) == 9


def test_order_is_pinned():
  """Guards runs being resumed on another NumPy: a change here reorders everybody's data."""
  np.testing.assert_array_equal(order.permutation(0, 0, 10), [0, 8, 9, 3, 7, 5, 1, 2, 6, 4])
  np.testing.assert_array_equal(order.permutation(7, 3, 8), [7, 1, 6, 0, 4, 2, 3, 5])


@pytest.mark.parametrize('batch_size', [3, 10, 25])
def test_batches_walk_through_the_epochs(batch_size):
  """Equation by equation, batches smaller and larger than the source, crossing epochs."""
  n = 10
  for step in range(12):
    expected = [
      order.permutation(3, p // n, n)[p % n]
      for p in range(step * batch_size, (step + 1) * batch_size)
    ]
    batch = order.batch_indices(3, step, batch_size, n)
    assert batch.dtype == np.int64
    np.testing.assert_array_equal(batch, expected)


def test_batch_does_not_depend_on_earlier_calls():
  fresh = order.batch_indices(2, 40, 16, 100)
  order.permutation.cache_clear()
  for step in (90, 3, 41, 0):
    order.batch_indices(2, step, 16, 100)
    order.batch_indices(9, step, 16, 100)
  with pytest.raises(ValueError, match='read-only'):
    order.permutation(2, 6, 100)[0] = 3
  np.testing.assert_array_equal(order.batch_indices(2, 40, 16, 100), fresh)


def test_refusals():
  with pytest.raises(UserError, match='seed=-1'):
    order.batch_indices(-1, 0, 2, 10)
  with pytest.raises(UserError, match='step=-1'):
    order.batch_indices(0, -1, 2, 10)
  with pytest.raises(UserError, match='n=0'):
    order.batch_indices(0, 0, 2, 0)
