"""What a SiT costs, from its config alone: parameters, FLOPs, bytes.

A multiply-add counts as two FLOPs (DiT's published "Gflops" are multiply-adds, half as many). A
training step costs three forward passes, four with full rematerialisation; methods add to that.
"""

import dataclasses

from flax import nnx

from diversedit_jax import trees
from diversedit_jax.models import attention, blocks, config, embed, networks, tuning


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cost:
  """What a network costs.

  parameters: number of trained ones. forward, training: FLOPs per example.
  activation_bytes: kept per example, an estimate. postponed_bytes: see `postponed_bytes`.
  """

  parameters: int
  forward: float
  training: float
  activation_bytes: float
  postponed_bytes: float


def forward_flops(architecture: config.Architecture) -> float:
  """FLOPs of one forward pass of one example; elementwise work is left out."""
  return encoder_flops(architecture) + _decoder_flops(architecture)


def encoder_flops(architecture: config.Architecture) -> float:
  """FLOPs of a forward pass but for the decoder of a head; of all where there is none."""
  last, t, d = architecture.last, architecture.sequence, architecture.width
  patch = architecture.patch_size**2 * architecture.channels
  tokens, conditioned = t + architecture.context_tokens, architecture.conditioning == 'adaln'
  found = _blocks_flops(architecture, tokens, int(conditioned))
  if architecture.skip.enabled:
    found += architecture.depth // 2 * 4 * d * d * tokens
  times = 2 if architecture.interval else 1
  features = embed.TIME_EMBEDS[architecture.time_features].features
  found += times * 2 * (features * d + d * d)
  found += 2 * (patch * t + architecture.class_token) * d
  out = patch * (2 if architecture.learn_sigma else 1)
  modulations = t if architecture.head.depth else 1  # One for each token, or one for all.
  found += 2 * (t * out + architecture.class_token) * last.width + 4 * modulations * last.width**2
  return float(found)


def _decoder_flops(architecture):
  if not architecture.head.depth:
    return 0.0
  t, width, decoder = architecture.sequence, architecture.width, architecture.decoder
  patch = architecture.patch_size**2 * architecture.channels
  found = _blocks_flops(decoder, t, t)
  found += 2 * (patch * t + architecture.class_token) * decoder.width
  if decoder.width != width:
    found += 2 * t * width * decoder.width
  return float(found)


def _blocks_flops(architecture, t, rows):
  """FLOPs of all blocks of a stack for t tokens, with the modulation of some rows."""
  d = architecture.width
  mlp = blocks.mlp(architecture.mlp).products * d * architecture.hidden
  block = 2 * t * (4 * d * d + mlp) + 4 * t * t * d + 2 * rows * architecture.vectors * d * d
  return architecture.depth * block


def activation_bytes(
  architecture: config.Architecture, execution: config.Execution, tensor: int = 1
) -> float:
  """Bytes per example that the backward pass finds in memory, an estimate.

  Each token of a block keeps values of width D, whose number is known from what
  `tuning.recomputed` keeps; of those between the two products of attention or MLP each of `tensor`
  devices has its share. The compiler for an H200 needs 0.9 to 1.1 times as much for XL/2
  (benchmarks/ahead.py); `plan.compile_for` asks it.
  """
  t, d, depth = architecture.sequence, architecture.width, architecture.depth
  _, residual = _widths(execution)
  kept = depth * _kept_in_block(architecture, execution, tensor)
  if architecture.skip.enabled:
    kept += depth // 2 * d * residual
  found = (t + architecture.context_tokens) * kept
  last = architecture.last
  if architecture.head.depth:
    fitted = attention.fitting(last, execution)
    each = _kept_in_block(last, fitted, tensor) + _kept_of_modulation(last, execution)
    found += t * last.depth * each
  # While it is differentiated.
  one_block = last.width * (4 + sum(_mlp_values(last)) / tensor) * residual
  return float(found + t * one_block)


