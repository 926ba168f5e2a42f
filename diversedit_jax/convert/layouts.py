"""How one tensor lies in PyTorch and in our trees: a table of reversible rearrangements."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

Shape = tuple[int, ...]
Terms = tuple[str, ...]


class Layout(NamedTuple):
  """Our shape in letters from PyTorch's, and the two directions; back, PyTorch's shape is told."""

  terms: Callable[[Terms], Terms]
  to_ours: Callable[[np.ndarray], np.ndarray]
  to_torch: Callable[[np.ndarray, Shape], np.ndarray]


def _patch_terms(terms):
  out, channels, rows, cols = terms
  return f'{rows}*{cols}*{channels}', out


def _patches_to_torch(kernel, shape):
  out, channels, rows, cols = shape
  return kernel.reshape(rows, cols, channels, out).transpose(3, 2, 0, 1)


LAYOUTS = {
  # Vectors, tables and what is stored alike on both sides.
  'same': Layout(lambda terms: terms, lambda x: x, lambda x, shape: x),
  # [out, in] -> [in, out].
  'linear': Layout(lambda terms: terms[::-1], lambda x: x.T, lambda x, shape: x.T),
  # [D, C, p, p] -> [p*p*C, D], rows ordered (row in patch, column in patch, channel).
  'patches': Layout(
    _patch_terms,
    lambda x: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    _patches_to_torch,
  ),
}
