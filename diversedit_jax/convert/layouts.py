"""Reversible rearrangements between the other system's tensors and the leaves of our trees.

Two of them also change the clock of the original SiT (arXiv 2401.08740), with data at t = 1, to
ours, with data at t = 0. For the velocities v,

  (1)  v_ours(x, t) = -v_SiT(x, 1 - t)

The sign goes into the head. The clock goes into the first layer of the time embedding, whose input
is [cos(t f), sin(t f)]. Since cos((1 - t) f) = cos f cos(t f) + sin f sin(t f) and
sin((1 - t) f) = sin f cos(t f) - cos f sin(t f), it is enough to multiply its kernel by

  (2)  M = [[diag(cos f), diag(sin f)], [diag(sin f), -diag(cos f)]]

M is symmetric, orthogonal and its own inverse, so the way back is the same map.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from diversedit_jax.models import embed

Shape = tuple[int, ...]
Terms = tuple[str, ...]
Sizes = Mapping[str, int]
"""The values of the letters in shapes."""


class Layout(NamedTuple):
  """One rearrangement.

  terms: function from their shape to ours, in letters.
  to_ours: function (array, sizes) -> array.
  to_torch: function (array, their shape, sizes) -> array.
  """

  terms: Callable[[Terms], Terms]
  to_ours: Callable[[np.ndarray, Sizes], np.ndarray]
  to_torch: Callable[[np.ndarray, Shape, Sizes], np.ndarray]


def reverse_clock(kernel_FD: np.ndarray) -> np.ndarray:
  """Multiplies (2) by the kernel [256, D] of the first layer of a time embedding, in float64.

  The result is rounded to the dtype of the kernel. Two applications give the kernel back to within
  eps hypot(a, b) in each entry, where a and b are the kernel's entries for the cosine and the sine,
  and eps belongs to the dtype; for float64, whose products are rounded too, 4 eps hypot(a, b).
  (Each rounding moves a pair by at most eps / 2 of its length, which M keeps; subnormal numbers
  are rounded more coarsely.)
  """
  half = embed.TIME_FREQUENCIES // 2
  # Exactly the float32 numbers by which the embedding multiplies times.
  frequencies = np.exp(-np.log(embed.MAX_PERIOD) * np.arange(half) / half).astype(np.float32)
  angles = frequencies.astype(np.float64)[:, None]
  cos, sin = np.cos(angles), np.sin(angles)
  of_cos, of_sin = np.split(kernel_FD.astype(np.float64), 2)
  turned = [cos * of_cos + sin * of_sin, sin * of_cos - cos * of_sin]
  return np.concatenate(turned).astype(kernel_FD.dtype)


def negate_velocity(x: np.ndarray, sizes: Sizes) -> np.ndarray:
  """Negates the first C of every 2C entries along the last axis, (row, column, channel) of a head.

  The map is exact and its own inverse.
  """
  pairs = x.reshape(*x.shape[:-1], -1, 2, sizes['C']).copy()
  pairs[..., 0, :] = -pairs[..., 0, :]
  return pairs.reshape(x.shape)


def _patch_terms(terms):
  out, channels, rows, cols = terms
  return f'{rows}*{cols}*{channels}', out


def _patches_to_torch(kernel, shape, _):
  out, channels, rows, cols = shape
  return kernel.reshape(rows, cols, channels, out).transpose(3, 2, 0, 1)


def _patches_of_matrix(kernel, sizes):
  kernel = kernel.reshape(len(kernel), sizes['C'], sizes['p'], sizes['p'])
  return LAYOUTS['patches'].to_ours(kernel, sizes)


def _patches_to_matrix(kernel, shape, sizes):
  whole = shape[0], sizes['C'], sizes['p'], sizes['p']
  return _patches_to_torch(kernel, whole, sizes).reshape(shape)


def _negated(layout: Layout) -> Layout:
  """A layout whose values change their sign on the way, both ways."""
  return layout._replace(
    to_ours=lambda x, sizes: -layout.to_ours(x, sizes),
    to_torch=lambda x, shape, sizes: -layout.to_torch(x, shape, sizes),
  )


def _parted(n: int) -> dict[str, Layout]:
  """[n*E, in] -> [in, n, E] and [..., n*E] -> [..., n, E]: n matrices that are stored as one."""
  last = lambda terms: terms.split('*', 1)
  return {
    'kernel': Layout(
      lambda terms: (terms[1], *last(terms[0])),
      lambda x, _: x.T.reshape(x.shape[1], n, -1),
      lambda x, shape, _: x.reshape(len(x), -1).T,
    ),
    'bias': Layout(
      lambda terms: (*terms[:-1], *last(terms[-1])),
      lambda x, _: x.reshape(*x.shape[:-1], n, -1),
      lambda x, shape, _: x.reshape(shape),
    ),
  }


_SAME = Layout(lambda terms: terms, lambda x, _: x, lambda x, shape, _: x)
_LINEAR = Layout(lambda terms: terms[::-1], lambda x, _: x.T, lambda x, shape, _: x.T)
_QKV, _HALVES = _parted(3), _parted(2)

LAYOUTS = {
  # Vectors, tables and all that both sides store in the same way.
  'same': _SAME,
  # [out, in] -> [in, out].
  'linear': _LINEAR,
  # What makes q, k and v.
  'qkv': _QKV['kernel'],
  'parted': _QKV['bias'],
  # The two halves of SwiGLU.
  'halves': _HALVES['kernel'],
  'halves_bias': _HALVES['bias'],
  # [D, C, p, p] -> [p*p*C, D], rows ordered (row in patch, column in patch, channel).
  'patches': Layout(
    _patch_terms,
    lambda x, _: x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),
    _patches_to_torch,
  ),
  # [D, C*p*p] -> [p*p*C, D]: the same in a matrix.
  'flat_patches': Layout(lambda terms: ('p*p*C', terms[0]), _patches_of_matrix, _patches_to_matrix),
  # [p, p, C, D] -> [p*p*C, D]: Flax keeps the patch as we do.
  'flax_patches': Layout(
    lambda terms: ('*'.join(terms[:3]), terms[3]),
    lambda x, _: x.reshape(-1, x.shape[-1]),
    lambda x, shape, _: x.reshape(shape),
  ),
  # [D, 256] -> [256, D] for a clock that runs the other way.
  'reversed_clock': Layout(
    lambda terms: terms[::-1],
    lambda x, _: reverse_clock(x.T),
    lambda x, shape, _: reverse_clock(x).T,
  ),
  # A head without a variance, for a velocity of the other sign.
  'negated': _negated(_LINEAR),
  'negated_vector': _negated(_SAME),
  # [p*p*2C, D] -> [D, p*p*2C] and [p*p*2C], for a velocity of the other sign.
  'negated_head': Layout(
    lambda terms: terms[::-1],
    lambda x, sizes: negate_velocity(x.T, sizes),
    lambda x, shape, sizes: negate_velocity(x, sizes).T,
  ),
  'negated_bias': Layout(
    lambda terms: terms, negate_velocity, lambda x, shape, sizes: negate_velocity(x, sizes)
  ),
}
