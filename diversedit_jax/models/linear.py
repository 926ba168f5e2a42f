"""The linear layer of all networks that are trained here."""

import math

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from diversedit_jax import sharding
from diversedit_jax.models import embed, tuning


class Linear(nnx.Linear):
  """x [..., D] -> x W + b, [..., E], computed in `dtype`; None follows the input.

  Gradients of both parameters are sums over all rows, taken in float32 at least.

  out_features: E, or the shape [E, F] of what comes out, which W [D, E, F] and b have too.
  axes: logical names of the axes of W, see `sharding`.
  init: initialiser of W as a matrix; b starts at zero.
  """

  def __init__(
    self,
    in_features: int,
    out_features: int | tuple[int, ...],
    axes: tuple[str | None, ...],
    *,
    init: nnx.Initializer = embed.XAVIER,
    dtype: jnp.dtype | None = None,
    rngs: nnx.Rngs,
  ):
    shape = (out_features,) if isinstance(out_features, int) else out_features
    shaped = lambda init, *shape: lambda key, matrix, dtype: init(key, matrix, dtype).reshape(shape)
    super().__init__(
      in_features,
      math.prod(shape),
      kernel_init=sharding.annotated(shaped(init, in_features, *shape), *axes),
      bias_init=sharding.annotated(shaped(nnx.initializers.zeros, *shape), *axes[1:]),
      dtype=dtype,
      rngs=rngs,
    )

  def __call__(self, x: jax.Array) -> jax.Array:
    x, kernel, bias = self.promote_dtype((x, self.kernel[...], self.bias[...]), dtype=self.dtype)
    x = checkpoint_name(x, tuning.OPERAND)
    shape = kernel.shape[1:]
    if len(shape) > 1:
      bias = tuning.apart_from_loop(bias)
    kernel, bias = tuning.joined(kernel, len(shape)), tuning.joined(bias, len(shape))
    y = checkpoint_name(tuning.add_bias(tuning.matmul(x, kernel), bias), tuning.PRODUCT)
    return tuning.parted(y, shape)
