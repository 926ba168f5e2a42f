"""Rotary positions in two dimensions, of queries and keys (RoPE, arXiv 2104.09864; EVA-02).

A head has d features. Its first half turns by the row of the token, its second half by the column,
both counted from 0; in each half the features 2j and 2j + 1 are a pair with the angle

  (1)  a_j = position * 10000^(-2j / (d/2)),  j = 0 .. d/4 - 1
  (2)  (x, y) <- (x cos a - y sin a, y cos a + x sin a)
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax.models import groups

MAX_PERIOD = 10_000.0


@functools.cache
def tables(rows: int, cols: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """cos a and sin a of every feature, float32 [T, d], tokens in row-major order.

  Raises:
    ValueError: if the width d of a head is not divisible by 4.
  """
  if width % 4:
    raise ValueError(f'rotary positions need heads of a width divisible by 4, got {width}')
  frequencies = MAX_PERIOD ** (-2 * np.arange(width // 4, dtype=np.float64) / (width // 2))
  places = np.meshgrid(np.arange(rows), np.arange(cols), indexing='ij')
  angles = np.concatenate([np.outer(place.reshape(-1), frequencies) for place in places], axis=1)
  angles_Td = np.repeat(angles, 2, axis=1)
  return np.cos(angles_Td).astype(np.float32), np.sin(angles_Td).astype(np.float32)


def turned(
  x_NTHd: jax.Array, grid: tuple[int, int], tokens: groups.Whole = groups.WHOLE
) -> jax.Array:
  """(2), in float32 at least, in the dtype of x; tokens: in what order they come.

  Tokens before those of the grid, a class token, have no place and do not turn.
  """
  *_, t, _, d = x_NTHd.shape
  rows, cols = grid
  dtype = jnp.promote_types(x_NTHd.dtype, jnp.float32)
  first = ((t - rows * cols, 0), (0, 0))
  cos, sin = tables(rows, cols, d)
  sin = np.where(np.arange(d) % 2, sin, -sin)  # Multiplies the other one of the pair.
  arranged = lambda table: tokens.arranged(jnp.asarray(table, dtype))[:, :, None]
  cos_NT1d, sin_NT1d = arranged(np.pad(cos, first, constant_values=1)), arranged(np.pad(sin, first))
  other = jnp.flip(x_NTHd.reshape(*x_NTHd.shape[:-1], d // 2, 2), axis=-1).reshape(x_NTHd.shape)
  return (x_NTHd * cos_NT1d + other * sin_NT1d).astype(x_NTHd.dtype)
