"""Scaled dot-product attention with a choice of implementation, probed before it is trusted.

`jax.nn.dot_product_attention` never picks cuDNN by itself, and cuDNN refuses some shapes and has
failed on some driver stacks; nor is a fused kernel always the faster one. So 'auto' runs and times
what there is once, forward and backward, at the true shape. A name may end in '@d': heads are
padded with zeros to d values, which changes nothing but the speed. For a machine that is not here
nothing can be tried: 'auto' is then the first implementation that nothing is known against.
"""

from collections.abc import Callable
from concurrent import futures
import dataclasses
import functools
import time
from typing import Any, NamedTuple

from absl import logging
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np

from diversedit_jax import sharding, trees, types
from diversedit_jax.models import config, tuning

_FLASH_BLOCK = 128
_PROBED_TOKENS = 8192  # Enough to keep a device busy.
_PROBED_CALLS, _PROBED_ROUNDS = 10, 3


Attend = Callable[[jax.Array, jax.Array, jax.Array, str], jax.Array]
"""As `attend`: (q, k, v [N, T, H, d], implementation) -> [N, T, H, d]."""


def attend(
  q_NTHd: jax.Array, k_NTHd: jax.Array, v_NTHd: jax.Array, implementation: str
) -> jax.Array:
  """softmax(q k / sqrt(d)) v per head, the softmax in float32 at least."""
  name, _, padded = implementation.partition('@')
  d = q_NTHd.shape[-1]
  width = [(0, 0)] * 3 + [(0, int(padded or d) - d)]
  qkv = [checkpoint_name(jnp.pad(x, width), tuning.QKV) for x in (q_NTHd, k_NTHd, v_NTHd)]
  out_NTHd = _KERNELS[name](*qkv, d**-0.5)[..., :d]
  return checkpoint_name(out_NTHd, tuning.ATTENTION)


def _xla(q_NTHd, k_NTHd, v_NTHd, scale):
  # With `jax.nn.dot_product_attention` a step takes 1.06 of the time on a CPU (see `tuning`).
  # Heads before tokens at once: otherwise XLA copies for every product, and some of them twice.
  q_NHTd, k_NHTd, v_NHTd = (
    checkpoint_name(x.swapaxes(1, 2), tuning.QKV) for x in (q_NTHd, k_NTHd, v_NTHd)
  )
  wide = jnp.promote_types(q_NTHd.dtype, jnp.float32)
  k_NHdT = tuning.transpose_for_cpu_grad(k_NHTd)
  logits_NHTT = jnp.einsum('nhqd,nhdk->nhqk', q_NHTd, k_NHdT, preferred_element_type=wide)
  highest_NHT1 = jax.lax.stop_gradient(jnp.max(logits_NHTT, axis=-1, keepdims=True))
  # Their sum divides the product with v, not the T x T weights, of which one copy then is enough.
  weights_NHTT = jnp.exp((logits_NHTT - highest_NHT1) * scale)
  sum_NHT = checkpoint_name(jnp.sum(weights_NHTT, axis=-1), tuning.SOFTMAX)
  out_NHTd = jnp.einsum(
    'nhqk,nhkd->nhqd', weights_NHTT.astype(v_NTHd.dtype), v_NHTd, preferred_element_type=wide
  )
  out_NHTd = checkpoint_name(out_NHTd, tuning.SOFTMAX)
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


def implementation(architecture: config.Architecture, execution: config.Execution) -> str:
  """The attention to use, a name for `attend`; an 'auto' is decided once for each shape.

  'auto' is the fastest that passes its probe, and says so; a failed probe is a warning. On a CPU it
  is 'xla' unprobed. Where several processes run one program the first decides for all.

  Raises:
    UserError: for one asked for by name that cannot run (with the reason).
  """
  return _decided(execution.attention, _shape(architecture, execution), execution.platform)


