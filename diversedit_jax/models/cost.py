"""What a SiT costs, from its config alone: parameters, FLOPs, bytes.

A multiply-add counts as two FLOPs (DiT's published "Gflops" are multiply-adds, half as many). A
training step costs three forward passes, four with full rematerialisation; methods add to that.
"""

import dataclasses

from flax import nnx

from diversedit_jax import trees
from diversedit_jax.models import attention, config, embed, sit, tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """What a network costs.

  parameters: number of trained ones. forward, training: FLOPs per example.
  activation_bytes: kept per example, an estimate.
  """

  parameters: int
  forward: float
  training: float
  activation_bytes: float


def forward_flops(architecture: config.Architecture) -> float:
  """FLOPs of one forward pass of one example; elementwise work is left out."""
  t, d, depth = architecture.sequence, architecture.width, architecture.depth
  patch = architecture.patch_size**2 * architecture.channels
  block = 2 * t * (4 * d * d + 2 * d * architecture.hidden) + 4 * t * t * d + 2 * 6 * d * d
  skips = depth // 2 * 4 * d * d * t if architecture.skip.enabled else 0
  times = 2 if architecture.interval else 1
  out = patch * (2 if architecture.learn_sigma else 1)
  ends = 2 * t * (patch + out) * d + times * 2 * (embed.TIME_FREQUENCIES * d + d * d) + 4 * d * d
  ends += 2 * 2 * architecture.class_token * d
  return float(depth * block + skips + ends)


def activation_bytes(
  architecture: config.Architecture, execution: config.Execution, tensor: int = 1
) -> float:
  """Bytes per example that the backward pass finds in memory, an estimate.

  Each token of a block keeps values of width D, whose number is known from what
  `tuning.recomputed` keeps; of those between the two products of attention or MLP each of `tensor`
  devices has its share. The compiler for an H200 needs 0.9 to 1.1 times as much for XL/2
  (benchmarks/ahead.py); `plan.compile_for` asks it.
  """
  t, d, depth, ratio = (
    architecture.sequence,
    architecture.width,
    architecture.depth,
    architecture.mlp_ratio,
  )
  product = 4 if execution.dtype == 'float32' else 2
  residual = 4 if execution.residual_dtype == 'float32' else 2
  unrolled = tuning.blocks_per_step(execution, depth) == depth
  whole, shared, residuals = {
    'none': (4, 4 + 2 * ratio, 2) if unrolled else (2, 4 + ratio, 2),
    'dots': (2, 3 + ratio, 1),
    'names': (0, 4 + ratio, 1),
    'full': (0, 0, 1),
  }[execution.remat]
  kept = d * ((whole + shared / tensor) * product + residuals * residual)
  # Where it runs on this machine, what 'auto' takes is known only when it has been tried.
  by_xla = not execution.platform or attention.implementation(architecture, execution) == 'xla'
  if by_xla and execution.remat == 'none':
    kept += architecture.heads * t * 4 / tensor
  skips = depth // 2 * d * residual if architecture.skip.enabled else 0
  one_block = d * (4 + 2 * ratio / tensor) * residual  # While it is differentiated.
  return float(t * (depth * kept + skips + one_block))


def cost(architecture: config.Architecture, execution: config.Execution, tensor: int = 1) -> Cost:
  """The cost of a network; traces it for its parameters and compiles nothing.

  tensor: devices that share each product.
  """
  unprobed = dataclasses.replace(execution, attention='xla')
  model = nnx.eval_shape(lambda: sit.SiT(architecture, unprobed, rngs=nnx.Rngs(0)))
  parameters = trees.count(nnx.state(model, nnx.Param))
  forward = forward_flops(architecture)
  return Cost(
    parameters=parameters,
    forward=forward,
    training=forward * (4 if execution.remat == 'full' else 3),
    activation_bytes=activation_bytes(architecture, execution, tensor),
  )
