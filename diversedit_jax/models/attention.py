"""Scaled dot-product attention with a choice of kernel, probed before it is trusted.

`jax.nn.dot_product_attention` never picks cuDNN by itself, and cuDNN refuses some shapes and has
failed on some driver stacks; nor is a fused kernel always the faster one. So 'auto' runs and times
what there is once, forward and backward, at the true shape. A name may end in '@d': heads are
padded with zeros to d values, which changes nothing but the speed. For a machine that is not here
nothing can be tried: 'auto' is then the first kernel that nothing is known against.
"""

from collections.abc import Callable
import functools
import time

from absl import logging
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from diversedit_jax import sharding, trees, types
from diversedit_jax.models import products

PADDED = (80, 96, 128)
IMPLEMENTATIONS = ('auto', 'xla', 'cudnn', *(f'cudnn@{d}' for d in PADDED), 'flash')
"""'flash' is JAX's Pallas kernel for TPU."""

_FLASH_BLOCK = 128
_PROBED_TOKENS = 8192  # Enough to keep a device busy.
_PROBED_CALLS, _PROBED_ROUNDS = 10, 3


def attend(
  q_NTHd: jax.Array, k_NTHd: jax.Array, v_NTHd: jax.Array, implementation: str
) -> jax.Array:
  """softmax(q k / sqrt(d)) v per head, the softmax in float32 at least."""
  name, _, padded = implementation.partition('@')
  d = q_NTHd.shape[-1]
  kernel, scale = _KERNELS[name], d**-0.5
  if not padded:
    return kernel(q_NTHd, k_NTHd, v_NTHd, scale)
  width = [(0, 0)] * 3 + [(0, int(padded) - d)]
  return kernel(*(jnp.pad(x, width) for x in (q_NTHd, k_NTHd, v_NTHd)), scale)[..., :d]


def _xla(q_NTHd, k_NTHd, v_NTHd, scale):
  # Heads before tokens at once: otherwise XLA copies for every product, and some of them twice.
  q_NHTd, k_NHTd, v_NHTd = (x.swapaxes(1, 2) for x in (q_NTHd, k_NTHd, v_NTHd))
  wide = jnp.promote_types(q_NTHd.dtype, jnp.float32)
  k_NHdT = products.turned(k_NHTd)
  logits_NHTT = jnp.einsum('nhqd,nhdk->nhqk', q_NHTd, k_NHdT, preferred_element_type=wide)
  highest_NHT1 = jax.lax.stop_gradient(jnp.max(logits_NHTT, axis=-1, keepdims=True))
  # Their sum divides the product with v, not the T x T weights, of which one copy then is enough.
  weights_NHTT = jnp.exp((logits_NHTT - highest_NHT1) * scale)
  sum_NHT = jnp.sum(weights_NHTT, axis=-1)
  out_NHTd = jnp.einsum(
    'nhqk,nhkd->nhqd', weights_NHTT.astype(v_NTHd.dtype), v_NHTd, preferred_element_type=wide
  )
  return (out_NHTd / sum_NHT[..., None]).astype(q_NTHd.dtype).swapaxes(1, 2)


def _cudnn(q_NTHd, k_NTHd, v_NTHd, scale):
  return jax.nn.dot_product_attention(q_NTHd, k_NTHd, v_NTHd, scale=scale, implementation='cudnn')


def _flash(q_NTHd, k_NTHd, v_NTHd, scale):
  # Imported where it is used: it registers TPU kernels.
  from jax.experimental.pallas.ops.tpu import flash_attention

  def on_device(q_NTHd, k_NTHd, v_NTHd):
    q, k, v = (x.swapaxes(1, 2) for x in (q_NTHd, k_NTHd, v_NTHd))
    return flash_attention.flash_attention(q, k, v, sm_scale=scale).swapaxes(1, 2)

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return on_device(q_NTHd, k_NTHd, v_NTHd)
  # The compiler cannot split a kernel by itself: each device takes its examples and heads.
  spec = PartitionSpec(sharding.BATCH_AXES, None, 'tensor')
  split = jax.shard_map(on_device, in_specs=(spec,) * 3, out_specs=spec, check_vma=False)
  return split(q_NTHd, k_NTHd, v_NTHd)


_KERNELS: dict[str, Callable[..., jax.Array]] = {'xla': _xla, 'cudnn': _cudnn, 'flash': _flash}
_PLATFORMS = {'cudnn': ('gpu', 'an NVIDIA GPU'), 'flash': ('tpu', 'a TPU')}


