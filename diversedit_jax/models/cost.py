"""What a SiT costs, from its config alone: parameters, FLOPs, bytes.

A multiply-add counts as two FLOPs (DiT's published "Gflops" are multiply-adds, half as many). A
training step costs three forward passes, four with full rematerialisation.
"""

import dataclasses

from flax import nnx

from diversedit_jax import trees
from diversedit_jax.models import embed, sit

STATE_COPIES = 4  # Parameters, their average and two moments.
SAVED_PER_TOKEN = (
  20  # Values of width D that a block keeps for the backward pass, in the compute dtype.
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """parameters: trained ones. forward, training: FLOPs per example.

  state_bytes: of the whole train state. activation_bytes: kept per example, an estimate.
  """

  parameters: int
  forward: float
  training: float
  state_bytes: int
  activation_bytes: float


def forward_flops(config: sit.SiTConfig) -> float:
  """FLOPs of one forward pass of one example; elementwise work is left out."""
  t, d, depth = config.tokens, config.width, config.depth
  patch = config.patch_size**2 * config.channels
  hidden = int(d * config.mlp_ratio)
  block = 2 * t * (4 * d * d + 2 * d * hidden) + 4 * t * t * d + 2 * 6 * d * d
  skips = 0 if config.skip is None else depth // 2 * 4 * d * d * t
  ends = 2 * t * patch * d * 2 + 2 * (embed.TIME_FREQUENCIES * d + d * d) + 4 * d * d
  return float(depth * block + skips + ends)


def cost(config: sit.SiTConfig) -> Cost:
  """The cost of a config; traces the model for its parameters and compiles nothing."""
  model = nnx.eval_shape(lambda: sit.SiT(config, rngs=nnx.Rngs(0)))
  parameters = trees.count(nnx.state(model, nnx.Param))
  forward = forward_flops(config)
  width = 4 if config.dtype == 'float32' else 2
  residual = 4 if config.residual_dtype == 'float32' else 2
  token = config.width * residual
  if config.remat != 'full':
    token += SAVED_PER_TOKEN * config.width * width
    token += config.heads * config.tokens * 4  # Attention weights of the exact XLA path.
  return Cost(
    parameters=parameters,
    forward=forward,
    training=forward * (4 if config.remat == 'full' else 3),
    state_bytes=4 * STATE_COPIES * parameters,
    activation_bytes=float(config.depth * config.tokens * token),
  )
