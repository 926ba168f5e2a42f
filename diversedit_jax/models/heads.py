"""Heads that methods put on block features; trained and averaged with the model.

`dtype` is the type of the matrix products; None follows the features.
"""

import math

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax.models import linear


class Projector(nnx.Module):
  """REPA's head (arXiv 2410.06940): Linear, SiLU, Linear, SiLU, Linear, applied per token."""

  def __init__(
    self, width: int, hidden: int, out: int, *, dtype: jnp.dtype | None = None, rngs: nnx.Rngs
  ):
    self.fc1 = _linear(width, hidden, dtype, rngs)
    self.fc2 = _linear(hidden, hidden, dtype, rngs)
    self.fc3 = _linear(hidden, out, dtype, rngs)

  def __call__(self, f_NTD: jax.Array) -> jax.Array:
    return self.fc3(jax.nn.silu(self.fc2(jax.nn.silu(self.fc1(f_NTD)))))


class ConvProjector(nnx.Module):
  """iREPA's head (arXiv 2512.10794): one convolution of the token grid, with bias.

    y[r, c] = b + sum_{i, j < k} W[i, j] f[r + i - k // 2, c + j - k // 2],   f = 0 off the grid

  It is a product of what lies around each token, [N, T, k k D], with W, [k k D, Z], rows ordered
  (i, j, channel): XLA's own convolution takes 1.3 times as long on a CPU (benchmarks/NOTES.md).
  What is gathered is gathered again for the gradient, not kept. W starts as PyTorch's convolutions
  do, b at zero.

  A class token before the patches lies on no grid: it has REPA's head for itself.
  """

  def __init__(
    self,
    width: int,
    out: int,
    *,
    kernel: int,
    grid: tuple[int, int],
    class_hidden: int = 0,
    dtype: jnp.dtype | None = None,
    rngs: nnx.Rngs,
  ):
    """kernel: k, odd. grid: rows and columns. class_hidden: width of its head; 0 for no token."""
    if kernel % 2 == 0:
      raise ValueError(f'an even kernel has no middle, got {kernel}')
    self.kernel, self.grid = kernel, grid
    axes, init = (None, 'embed'), nnx.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
    self.conv = linear.Linear(kernel**2 * width, out, axes, init=init, dtype=dtype, rngs=rngs)
    if class_hidden:
      self.class_token = Projector(width, class_hidden, out, dtype=dtype, rngs=rngs)

  def __call__(self, f_NTD: jax.Array) -> jax.Array:
    first = f_NTD.shape[1] - math.prod(self.grid)
    found = jax.checkpoint(lambda conv, f: conv(self.around(f)))(self.conv, f_NTD[:, first:])
    if first:
      found = jnp.concatenate([self.class_token(f_NTD[:, :first]), found], axis=1)
    return found

  def around(self, f_NTD: jax.Array) -> jax.Array:
    """The k x k tokens around each one, [N, T, k k D]; zeros off the grid."""
    n, tokens, _ = f_NTD.shape
    (rows, cols), k = self.grid, self.kernel
    f_NRCD = f_NTD.reshape(n, rows, cols, -1)
    f_NRCD = jnp.pad(f_NRCD, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    moved = [f_NRCD[:, i : i + rows, j : j + cols] for i in range(k) for j in range(k)]
    return jnp.concatenate(moved, axis=-1).reshape(n, tokens, -1)


class AlignmentHead(nnx.Module):
  """SRA's head (arXiv 2505.02831): Linear to 2D, SiLU, Linear back to D, applied per token."""

  def __init__(self, width: int, *, dtype: jnp.dtype | None = None, rngs: nnx.Rngs):
    self.fc1 = _linear(width, 2 * width, dtype, rngs)
    self.fc2 = _linear(2 * width, width, dtype, rngs)

  def __call__(self, f_NTD: jax.Array) -> jax.Array:
    return self.fc2(jax.nn.silu(self.fc1(f_NTD)))


def _linear(fan_in: int, fan_out: int, dtype: jnp.dtype | None, rngs: nnx.Rngs) -> linear.Linear:
  return linear.Linear(fan_in, fan_out, (None, 'embed'), dtype=dtype, rngs=rngs)
