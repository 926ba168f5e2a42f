"""What compilers need of a network, kept apart from its equations; each item with what it brings.

Nothing here changes what a network computes, only how. Three kinds of things:

  `recomputed`, `blocks_per_step`        what the backward pass keeps, and loops over blocks
  `matmul`, `add_bias`                   products of all linear layers and sums of their gradients
  `cast_products`, `for_sampling`        a network in, another out: the same function of its inputs

Figures are those of a training step: CPU seconds of S/2 at batch 2 without an item over those with
it (`benchmarks/train_step.py`, nine rounds), or bytes beside products and attention of XL/2 at
batch 256, by the compiler for an H200 (`benchmarks/traffic.py`). With all items these are 400 GB.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import sharding, trees
from diversedit_jax.models import config

# Names of values in the network, for `jax.ad_checkpoint.checkpoint_name`.
OPERAND = 'operand'  # What goes into the product of a linear layer, in the product's dtype.
PRODUCT = 'product'  # What the layer gives, with its bias.
STATISTICS = 'statistics'  # Mean and variance of a normalisation.
QKV = 'qkv'  # Queries, keys and values as the attention takes them.
SOFTMAX = 'softmax'  # What an attention divides by what.
ATTENTION = 'attention'  # What the attention puts out.
MODULATION = 'modulation'  # Each shift, scale and gate.
RESIDUAL = 'residual'  # The residual stream between attention and MLP.
HIDDEN = 'hidden'  # The MLP before its nonlinearity.

_CACHE_STRIDE = 512  # Numbers of float32 after which a CPU's caches use the same lines again.
_LAYER_PRODUCTS = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
_OF_ATTENTION = (
  'dot_product_attention_fwd_wrapper',  # cuDNN's kernel.
  'custom_vjp_call',  # The kernel for TPUs, with what its gradient needs.
  'exp',  # The weights of a softmax, of which its derivative is made.
)


def _costly(primitive, *avals, **params):
  """Says whether to keep a result: products of layers, and what is costly in an attention."""
  return primitive.name in _OF_ATTENTION or _LAYER_PRODUCTS(primitive, *avals, **params)


def _policy(*names):
  named = jax.checkpoint_policies.save_only_these_names(*names)
  return jax.checkpoint_policies.save_from_both_policies(_costly, named)


_IN_A_LOOP = _policy(PRODUCT, QKV, SOFTMAX, ATTENTION, HIDDEN)
_UNROLLED = _policy(PRODUCT, QKV, SOFTMAX, ATTENTION, MODULATION, RESIDUAL, OPERAND, STATISTICS)
_POLICIES = {
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.save_from_both_policies(
    _LAYER_PRODUCTS, jax.checkpoint_policies.save_only_these_names(PRODUCT)
  ),
  'names': jax.checkpoint_policies.save_only_these_names(QKV, ATTENTION, HIDDEN),
}


def recomputed(block: Callable[..., Any], remat: str, *, unrolled: bool) -> Callable[..., Any]:
  """A block of which the backward pass keeps the inputs and what `model.remat` says.

  'none' keeps products and attention and computes the cheap steps between them again, such as
  normalisations, gates and GELU. In a loop whatever is kept is copied to the loop's stack and back,
  which costs more than they do: keeping all takes 1.01 of a CPU's time, 1.40 of its memory.
  Where blocks are unrolled nothing is copied, and more is kept: what goes into products (0.91 of
  the bytes), the statistics of normalisations (0.96), the residual stream (0.97, for a tenth more
  memory) and the modulation (0.98).

  Without a loop the compiler would merge what is computed again with the first time, and keep it:
  so JAX's barrier is on there (without it 1.14 of the bytes).
  """
  policy = _POLICIES.get(remat, _UNROLLED if unrolled else _IN_A_LOOP)
  return jax.checkpoint(block, prevent_cse=unrolled, policy=policy)


def blocks_per_step(execution: config.Execution, length: int) -> int:
  """Blocks in one step of a loop over so many; all of them leave no loop.

  For `unroll` = 0 what is best where gradients are wanted, see `for_sampling` for others: none on a
  GPU, which writes whatever the backward pass needs to a loop's stack and reads it back: 1.9 times
  the bytes.
  """
  on_gpu = (execution.platform or jax.default_backend()) == 'gpu'
  return min(execution.unroll or (length if on_gpu else 1), length)


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
  """x [..., D] times w [D, E]; a gradient towards w is float32 until it is summed.

  All rows are taken at once: with more than one axis before the last XLA copies one side transposed
  for the gradient dL/dw = x^T dL/dy (without this 1.13 of the time on a CPU). JAX would make that
  gradient in the dtype of w, in which the compiler adds the parts of the devices that hold the
  examples: in bfloat16, each part rounded before the sum. On one device that costs 0.7 % of the
  bytes.
  """
  rows = x.reshape(-1, x.shape[-1])
  if jnp.finfo(w.dtype).bits < 32:
    out = _narrow_matmul(rows, w)
  elif w.shape[0] > w.shape[1]:
    out = jax.lax.dot_general(rows, transpose_for_cpu_grad(w), (((1,), (1,)), ((), ())))
  elif w.shape[0] < w.shape[1] and w.shape[1] % _CACHE_STRIDE == 0:
    out = _wide_matmul(rows, w)
  else:
    out = rows @ w
  return out.reshape(*x.shape[:-1], w.shape[-1])


def joined(w: jax.Array, axes: int) -> jax.Array:
  """w [..., K, E] -> [..., KE], for a product as one matrix; as it is where one axis comes out.

  Where 'tensor' splits E, each device's part of all K comes first, then the next one's: so the
  matrix is split along E as w is, and what a device holds stays where it lies.
  """
  if axes == 1:
    return w
  *rest, k, e = w.shape
  parts = sharding.axis_size('tensor', of=e)
  w = w.reshape(*rest, k, parts, e // parts)
  return w.swapaxes(-3, -2).reshape(*rest, k * e)


def parted(y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """y [..., KE] -> [..., K, E], the inverse of `joined`."""
  if len(shape) == 1:
    return y
  k, e = shape
  parts = sharding.axis_size('tensor', of=e)
  y = y.reshape(*y.shape[:-1], parts, k, e // parts)
  return y.swapaxes(-3, -2).reshape(*y.shape[:-3], k, e)


def apart_from_loop(b: jax.Array) -> jax.Array:
  """b [K, E], which a CPU takes out of the loop's stack before it is used.

  Read from there by two parts of one fusion it keeps XLA:CPU from making vectors of that fusion's
  loop, whose exponential then takes five times as long (SwiGLU after a bias from the stack). What
  stands for a copy is a sum with one part that is not zero: copies and barriers XLA takes away.
  """
  own = jnp.eye(len(b), dtype=bool)[..., None]
  through = lambda b: jnp.sum(jnp.where(own, b, jnp.zeros((), b.dtype)), axis=1)
  return jax.lax.platform_dependent(b, cpu=through, default=lambda b: b)


def taken_apart(y: jax.Array) -> list[jax.Array]:
  """y [..., K, E] -> K times [..., E].

  As parts of one axis, whose gradient is a concatenation, where no devices share E: XLA:CPU makes
  no vectors of a loop that divides its index or asks at each place which part it is in.
  """
  *rest, k, e = y.shape
  if sharding.axis_size('tensor', of=e) > 1:
    return [jnp.squeeze(part, -2) for part in jnp.split(y, k, axis=-2)]
  return jnp.split(y.reshape(*rest, k * e), k, axis=-1)


@jax.custom_jvp
def transpose_for_cpu_grad(x):
  """x [..., D, E] -> [..., E, D], whose gradient a CPU computes like that and turns back.

  Of a product with a tall x, XLA:CPU computes the gradient [D, E] in up to a third more time than
  its transpose, and left alone it replaces the latter by the former: 1.05 of the step's time.
  """
  return x.swapaxes(-1, -2)


@transpose_for_cpu_grad.defjvp
def _transpose_jvp(primals, tangents):
  swapped = tangents[0].swapaxes(-1, -2)
  keep, leave = jax.lax.optimization_barrier, lambda x: x
  y_dot = jax.lax.platform_dependent(swapped, cpu=keep, default=leave)
  return transpose_for_cpu_grad(*primals), y_dot


@jax.custom_jvp
def _wide_matmul(x, w):
  """x [N, D] @ w [D, E], whose gradient towards w a CPU computes from x turned beforehand.

  Where rows of dL/dy share lines of the cache, XLA:CPU takes 1.3 (E = 1,536) to 1.8 times (2,048)
  as long when it turns x within the product: fc1 of S, and the first half of its SwiGLU.
  """
  return x @ w


def _wide_matmul_jvp(primals, tangents):
  (x, w), (x_dot, w_dot) = primals, tangents
  moved = []
  if not _is_zero(x_dot):
    moved.append(_wide_matmul(x_dot, w))
  if not _is_zero(w_dot):
    keep, leave = jax.lax.optimization_barrier, lambda x: x
    x_DN = jax.lax.platform_dependent(x.T, cpu=keep, default=leave)
    moved.append(jax.lax.dot_general(x_DN, w_dot, (((0,), (0,)), ((), ()))))
  y = _wide_matmul(x, w)
  return y, sum(moved[1:], start=moved[0]) if moved else jnp.zeros_like(y)


_wide_matmul.defjvp(_wide_matmul_jvp, symbolic_zeros=True)


@jax.custom_jvp
def _narrow_matmul(x, w):
  return x @ w


def _narrow_matmul_jvp(primals, tangents):
  """A rule for JVPs, so that MeanFlow can differentiate both ways."""
  (x, w), (x_dot, w_dot) = primals, tangents
  moved = []
  if not _is_zero(x_dot):
    moved.append(_narrow_matmul(x_dot, w))
  if not _is_zero(w_dot):  # Without it x may have a tangent itself, which `linear_call` refuses.
    moved.append(jax.custom_derivatives.linear_call(_narrow_matmul, _kernel_gradient, x, w_dot))
  y = _narrow_matmul(x, w)
  return y, sum(moved[1:], start=moved[0]) if moved else jnp.zeros_like(y)


_narrow_matmul.defjvp(_narrow_matmul_jvp, symbolic_zeros=True)


def _kernel_gradient(x, g):
  """x^T g, in float32 until the devices' parts are added."""
  contracted = ((0,), (0,)), ((), ())
  summed = jax.lax.dot_general(x, g, contracted, preferred_element_type=jnp.float32)
  return _rounded(summed, x.dtype).astype(x.dtype)


