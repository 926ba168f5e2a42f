"""SiT's block, which is DiT's (arXiv 2401.08740, 2212.09748): LayerNorm, and an MLP with GELU.

MLP(x) = W2 gelu(W1 x)
"""

from typing import ClassVar

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name

from diversedit_jax.models import config, linear, tuning

PARTS = {
  'norm': 'layer',
  'mlp': 'gelu',
  'rope': False,
  'shift': True,
  'time_features': 'sinusoids',
  'position_table': True,
  'conditioning': 'adaln',
}


class Mlp(nnx.Module):
  """D -> ratio * D -> D with the tanh-approximated GELU.

  products: number of its matrices D x hidden.
  """

  products: ClassVar[int] = 2

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    width, hidden = architecture.width, architecture.hidden
    dtype = execution.compute_dtype
    self.fc1 = linear.Linear(width, hidden, ('embed', 'mlp'), dtype=dtype, rngs=rngs)
    self.fc2 = linear.Linear(hidden, width, ('mlp', 'embed'), dtype=dtype, rngs=rngs)

  @staticmethod
  def hidden(width: int, ratio: float) -> int:
    """Features of the hidden layer."""
    return int(width * ratio)

  @jax.named_scope('mlp')
  def __call__(self, x_NTD: jax.Array) -> jax.Array:
    h_NTE = checkpoint_name(self.fc1(x_NTD), tuning.HIDDEN)
    return self.fc2(jax.nn.gelu(h_NTE, approximate=True))


MLPS = {'gelu': Mlp}
