"""The linear layer of all networks that are trained here."""

from collections.abc import Callable

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from diversedit_jax.models import embed, tuning


class Linear(nnx.Linear):
  """x [..., D] -> x W + b, [..., E], computed in `dtype`; None follows the input.

  Gradients of both parameters are sums over all rows, taken in float32 at least.

  axes: logical names of the axes of W, see `sharding`. init: initialiser of W; b starts at zero.
  """

  def __init__(
    self,
    in_features: int,
    out_features: int,
    axes: tuple[str | None, str | None],
    *,
    init: Callable[..., nnx.Initializer] = embed.xavier,
    dtype: jnp.dtype | None = None,
    rngs: nnx.Rngs,
  ):
    super().__init__(
      in_features,
      out_features,
      kernel_init=init(*axes),
      bias_init=embed.zeros(axes[1]),
      dtype=dtype,
      rngs=rngs,
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    x, kernel, bias = self.promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
    x = checkpoint_name(x, tuning.OPERAND)
    return checkpoint_name(tuning.add_bias(tuning.matmul(x, kernel), bias), tuning.PRODUCT)
