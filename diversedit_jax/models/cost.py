"""What a SiT costs, from its config alone: parameters, FLOPs, bytes.

A multiply-add counts as two FLOPs (DiT's published "Gflops" are multiply-adds, half as many). A
training step costs three forward passes, four with full rematerialisation; methods add to that.
"""

import dataclasses

from flax import nnx

from diversedit_jax import trees
from diversedit_jax.models import embed, sit

STATE_COPIES = 4  # Parameters, their average and two moments.


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
  t, d, depth = config.sequence, config.width, config.depth
  patch = config.patch_size**2 * config.channels
  hidden = int(d * config.mlp_ratio)
  block = 2 * t * (4 * d * d + 2 * d * hidden) + 4 * t * t * d + 2 * 6 * d * d
  skips = (
    depth // 2 * 4 * d * d * t if getattr(config.skip, 'enabled', config.skip is not None) else 0
  )
  times = 2 if config.interval else 1
  out = patch * (2 if config.learn_sigma else 1)
  ends = 2 * t * (patch + out) * d + times * 2 * (embed.TIME_FREQUENCIES * d + d * d) + 4 * d * d
  ends += 2 * 2 * config.class_token * d
  return float(depth * block + skips + ends)


def activation_bytes(config: sit.SiTConfig) -> float:
  """Bytes per example that the backward pass finds in memory, an estimate.

  What every block keeps under the remat policy, and all that one block makes while it is
  differentiated. The counts are of the values that JAX hands from the forward to the backward scan,
  which XLA stores as they are, and without a loop of those that `layers.recomputed` names.
  """
  t, d, hidden = config.sequence, config.width, int(config.width * config.mlp_ratio)
  width = 4 if config.dtype == 'float32' else 2
  residual = 4 if config.residual_dtype == 'float32' else 2
  # Two normalisations of three values each, two branches before their gates; q, k, v, attention
  # and two inputs of matrix products; six steps of the GELU; exp and softmax of the XLA attention.
  block = d * (6 * 4 + 2 * residual + 6 * width) + 6 * hidden * width
  # Of a machine that is here, what `auto` takes is known only when it has tried.
  by_xla = not config.platform or config.kernel() == 'xla'
  block += config.heads * t * (4 + width) * by_xla
  products = 4 * d * width + hidden * width  # q, k, v, attention (or its projection), fc1.
  operands = (3 * d + hidden) * width if config.unrolled else 0  # Of qkv, proj, fc1 and fc2.
  # The XLA attention keeps exp (and its copy for the product) and its output before division.
  copy = 0 if config.dtype == 'float32' else width
  softmax = config.heads * t * (4 + copy) + d * 4 if by_xla else config.heads * 4
  # Without remat: besides these the inputs of two normalisations and two branches before gates.
  kept = {
    'none': 2 * d * residual + products + operands + 2 * d * width + softmax,
    'full': d * residual,
    'dots': d * residual + products + d * width,
    'names': d * residual + products,
  }[config.remat]
  skips = 0
  if config.skip is not None:  # The stored output and its gradient, and the input of the fusion.
    fused = (residual + 2 * width * config.unrolled) if config.remat == 'none' else 0
    skips = config.depth // 2 * d * (2 * residual + fused)
  return float(t * (config.depth * kept + skips + block))


def cost(config: sit.SiTConfig) -> Cost:
  """The cost of a config; traces the model for its parameters and compiles nothing."""
  model = nnx.eval_shape(lambda: sit.SiT(config, rngs=nnx.Rngs(0)))
  parameters = trees.count(nnx.state(model, nnx.Param))
  forward = forward_flops(config)
  return Cost(
    parameters=parameters,
    forward=forward,
    training=forward * (4 if config.remat == 'full' else 3),
    state_bytes=4 * STATE_COPIES * parameters,
    activation_bytes=activation_bytes(config),
  )