def postponed_bytes(
  architecture: config.Architecture, execution: config.Execution, tensor: int = 1
) -> float:
  """Bytes per example where products for weights' gradients are left for last, an estimate.

  So XLA schedules them on several GPUs, one beside each exchange of gradients. A block that has
  been differentiated then still holds the operands of these products, on both sides and also where
  they were computed again, and what the gradients of gates, shifts and scales are summed from: of
  LayerNorm three values in the dtype of the residual stream, of RMSNorm one (by the compiler for 8
  H100s; why was not looked into). Where each token is modulated by itself, so are operands. A
  fusion of a long skip holds its centred input and the gradient of that in float32 until the
  skip's first block uses it. Most is held when that half of the blocks is through, or at the end.
  """
  t, d, depth = architecture.sequence, architecture.width, architecture.depth
  product, _ = _widths(execution)
  block, last = _waiting_in_block(architecture, execution, tensor), architecture.last
  head = 0
  if architecture.head.depth:
    modulation = last.width * (last.vectors + 1) * product
    head = t * last.depth * (_waiting_in_block(last, execution, tensor) + modulation)
  tokens = t + architecture.context_tokens
  if not architecture.skip.enabled:
    return float(tokens * depth * block + head)
  half, fusion = depth // 2, d * 3 * product
  first_half = (depth - half) * _kept_in_block(architecture, execution, tensor)
  halfway = first_half + half * (block + fusion + d * (2 * product + 4 * 4))
  return float(tokens * max(halfway, depth * block + half * fusion) + head)


def _waiting_in_block(architecture, execution, tensor):
  """Bytes that a block which has been differentiated still holds of a token."""
  product, residual = _widths(execution)
  wide = {'layer': 3, 'rms': 1}[architecture.norm]
  narrow = 7 + (4 + sum(_mlp_values(architecture))) / tensor
  return architecture.width * (narrow * product + wide * residual)


def _widths(execution):
  """Bytes of a number in a product, and in the residual stream."""
  product = 4 if execution.dtype == 'float32' else 2
  return product, 4 if execution.residual_dtype == 'float32' else 2


def _mlp_values(architecture):
  """Values of a token before and after the MLP's nonlinearity, in units of D."""
  after = architecture.hidden / architecture.width
  return after * (blocks.mlp(architecture.mlp).products - 1), after


def _kept_in_block(architecture, execution, tensor):
  """Bytes that the backward pass finds of a token in a block."""
  d, (before, after) = architecture.width, _mlp_values(architecture)
  product, residual = _widths(execution)
  unrolled = tuning.blocks_per_step(execution, architecture.depth) == architecture.depth
  whole, shared, residuals = {
    'none': (4, 4 + before + after, 2) if unrolled else (2, 4 + before, 2),
    'dots': (2, 3 + before, 1),
    'names': (0, 4 + before, 1),
    'full': (0, 0, 1),
  }[execution.remat]
  if architecture.qk_norm and execution.remat == 'none':
    shared += 3  # Queries, keys and values as they were before.
  kept = d * ((whole + shared / tensor) * product + residuals * residual)
  # Where it runs on this machine, what 'auto' takes is known only when it has been tried.
  by_xla = not execution.platform or attention.implementation(architecture, execution) == 'xla'
  if by_xla and execution.remat == 'none':
    kept += architecture.heads * (architecture.sequence + architecture.context_tokens) * 4 / tensor
  return kept


def _kept_of_modulation(architecture, execution):
  """Bytes that the backward pass finds of a token in a block that modulates each by itself."""
  product, residual = _widths(execution)
  unrolled = tuning.blocks_per_step(execution, architecture.depth) == architecture.depth
  of_vectors, of_inputs = {
    'none': (residual, product) if unrolled else (product, 0),
    'dots': (product, 0),
    'names': (0, 0),
    'full': (0, 0),
  }[execution.remat]
  return architecture.width * (architecture.vectors * of_vectors + of_inputs)


def cost(architecture: config.Architecture, execution: config.Execution, tensor: int = 1) -> Cost:
  """The cost of a network; traces it for its parameters and compiles nothing.

  tensor: devices that share each product.
  """
  unprobed = dataclasses.replace(execution, attention='xla')
  model = nnx.eval_shape(lambda: networks.make(architecture, unprobed, rngs=nnx.Rngs(0)))
  parameters = trees.count(nnx.state(model, nnx.Param))
  forward = forward_flops(architecture)
  return Cost(
    parameters=parameters,
    forward=forward,
    training=forward * (4 if execution.remat == 'full' else 3),
    activation_bytes=activation_bytes(architecture, execution, tensor),
    postponed_bytes=postponed_bytes(architecture, execution, tensor),
  )
