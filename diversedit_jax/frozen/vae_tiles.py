"""Decoding of large latents tile by tile, in memory that does not grow with the picture.

The result is an approximation: the decoder's norms and its attention see one tile instead of the
whole. Along an axis, all tiles have one length and start at regular distances, and neighbours share
at least `overlap` latents. With u_j rising linearly from 0 to 1 over `overlap` latents in the
middle of what tiles j - 1 and j share, and u_0 = 1, u_n = 0, tile j has the weight

  (1)  w_j = u_j - u_(j+1),   so that  sum_j w_j = 1

and weights of rows and columns multiply.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types


def decode_tiled(
  decode: Callable[[jax.Array], jax.Array],
  z_NHWC: jax.Array,
  *,
  factor: int,
  tile: int = 64,
  overlap: int = 16,
  batch: int = 4,
) -> jax.Array:
  """Computes decode(z_NHWC), in tiles of tile x tile latents where a side is longer than that.

  A pure function for use under `jax.jit`, where it compiles `decode` once, for one shape.

  Args:
    decode: function from latents [M, h, w, C] to pixels [M, factor * h, factor * w, C'].
    z_NHWC: latents; if no side is longer than a tile, they are decoded as they are.
    factor: pixels per latent, along a side.
    tile: side of a tile, in latents.
    overlap: least number of latents that neighbouring tiles share.
    batch: number of examples of which one tile each is decoded at a time, which bounds the memory;
      a multiple of the number of devices that share the examples.

  Returns:
    Pixels [N, factor * H, factor * W, C'].

  Raises:
    UserError: the sizes do not fit each other.
  """
  if not 1 <= overlap < tile or batch < 1 or factor < 1:
    raise types.UserError(
      f'tiles need 1 <= overlap < tile, batch >= 1 and factor >= 1; found {tile=}, {overlap=}, '
      f'{batch=}, {factor=}'
    )
  types.check('z', z_NHWC, 'N H W C')
  n = len(z_NHWC)
  if n <= batch:
    return _decode_some(decode, z_NHWC, factor, tile, overlap)
  groups = -(-n // batch)
  # Zeros fill the last group, so that all have one shape.
  z = jnp.pad(z_NHWC, ((0, groups * batch - n), (0, 0), (0, 0), (0, 0)))
  z = z.reshape(groups, batch, *z.shape[1:])
  x = jax.lax.map(lambda z: _decode_some(decode, z, factor, tile, overlap), z)
  return x.reshape(-1, *x.shape[2:])[:n]


def starts(size: int, tile: int, overlap: int) -> tuple[int, ...]:
  """The first latent of each tile along an axis, with as few tiles as `overlap` allows."""
  if size <= tile:
    return (0,)
  count = -(-(size - overlap) // (tile - overlap))
  return tuple(round(i * (size - tile) / (count - 1)) for i in range(count))


def weights(size: int, tile: int, overlap: int, factor: int) -> np.ndarray:
  """Weights (1) of each tile's pixels along an axis, [tiles, factor * min(tile, size)] float32."""
  first = starts(size, tile, overlap)
  length = min(tile, size)
  centres = np.arange(size * factor) + 0.5
  rising = [np.ones(size * factor)]
  for before, start in zip(first, first[1:], strict=False):
    seam = (before + length + start) / 2 * factor
    rising.append(np.clip((centres - seam) / (overlap * factor) + 0.5, 0, 1))
  rising.append(np.zeros(size * factor))
  return np.stack(
    [
      (rising[i] - rising[i + 1])[start * factor : (start + length) * factor]
      for i, start in enumerate(first)
    ]
  ).astype(np.float32)


def _decode_some(decode, z_NHWC, factor, tile, overlap):
  n, height, width, c = z_NHWC.shape
  if height <= tile and width <= tile:
    return decode(z_NHWC)
  rows, cols = starts(height, tile, overlap), starts(width, tile, overlap)
  size = (n, min(tile, height), min(tile, width), c)
  made = jax.eval_shape(decode, jax.ShapeDtypeStruct(size, z_NHWC.dtype))
  if made.shape[:-1] != (n, factor * size[1], factor * size[2]):
    raise types.UserError(
      f'with factor={factor}, latents {size} should become pixels '
      f'{(n, factor * size[1], factor * size[2])}, found {made.shape[:-1]}'
    )
  w_rows = jnp.asarray(weights(height, tile, overlap, factor), made.dtype)
  w_cols = jnp.asarray(weights(width, tile, overlap, factor), made.dtype)
  places = [(i, j) for i in range(len(rows)) for j in range(len(cols))]
  rows, cols = jnp.asarray(rows), jnp.asarray(cols)

  def add(x_NHWC, place):
    i, j = place
    x = decode(jax.lax.dynamic_slice(z_NHWC, (0, rows[i], cols[j], 0), size))
    x = x * (w_rows[i][:, None] * w_cols[j][None])[None, :, :, None]
    corner = (0, rows[i] * factor, cols[j] * factor, 0)
    x = x + jax.lax.dynamic_slice(x_NHWC, corner, x.shape)
    return jax.lax.dynamic_update_slice(x_NHWC, x, corner), None

  blank = jnp.zeros((n, height * factor, width * factor, made.shape[-1]), made.dtype)
  return jax.lax.scan(add, blank, tuple(jnp.asarray(places).T))[0]