def chosen(
  architecture: config.Architecture, execution: config.Execution, remembered: str = ''
) -> config.Execution:
  """The execution with its attention decided, see `implementation`.

  remembered: what an 'auto' was before, for a run that goes on: another kernel rounds otherwise. It
    is taken again without a comparison if it can run here, and the first process' word counts.
  """
  name = execution.attention
  if name == 'auto':
    name = _decided(name, _shape(architecture, execution), execution.platform, remembered)
  return dataclasses.replace(execution, attention=name)


def for_tokens(name: str, tokens: int) -> str:
  """An implementation chosen for another number of tokens, or 'xla' where it cannot run."""
  return 'xla' if name == 'flash' and tokens % _FLASH_BLOCK else name


def fitting(architecture: config.Architecture, execution: config.Execution) -> config.Execution:
  """The execution for a further stack of blocks, with other heads than those it was chosen for.

  A padding that is too narrow is left out, and what cannot run there is 'xla'.
  """
  name, _, padded = execution.attention.partition('@')
  shape = _shape(architecture, execution)
  if not padded or int(padded) >= shape.head_dim:
    name = execution.attention
  platform = execution.platform or jax.default_backend()
  if name not in ('auto', 'xla') and mismatch(name, shape, platform):
    name = 'xla'
  return dataclasses.replace(execution, attention=name)


def check(architecture: config.Architecture, execution: config.Execution) -> None:
  """Refuses attention asked for by name that is known not to run; probes nothing.

  Raises:
    UserError: with the reason.
  """
  name, platform = execution.attention, execution.platform or jax.default_backend()
  if name in ('auto', 'xla'):
    return
  if reason := mismatch(name, _shape(architecture, execution), platform):
    where = 'there' if execution.platform else 'here'
    raise types.UserError(f'attention={name} cannot run {where}: {reason}')


class _Shape(NamedTuple):
  """Shape and compute dtype of one layer."""

  tokens: int
  heads: int
  head_dim: int
  dtype: str


def _shape(architecture, execution):
  head_dim = architecture.width // architecture.heads
  return _Shape(
    architecture.sequence + architecture.context_tokens,
    architecture.heads,
    head_dim,
    execution.dtype,
  )


@functools.cache
def _decided(name, shape, platform, remembered=''):
  """See `implementation`. platform: of a machine that is not here; '' is this one."""
  if name == 'xla':
    return 'xla'
  if platform:
    return _unprobed(name, shape, platform)
  backend = jax.default_backend()
  if name == 'auto':
    tried = candidates(shape.head_dim, backend)
    return _agreed(lambda: _again(remembered, tried, shape)) if tried else 'xla'
  if reason := mismatch(name, shape, backend):
    raise types.UserError(f'attention={name} cannot run here: {reason}')
  reasons = []  # Filled on the first process only.
  if _agreed(lambda: _unless_faulty(name, shape, reasons)) != name:
    reason = reasons[0] if reasons else 'see the message of the first process'
    raise types.UserError(f'attention={name} cannot run here: {reason}')
  return name


def _agreed(decide: Callable[[], str]) -> str:
  """What the first process decides; the others wait for it and decide nothing."""
  if jax.process_count() == 1:
    return _apart(decide)
  mine = config.ATTENTIONS.index(_apart(decide)) if jax.process_index() == 0 else 0
  return config.ATTENTIONS[int(_apart(lambda: _from_first(mine)))]


def _from_first(number):
  return multihost_utils.broadcast_one_to_all(np.int32(number))


def _apart(function: Callable[[], Any]) -> Any:
  """Calls a function in a thread of its own, which has neither the caller's mesh nor its trace."""
  with futures.ThreadPoolExecutor(1) as pool:
    return pool.submit(function).result()


def _again(remembered, tried, shape):
  """What is remembered, if it is a kernel that can run here, or the fastest."""
  if remembered == 'xla':
    return remembered
  if not remembered:
    return _fastest(tried, shape)
  reason = _fault(remembered, shape) if remembered in tried else 'it is not known here'
  if reason is None:
    return remembered
  logging.warning('attention: %s, which was used before, cannot run: %s', remembered, reason)
  return _fastest(tried, shape)


