"""Scaled dot-product attention with a choice of kernel, probed before it is trusted.

`jax.nn.dot_product_attention` never picks cuDNN by itself, and cuDNN refuses some shapes and has
failed on some driver stacks; so 'auto' compiles and runs it once, forward and backward, at the true
shape.
"""

import functools

from absl import logging
import jax
import jax.numpy as jnp

from diversedit_jax import trees, types

IMPLEMENTATIONS = ('auto', 'xla', 'cudnn')


def attend(
  q_NTHd: jax.Array, k_NTHd: jax.Array, v_NTHd: jax.Array, implementation: str
) -> jax.Array:
  """softmax(q k / sqrt(d)) v per head, the softmax in float32 at least."""
  if implementation == 'xla':
    return _xla(q_NTHd, k_NTHd, v_NTHd)
  return jax.nn.dot_product_attention(q_NTHd, k_NTHd, v_NTHd, implementation=implementation)


def _xla(q_NTHd: jax.Array, k_NTHd: jax.Array, v_NTHd: jax.Array) -> jax.Array:
  # The sum divides the product with v, not the T x T weights, of which one copy then is enough.
  wide = jnp.promote_types(q_NTHd.dtype, jnp.float32)
  logits_NHTT = jnp.einsum('nqhd,nkhd->nhqk', q_NTHd, k_NTHd, preferred_element_type=wide)
  highest_NHT1 = jax.lax.stop_gradient(jnp.max(logits_NHTT, axis=-1, keepdims=True))
  weights_NHTT = jnp.exp((logits_NHTT - highest_NHT1) * q_NTHd.shape[-1] ** -0.5)
  sum_NTH = jnp.sum(weights_NHTT, axis=-1).swapaxes(1, 2)
  out_NTHd = jnp.einsum(
    'nhqk,nkhd->nqhd', weights_NHTT.astype(v_NTHd.dtype), v_NTHd, preferred_element_type=wide
  )
  return (out_NTHd / sum_NTH[..., None]).astype(q_NTHd.dtype)


@functools.cache
def choose(implementation: str, tokens: int, heads: int, head_dim: int, dtype: str) -> str:
  """The kernel to use, 'xla' or 'cudnn', for one layer's shape and compute dtype.

  'auto' is 'xla' except on a GPU where cuDNN passes its probe; a failed probe is a warning.

  Raises:
    UserError: for an unknown name, or 'cudnn' where it cannot run (with the reason).
  """
  if implementation not in IMPLEMENTATIONS:
    hint = trees.did_you_mean(implementation, IMPLEMENTATIONS)
    raise types.UserError(f'unknown attention implementation {implementation!r}{hint}')
  if implementation == 'xla' or (implementation == 'auto' and jax.default_backend() != 'gpu'):
    return 'xla'
  reason = cudnn_fault(tokens, heads, head_dim, dtype)
  if reason is None:
    logging.info(
      'attention: cuDNN (T=%d, heads=%d, head_dim=%d, %s)', tokens, heads, head_dim, dtype
    )
    return 'cudnn'
  if implementation == 'cudnn':
    raise types.UserError(f'attention=cudnn cannot run here: {reason}')
  logging.warning('attention: FALLING BACK TO XLA, cuDNN cannot run here: %s', reason)
  return 'xla'


def cudnn_fault(tokens: int, heads: int, head_dim: int, dtype: str) -> str | None:
  """Why cuDNN attention cannot be used at this shape; None if it ran forward and backward."""
  if jax.default_backend() != 'gpu':
    return f'it needs an NVIDIA GPU, and the backend is {jax.default_backend()}'
  if dtype not in ('bfloat16', 'float16'):
    return f'it computes in bfloat16 or float16, and the compute dtype is {dtype}'
  if head_dim % 8:
    return f'it needs a head dimension divisible by 8, and it is {head_dim}'

  def objective(q, k, v):
    return jnp.sum(jnp.square(attend(q, k, v, 'cudnn').astype(jnp.float32)))

  try:
    with jax.ensure_compile_time_eval():  # The probe runs even while a model is being traced.
      key = jax.random.key(0)
      qkv = [
        jax.random.normal(jax.random.fold_in(key, i), (2, tokens, heads, head_dim)).astype(dtype)
        for i in range(3)
      ]
      grads = jax.jit(jax.grad(objective, argnums=(0, 1, 2)))(*qkv)
      if not bool(trees.all_finite(grads)):
        return 'its gradient was not finite in the probe'
  except Exception as error:  # Whatever the kernel library raises, the answer is the same.
    return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
  return None
