"""LightningDiT's block (arXiv 2501.01423): RMSNorm, SwiGLU (2002.05202) and rotary positions.

MLP(x) = W3 (silu(W1 x) * W2 x)
"""

from typing import ClassVar

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name

from diversedit_jax.models import config, linear, tuning
from diversedit_jax.models.blocks import sit

PARTS = sit.PARTS | {'norm': 'rms', 'mlp': 'swiglu', 'rope': True}


class SwiGlu(nnx.Module):
  """D -> 2H -> H -> D, SiLU of the first half times the second; see `sit.Mlp`."""

  products: ClassVar[int] = 3

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    width, hidden = architecture.width, architecture.hidden
    dtype = execution.compute_dtype
    # An axis of its own for the two halves, so that devices share each of them.
    self.fc12 = linear.Linear(width, (2, hidden), ('embed', None, 'mlp'), dtype=dtype, rngs=rngs)
    self.fc3 = linear.Linear(hidden, width, ('mlp', 'embed'), dtype=dtype, rngs=rngs)

  @staticmethod
  def hidden(width: int, ratio: float) -> int:
    """H, two thirds of a plain MLP's: as many weights."""
    return int(2 / 3 * int(width * ratio))

  @jax.named_scope('mlp')
  def __call__(self, x_NTD: jax.Array) -> jax.Array:
    halves = tuning.taken_apart(self.fc12(x_NTD))
    gate_NTH, value_NTH = (checkpoint_name(half_NTH, tuning.HIDDEN) for half_NTH in halves)
    return self.fc3(jax.nn.silu(gate_NTH) * value_NTH)


MLPS = {'swiglu': SwiGlu}
