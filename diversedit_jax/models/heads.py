"""Heads that methods put on block features; trained and averaged with the model."""

from flax import nnx
import jax

from diversedit_jax.models import embed


class Projector(nnx.Module):
  """REPA's head (arXiv 2410.06940): Linear, SiLU, Linear, SiLU, Linear, applied per token."""

  def __init__(self, width: int, hidden: int, out: int, *, rngs: nnx.Rngs):
    linear = lambda i, o: nnx.Linear(
      i, o, kernel_init=embed.xavier(None, 'embed'), bias_init=embed.zeros('embed'), rngs=rngs
    )
    self.fc1, self.fc2, self.fc3 = (
      linear(width, hidden),
      linear(hidden, hidden),
      linear(hidden, out),
    )

  def __call__(self, f_NTD: jax.Array) -> jax.Array:
    return self.fc3(jax.nn.silu(self.fc2(jax.nn.silu(self.fc1(f_NTD)))))