def _fastest(tried, shape):
  """The fastest of some and 'xla', by running them here."""
  faults = {name: _fault(name, shape) for name in tried}
  for name, reason in faults.items():
    if reason:
      logging.warning('attention: %s cannot run here: %s', name, reason)
  if all(faults.values()):
    logging.warning('attention: FALLING BACK TO XLA')
    return 'xla'
  running = [name for name, reason in faults.items() if not reason]
  seconds = {name: _seconds(name, shape) for name in (*running, 'xla')}
  best = min(seconds, key=seconds.get)
  times = ', '.join(f'{name} {1e3 * s:.3g} ms' for name, s in seconds.items())
  logging.info('attention: %s for T=%d, heads=%d, head_dim=%d, %s (%s)', best, *shape, times)
  return best


def _unless_faulty(name, shape, reasons):
  """The name, or 'xla' and the reason why it cannot run."""
  reasons += filter(None, [_fault(name, shape)])
  return 'xla' if reasons else name


def candidates(head_dim: int, platform: str) -> list[str]:
  """What 'auto' tries before 'xla'; heads of 64 and 128 need no padding."""
  if platform == 'tpu':
    return ['flash']
  if platform != 'gpu':
    return []
  padded = [f'cudnn@{d}' for d in config.PADDED_HEADS if d > head_dim and head_dim % 64]
  return ['cudnn', *padded]


def _unprobed(name, shape, platform):
  """What a machine that is not here would use: the one asked for, or the first that may run."""
  against = lambda name: mismatch(name, shape, platform)
  if name == 'auto':
    return next((n for n in candidates(shape.head_dim, platform) if against(n) is None), 'xla')
  if reason := against(name):
    raise types.UserError(f'attention={name} cannot run there: {reason}')
  return name


def mismatch(name: str, shape: _Shape, platform: str) -> str | None:
  """What is known without a probe against an implementation on a platform; None if nothing is."""
  kind, _, padded = name.partition('@')
  needed, device = _PLATFORMS[kind]
  tokens, _, head_dim, dtype = shape
  if platform != needed:
    return f'it needs {device}, and the backend is {platform}'
  if kind == 'flash' and tokens % _FLASH_BLOCK:
    return f'its blocks are of {_FLASH_BLOCK} tokens, which do not divide {tokens}'
  if kind == 'cudnn' and dtype not in ('bfloat16', 'float16'):
    return f'it computes in bfloat16 or float16, and the compute dtype is {dtype}'
  if padded and int(padded) < head_dim:
    return f'a head has {head_dim} values, which is more than {padded}'
  if kind == 'cudnn' and not padded and head_dim % 8:
    return f'it needs a head dimension divisible by 8, and it is {head_dim}'
  return None


@functools.cache
def _fault(name, shape):
  """Why an implementation cannot be used here; None if it ran forward and backward."""
  if reason := mismatch(name, shape, jax.default_backend()):
    return reason
  try:
    if not trees.all_finite(_probe(name, 2, shape)()):
      return 'its gradient was not finite in the probe'
  except Exception as error:  # Whatever the kernel library raises, the answer is the same.
    return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
  return None


def _probe(name, examples, shape):
  """A compiled forward and backward pass, as a function without arguments."""

  def objective(q, k, v):
    return jnp.sum(jnp.square(attend(q, k, v, name).astype(jnp.float32)))

  keys = [jax.random.fold_in(jax.random.key(0), i) for i in range(3)]
  qkv = [jax.random.normal(key, (examples, *shape[:3])).astype(shape.dtype) for key in keys]
  compiled = jax.jit(jax.grad(objective, argnums=(0, 1, 2))).lower(*qkv).compile()
  return lambda: compiled(*qkv)


def _seconds(name, shape):
  """Seconds of one forward and backward pass, the best of a few rounds."""
  examples = max(2, _PROBED_TOKENS // shape.tokens)
  run, rounds = _probe(name, examples, shape), []
  jax.block_until_ready(run())
  for _ in range(_PROBED_ROUNDS):
    started = time.perf_counter()
    jax.block_until_ready([run() for _ in range(_PROBED_CALLS)])
    rounds.append((time.perf_counter() - started) / _PROBED_CALLS)
  return min(rounds)