@functools.cache
def choose(
  implementation: str, tokens: int, heads: int, head_dim: int, dtype: str, platform: str = ''
) -> str:
  """The kernel to use, a name for `attend`, for one layer's shape and compute dtype.

  'auto' is the fastest that passes its probe, and says so; a failed probe is a warning. On a CPU it
  is 'xla' unprobed. Several processes must agree on one program, and so do not time: they take the
  first kernel that runs.

  platform: 'gpu', 'tpu' or 'cpu' of a machine that is not here, for which nothing is probed.

  Raises:
    UserError: for an unknown name, or a kernel asked for that cannot run (with the reason).
  """
  if implementation not in IMPLEMENTATIONS:
    hint = trees.did_you_mean(implementation, IMPLEMENTATIONS)
    raise types.UserError(f'unknown attention implementation {implementation!r}{hint}')
  shape = (tokens, heads, head_dim, dtype)
  if implementation == 'xla':
    return 'xla'
  if platform:
    return _unprobed(implementation, *shape, platform)
  if implementation != 'auto':
    if reason := fault(implementation, *shape):
      raise types.UserError(f'attention={implementation} cannot run here: {reason}')
    return implementation

  seconds = {}
  tried = candidates(head_dim, jax.default_backend())
  for name in tried:
    if reason := fault(name, *shape):
      logging.warning('attention: %s cannot run here: %s', name, reason)
    elif jax.process_count() > 1:
      logging.info('attention: %s', name)
      return name
    else:
      seconds[name] = _seconds(name, *shape)
  if not seconds:
    if tried:
      logging.warning('attention: FALLING BACK TO XLA')
    return 'xla'
  seconds['xla'] = _seconds('xla', *shape)
  best = min(seconds, key=seconds.get)
  times = ', '.join(f'{name} {1e3 * s:.3g} ms' for name, s in seconds.items())
  logging.info('attention: %s for T=%d, heads=%d, head_dim=%d, %s (%s)', best, *shape, times)
  return best


def candidates(head_dim: int, platform: str) -> list[str]:
  """What 'auto' tries before 'xla'; heads of 64 and 128 need no padding."""
  if platform == 'tpu':
    return ['flash']
  if platform != 'gpu':
    return []
  padded = [f'cudnn@{d}' for d in PADDED if d > head_dim and head_dim % 64]
  return ['cudnn', *padded]


def _unprobed(implementation, tokens, heads, head_dim, dtype, platform):
  """The kernel of a machine that is not here: the one asked for, or the first that may run."""
  against = lambda name: mismatch(name, tokens, heads, head_dim, dtype, platform)
  if implementation == 'auto':
    return next((n for n in candidates(head_dim, platform) if against(n) is None), 'xla')
  if reason := against(implementation):
    raise types.UserError(f'attention={implementation} cannot run there: {reason}')
  return implementation


def mismatch(
  implementation: str, tokens: int, heads: int, head_dim: int, dtype: str, platform: str
) -> str | None:
  """What is known without a probe against a kernel on a platform; None if nothing is."""
  del heads
  name, _, padded = implementation.partition('@')
  needed, device = _PLATFORMS[name]
  if platform != needed:
    return f'it needs {device}, and the backend is {platform}'
  if name == 'flash' and tokens % _FLASH_BLOCK:
    return f'its blocks are of {_FLASH_BLOCK} tokens, which do not divide {tokens}'
  if name == 'cudnn' and dtype not in ('bfloat16', 'float16'):
    return f'it computes in bfloat16 or float16, and the compute dtype is {dtype}'
  if padded and int(padded) < head_dim:
    return f'a head has {head_dim} values, which is more than {padded}'
  if name == 'cudnn' and not padded and head_dim % 8:
    return f'it needs a head dimension divisible by 8, and it is {head_dim}'
  return None


def fault(implementation: str, tokens: int, heads: int, head_dim: int, dtype: str) -> str | None:
  """Why a kernel cannot be used here at this shape; None if it ran forward and backward."""
  shape = (tokens, heads, head_dim, dtype)
  if reason := mismatch(implementation, *shape, jax.default_backend()):
    return reason
  try:
    grads = _probe(implementation, 2, *shape)()
    with jax.ensure_compile_time_eval():  # Inside a trace there would be no answer otherwise.
      finite = bool(trees.all_finite(grads))
    if not finite:
      return 'its gradient was not finite in the probe'
  except Exception as error:  # Whatever the kernel library raises, the answer is the same.
    return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
  return None


def _probe(implementation, examples, tokens, heads, head_dim, dtype):
  """A compiled forward and backward pass, as a function without arguments."""

  def objective(q, k, v):
    return jnp.sum(jnp.square(attend(q, k, v, implementation).astype(jnp.float32)))

  with jax.ensure_compile_time_eval():  # It runs even while a model is being traced.
    shape = (examples, tokens, heads, head_dim)
    keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(3)]
    qkv = [jax.random.normal(key, shape).astype(dtype) for key in keys]
    compiled = jax.jit(jax.grad(objective, argnums=(0, 1, 2))).lower(*qkv).compile()
  return lambda: compiled(*qkv)


def _seconds(implementation, tokens, heads, head_dim, dtype):
  """Of one pass forward and backward, the least of some rounds."""
  examples = max(2, _PROBED_TOKENS // tokens)
  run, rounds = _probe(implementation, examples, tokens, heads, head_dim, dtype), []
  jax.block_until_ready(run())
  for _ in range(_PROBED_ROUNDS):
    started = time.perf_counter()
    jax.block_until_ready([run() for _ in range(_PROBED_CALLS)])
    rounds.append((time.perf_counter() - started) / _PROBED_CALLS)
  return min(rounds)
