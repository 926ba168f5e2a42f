"""Heads that methods put on block features; trained and averaged with the model.

`dtype` is the type of the matrix products; None follows the features.
"""

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


class AlignmentHead(nnx.Module):
  """SRA's head (arXiv 2505.02831): Linear to 2D, SiLU, Linear back to D, applied per token."""

  def __init__(self, width: int, *, dtype: jnp.dtype | None = None, rngs: nnx.Rngs):
    self.fc1 = _linear(width, 2 * width, dtype, rngs)
    self.fc2 = _linear(2 * width, width, dtype, rngs)

  def __call__(self, f_NTD: jax.Array) -> jax.Array:
    return self.fc2(jax.nn.silu(self.fc1(f_NTD)))


def _linear(fan_in: int, fan_out: int, dtype: jnp.dtype | None, rngs: nnx.Rngs) -> linear.Linear:
  return linear.Linear(fan_in, fan_out, (None, 'embed'), dtype=dtype, rngs=rngs)
