"""Faults of named arrays, in words."""

import ml_dtypes
import numpy as np

from diversedit_jax.weights import misfits

_X = np.ones((2, 3), np.float32)


def test_every_kind_of_fault():
  expected = {'a': (2, 3), 'b': (2, 'D'), 'c': (2, 3), 'd': (2, 3), 'e': (4,)}
  arrays = {
    'a': _X.astype(ml_dtypes.bfloat16),
    'b': _X,
    'c': _X.astype(np.int32),
    'd': _X * np.nan,
    'f': _X,
    'skipped': _X,
  }
  assert misfits.find(arrays, expected, unused='skipped'.__eq__, finite=True) == [
    'missing: e',
    'not expected: f',
    'b has shape (2, 3) instead of (2, D), c has dtype int32 instead of floating-point numbers, '
    'd holds values that are not finite in float32',
  ]
  assert misfits.find({'d': arrays['d']}, {'d': (2, 3)}) == []


def test_long_lists_are_cut():
  strays = {f'x{i}': _X for i in range(12)}
  assert misfits.find(strays, {}) == ['not expected: x0, x1, x2, x3, x4, and 7 more']