def _rounded(x, dtype):
  """x with the bits of a dtype, in its own.

  Before a cast to that dtype it is the same rounding twice. The compiler for TPUs moves the cast up
  through the sum over devices, which it then makes in bfloat16, but not this (libtpu 0.0.52).
  """
  found = jnp.finfo(dtype)
  return jax.lax.reduce_precision(x, found.nexp, found.nmant)


def _is_zero(tangent):
  return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


@jax.custom_jvp
def add_bias(y: jax.Array, b: jax.Array) -> jax.Array:
  """y [..., E] + b [E], in their dtype; the gradient of b is summed in float32 at least.

  JAX would sum all rows in bfloat16, whose 8 bits lose all but the largest. As an addition in
  float32 it would cost: cuBLAS adds no bias then (679 instead of 667 GB).
  """
  return y + jnp.broadcast_to(b, y.shape)


@add_bias.defjvp
def _add_bias_jvp(primals, tangents):
  (y, b), (y_dot, b_dot) = primals, tangents
  if jnp.finfo(b.dtype).bits < 32:  # Transposed: the gradient is summed in float32, then rounded.
    b_dot = _rounded(b_dot.astype(jnp.float32), b.dtype)
  return add_bias(y, b), y_dot + jnp.broadcast_to(b_dot, y.shape).astype(y.dtype)


