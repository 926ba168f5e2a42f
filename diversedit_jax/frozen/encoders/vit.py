"""A plain vision transformer as pure functions of a dict of parameters (arXiv 2010.11929).

One block, with LayerScale (arXiv 2103.17239) where the model has it:

  x <- x + scale1 * Attention(LN(x));  x <- x + scale2 * MLP(LN(x))

A class token, if there is one, and after it registers (arXiv 2309.16588) precede the patches;
registers have no position. Blocks are stacked along a leading axis and scanned. Matrices are kept
in the compute dtype, for they are used in no other; norms, softmax and the residual stream stay in
float32.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from diversedit_jax.models import attention, embed
from diversedit_jax.models import block as block_lib
from diversedit_jax.weights import array_files

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
  """Sizes and parts of a transformer; the defaults are DINOv2's.

  hidden: width inside the MLP.
  mlp: 'gelu' (erf), 'quick_gelu', x sigmoid(1.702 x), or 'swiglu', silu(a) * b of two halves.
  class_token: whether there is one. registers: tokens between it and the patches.
  table: rows, which are also columns, of the position table as published.
  layer_scale: whether blocks have LayerScale. patch_bias: whether the embedding of patches has one.
  first_norm: whether tokens are normalised before the first block.
  last_norm: whether tokens are normalised after the last block.
  epsilon: of all norms.
  """

  width: int
  depth: int
  heads: int
  hidden: int
  patch_size: int = 14
  channels: int = 3
  mlp: Literal['gelu', 'quick_gelu', 'swiglu'] = 'gelu'
  class_token: bool = True
  registers: int = 0
  table: int = 37
  layer_scale: bool = True
  patch_bias: bool = True
  first_norm: bool = False
  last_norm: bool = True
  epsilon: float = block_lib.NORM_EPSILON

  @property
  def prefix(self) -> int:
    """Tokens before the patches."""
    return self.class_token + self.registers


def flat_shapes(config: ViTConfig, grid: tuple[int, int]) -> dict[str, tuple[int, ...]]:
  """Shapes of all parameters by slash-joined name; `blocks/` have a leading axis L.

  A kernel is [in, out], that of the patches [P, P, C, D]. grid: of the position table.
  """
  d, hidden, p = config.width, config.hidden, config.patch_size
  opening = 2 * hidden if config.mlp == 'swiglu' else hidden
  block = {
    'norm1/scale': (d,),
    'norm1/bias': (d,),
    'qkv/kernel': (d, 3 * d),
    'qkv/bias': (3 * d,),
    'proj/kernel': (d, d),
    'proj/bias': (d,),
    'norm2/scale': (d,),
    'norm2/bias': (d,),
    'fc1/kernel': (d, opening),
    'fc1/bias': (opening,),
    'fc2/kernel': (hidden, d),
    'fc2/bias': (d,),
  }
  if config.layer_scale:
    block |= {'scale1': (d,), 'scale2': (d,)}
  shapes = {
    'patches/kernel': (p, p, config.channels, d),
    'positions': (config.class_token + grid[0] * grid[1], d),
    **{f'blocks/{name}': (config.depth, *shape) for name, shape in block.items()},
  }
  if config.patch_bias:
    shapes['patches/bias'] = (d,)
  if config.class_token:
    shapes['class_token'] = (d,)
  if config.registers:
    shapes['registers'] = (config.registers, d)
  for name, present in (('first_norm', config.first_norm), ('norm', config.last_norm)):
    if present:
      shapes |= {f'{name}/scale': (d,), f'{name}/bias': (d,)}
  return shapes


def dtype_of(name: str, dtype: str) -> jnp.dtype:
  """Of the parameter with that name: the compute dtype for matrices, float32 for the rest."""
  return jnp.dtype(dtype if name.endswith('/kernel') else 'float32')


def params_shapes(config: ViTConfig, grid: tuple[int, int], dtype: str) -> Params:
  """The parameters as jax.ShapeDtypeStruct."""
  flat = flat_shapes(config, grid)
  return array_files.unflatten(
    {name: jax.ShapeDtypeStruct(shape, dtype_of(name, dtype)) for name, shape in flat.items()}
  )


def encode(params: Params, x_NHWC: jax.Array, config: ViTConfig) -> jax.Array:
  """Normalised pixels -> all tokens at the end, [N, prefix + T, D] float32."""
  x_NTD = embed_tokens(params, x_NHWC, config)
  x_NTD, _ = jax.lax.scan(lambda x, p: (block(p, x, config), None), x_NTD, params['blocks'])
  return _norm(x_NTD, params['norm'], config) if config.last_norm else x_NTD


def embed_tokens(params: Params, x_NHWC: jax.Array, config: ViTConfig) -> jax.Array:
  """Tokens that enter the first block: class token, registers, patches in row-major order."""
  flat = {**params['patches'], 'kernel': params['patches']['kernel'].reshape(-1, config.width)}
  x_NTD = _linear(embed.patchify(x_NHWC, config.patch_size), flat)
  n, first = len(x_NTD), int(config.class_token)
  front = lambda rows: jnp.broadcast_to(rows[None], (n, *rows.shape)).astype(x_NTD.dtype)
  if config.class_token:
    x_NTD = jnp.concatenate([front(params['class_token'][None]), x_NTD], axis=1)
  x_NTD = x_NTD + params['positions'][None]
  if config.registers:
    parts = [x_NTD[:, :first], front(params['registers']), x_NTD[:, first:]]
    x_NTD = jnp.concatenate(parts, axis=1)
  return _norm(x_NTD, params['first_norm'], config) if config.first_norm else x_NTD


def block(p: Params, x_NTD: jax.Array, config: ViTConfig) -> jax.Array:
  """One block; p: its own parameters, without the leading axis."""
  n, t, d = x_NTD.shape
  dtype = p['qkv']['kernel'].dtype
  h = _linear(_norm(x_NTD, p['norm1'], config), p['qkv']).astype(dtype)
  q, k, v = jnp.moveaxis(h.reshape(n, t, 3, config.heads, d // config.heads), 2, 0)
  h = _linear(attention.attend(q, k, v, 'xla').reshape(n, t, d), p['proj'])
  x_NTD = x_NTD + (p['scale1'][None, None] * h if config.layer_scale else h)
  h = _linear(_norm(x_NTD, p['norm2'], config), p['fc1'])
  if config.mlp == 'swiglu':
    gate, value = jnp.split(h, 2, axis=-1)
    h = jax.nn.silu(gate) * value
  elif config.mlp == 'quick_gelu':
    h = h * jax.nn.sigmoid(1.702 * h)
  else:
    h = jax.nn.gelu(h, approximate=False)
  h = _linear(h, p['fc2'])
  return x_NTD + (p['scale2'][None, None] * h if config.layer_scale else h)


def flops(config: ViTConfig, grid: tuple[int, int]) -> float:
  """FLOPs of the matrix products for one image, a multiply-add being 2."""
  d, hidden, patches = config.width, config.hidden, grid[0] * grid[1]
  t = config.prefix + patches
  mlp = (3 if config.mlp == 'swiglu' else 2) * d * hidden
  blocks = config.depth * (2 * t * (4 * d * d + mlp) + 4 * t * t * d)
  return float(2 * patches * config.patch_size**2 * config.channels * d + blocks)


def _linear(x: jax.Array, p: Params) -> jax.Array:
  """x @ kernel, + bias if any; multiplied in the kernel's dtype, summed in float32 at least."""
  kernel = p['kernel']
  wide = jnp.promote_types(kernel.dtype, jnp.float32)
  y = jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=wide)
  return y + p['bias'].reshape((1,) * (y.ndim - 1) + (-1,)) if 'bias' in p else y


def _norm(x_NTD: jax.Array, p: Params, config: ViTConfig) -> jax.Array:
  x_NTD = block_lib.normalise(x_NTD, config.epsilon)
  return x_NTD * p['scale'][None, None] + p['bias'][None, None]