def cast_products(network: nnx.Module) -> nnx.Module:
  """The network with the parameters of products in the dtype that these compute in.

  A linear layer casts its parameters at every use, which is the same arithmetic; a caller that uses
  them in every step of a sampler, or of a scan, casts them once. Gradients towards the parameters
  before the cast are in their own dtype, float32.
  """
  dtypes = {
    '/'.join(map(str, path)): module.dtype
    for path, module in nnx.iter_modules(network)
    if isinstance(module, nnx.Linear) and module.dtype is not None
  }

  def cast(path, leaf):
    layer, _, _ = trees.path_name(path).rpartition('/')
    return leaf.astype(dtypes[layer]) if layer in dtypes else leaf

  return jax.tree_util.tree_map_with_path(cast, network) if dtypes else network


def for_sampling(network: nnx.Module) -> nnx.Module:
  """The network with its products cast, and its blocks in a loop if the config leaves that open.

  What a GPU gains without a loop it gains in the backward pass; a sampler compiles in a seventh of
  the time with one (benchmarks/NOTES.md).
  """
  copy = jax.tree.map(lambda leaf: leaf, cast_products(network))
  for _, module in nnx.iter_modules(copy):
    if hasattr(module, 'execution') and not module.execution.unroll:
      module.execution = dataclasses.replace(module.execution, unroll=1)
  return copy
