"""A plain vision transformer as pure functions of a dict of parameters (arXiv 2010.11929).

One block, with LayerScale (arXiv 2103.17239) where the model has it:

  x <- x + scale1 * Attention(LN(x));  x <- x + scale2 * MLP(LN(x))

The patches come after a class token, if there is one, and registers (arXiv 2309.16588), which have
no position. A pooling head (arXiv 2106.04560, appendix B) makes one feature of all tokens f by a
learnt query:

  a = Attention(query, f);  pool = a + MLP(LN(a))                                     (1)

Blocks are stacked along a leading axis and scanned. Matrices are kept in the compute dtype; norms,
softmax and the residual stream stay in float32.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from diversedit_jax.models import attention, embed, norms, taps
from diversedit_jax.weights import array_files

Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
  """Sizes and parts of a transformer; the defaults are DINOv2's.

  hidden: width inside the MLP.
  mlp: 'gelu' (with erf), 'gelu_tanh' (its approximation), 'quick_gelu' (x sigmoid(1.702 x)) or
    'swiglu' (silu(a) b for two halves).
  class_token: whether there is a class token.
  registers: number of tokens between the class token and the patches.
  table: number of rows, and of columns, of the published position table.
  layer_scale: whether blocks have LayerScale.
  patch_bias: whether the embedding of patches has a bias.
  first_norm: whether tokens are normalised before the first block.
  last_norm: whether tokens are normalised after the last block.
  pooling: whether there is a pooling head (1).
  projection: width of a last product with the class token, see `projected`; 0 for none.
  epsilon: number that all norms add to the variance.
  """

  width: int
  depth: int
  heads: int
  hidden: int
  patch_size: int = 14
  channels: int = 3
  mlp: Literal['gelu', 'gelu_tanh', 'quick_gelu', 'swiglu'] = 'gelu'
  class_token: bool = True
  registers: int = 0
  table: int = 37
  layer_scale: bool = True
  patch_bias: bool = True
  first_norm: bool = False
  last_norm: bool = True
  pooling: bool = False
  projection: int = 0
  epsilon: float = norms.EPSILON

  @property
  def prefix(self) -> int:
    """Tokens before the patches."""
    return self.class_token + self.registers


def plain(width: int, depth: int, heads: int, **options: Any) -> ViTConfig:
  """The usual transformer: an MLP four times as wide, no LayerScale; options: further fields."""
  return ViTConfig(
    width=width, depth=depth, heads=heads, hidden=4 * width, layer_scale=False, **options
  )


def flat_shapes(config: ViTConfig, grid: tuple[int, int]) -> dict[str, tuple[int, ...]]:
  """Shapes of all parameters by slash-joined name, for a position table with a grid.

  Kernels are [in, out], the one of the patches is [P, P, C, D]. Parameters of `blocks/` have a
  leading axis L.
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
  if config.pooling:
    mlp = {name: block[name] for name in ('fc1/kernel', 'fc1/bias', 'fc2/kernel', 'fc2/bias')}
    head = {'query': (d,), 'norm/scale': (d,), 'norm/bias': (d,), **mlp}
    for name, width in (('q', d), ('kv', 2 * d), ('proj', d)):
      head |= {f'{name}/kernel': (d, width), f'{name}/bias': (width,)}
    shapes |= {f'pool/{name}': shape for name, shape in head.items()}
  if config.projection:
    shapes['projection'] = (d, config.projection)
  return shapes


def dtype_of(name: str, dtype: str) -> jnp.dtype:
  """The dtype of a parameter: the compute dtype for matrices, float32 for the rest."""
  return jnp.dtype(dtype if name.endswith('/kernel') else 'float32')


def params_shapes(config: ViTConfig, grid: tuple[int, int], dtype: str) -> Params:
  """The parameters as jax.ShapeDtypeStruct."""
  flat = flat_shapes(config, grid)
  return array_files.unflatten(
    {name: jax.ShapeDtypeStruct(shape, dtype_of(name, dtype)) for name, shape in flat.items()}
  )


def encode(params: Params, x_NHWC: jax.Array, config: ViTConfig) -> jax.Array:
  """Maps normalised pixels to all tokens at the end, [N, prefix + T, D] float32."""
  return encode_and_tap(params, x_NHWC, config, taps.nothing())[0]


def encode_and_tap(
  params: Params, x_NHWC: jax.Array, config: ViTConfig, tap: taps.Tap
) -> tuple[jax.Array, Any]:
  """What `encode` gives, and the features of a tap over the blocks."""
  one = taps.showing(lambda x, p, *, attend: block(p, x, config, attend), tap)

  def body(carry, xs):
    (x_NTD, kept), (p, i) = carry, xs
    x_NTD, *qk = one(x_NTD, p)
    kept, y = tap.step(kept, x_NTD, i, *qk)
    return (x_NTD, kept), y

  x_NTD, blocks = embed_tokens(params, x_NHWC, config), params['blocks']
  first = lambda x, attend: block(jax.tree.map(lambda leaf: leaf[0], blocks), x, config, attend)
  carry = x_NTD, taps.begun(tap, config.depth, first, x_NTD)
  (x_NTD, kept), ys = jax.lax.scan(body, carry, (blocks, jnp.arange(config.depth)))
  x_NTD = normalised(x_NTD, params['norm'], config) if config.last_norm else x_NTD
  return x_NTD, tap.finish(kept, ys)


def summarise(params: Params, f_NTD: jax.Array, config: ViTConfig) -> jax.Array | None:
  """The feature of the whole image, [N, D], of what `encode` gave; None without one."""
  if config.pooling:
    return pool(params['pool'], f_NTD, config)
  return f_NTD[:, 0] if config.class_token else None


def pool(p: Params, f_NTD: jax.Array, config: ViTConfig) -> jax.Array:
  """One feature of all tokens by the pooling head (1), [N, D]."""
  n, t, d = f_NTD.shape
  dtype, split = p['kv']['kernel'].dtype, (config.heads, d // config.heads)
  query_N1D = jnp.broadcast_to(p['query'][None, None], (n, 1, d))
  q = linear(query_N1D, p['q']).astype(dtype).reshape(n, 1, *split)
  kv = linear(f_NTD, p['kv']).astype(dtype).reshape(n, t, 2, *split)
  h = linear(attention.attend(q, kv[:, :, 0], kv[:, :, 1], 'xla').reshape(n, 1, d), p['proj'])
  return (h + _mlp(normalised(h, p['norm'], config), p, config))[:, 0]


def projected(params: Params, f_NTD: jax.Array) -> jax.Array:
  """The class token in the space that CLIP shares with texts, of length one, [N, E]."""
  z_NE = jnp.matmul(f_NTD[:, 0], params['projection'])
  return z_NE / jnp.linalg.norm(z_NE, axis=-1, keepdims=True)


def embed_tokens(params: Params, x_NHWC: jax.Array, config: ViTConfig) -> jax.Array:
  """Tokens that enter the first block: class token, registers, patches in row-major order."""
  flat = {**params['patches'], 'kernel': params['patches']['kernel'].reshape(-1, config.width)}
  x_NTD = linear(embed.patchify(x_NHWC, config.patch_size), flat)
  n, first = len(x_NTD), int(config.class_token)
  front = lambda rows: jnp.broadcast_to(rows[None], (n, *rows.shape)).astype(x_NTD.dtype)
  if config.class_token:
    x_NTD = jnp.concatenate([front(params['class_token'][None]), x_NTD], axis=1)
  x_NTD = x_NTD + params['positions'][None]
  if config.registers:
    parts = [x_NTD[:, :first], front(params['registers']), x_NTD[:, first:]]
    x_NTD = jnp.concatenate(parts, axis=1)
  return normalised(x_NTD, params['first_norm'], config) if config.first_norm else x_NTD


def block(
  p: Params,
  x_NTD: jax.Array,
  config: ViTConfig,
  attend: attention.Attend = attention.attend,
) -> jax.Array:
  """One block, with its own parameters p, without the leading axis.

  attend: what stands for `attention.attend`, see `taps.showing`.
  """
  n, t, d = x_NTD.shape
  dtype = p['qkv']['kernel'].dtype
  h = linear(normalised(x_NTD, p['norm1'], config), p['qkv']).astype(dtype)
  q, k, v = jnp.moveaxis(h.reshape(n, t, 3, config.heads, d // config.heads), 2, 0)
  h = linear(attend(q, k, v, 'xla').reshape(n, t, d), p['proj'])
  x_NTD = x_NTD + (p['scale1'][None, None] * h if config.layer_scale else h)
  h = _mlp(normalised(x_NTD, p['norm2'], config), p, config)
  return x_NTD + (p['scale2'][None, None] * h if config.layer_scale else h)


def flops(config: ViTConfig, grid: tuple[int, int]) -> float:
  """FLOPs of the matrix products for one image, a multiply-add being 2."""
  d, hidden, patches = config.width, config.hidden, grid[0] * grid[1]
  t = config.prefix + patches
  mlp = (3 if config.mlp == 'swiglu' else 2) * d * hidden
  blocks = config.depth * (2 * t * (4 * d * d + mlp) + 4 * t * t * d)
  pooled = 2 * (2 * d * d + mlp) + 4 * t * d * (d + 1) if config.pooling else 0
  embedded = 2 * patches * config.patch_size**2 * config.channels * d
  return float(embedded + blocks + pooled)


def _mlp(x: jax.Array, p: Params, config: ViTConfig) -> jax.Array:
  h = linear(x, p['fc1'])
  if config.mlp == 'swiglu':
    gate, value = jnp.split(h, 2, axis=-1)
    h = jax.nn.silu(gate) * value
  elif config.mlp == 'quick_gelu':
    h = h * jax.nn.sigmoid(1.702 * h)
  else:
    h = jax.nn.gelu(h, approximate=config.mlp == 'gelu_tanh')
  return linear(h, p['fc2'])


def linear(x: jax.Array, p: Params) -> jax.Array:
  """x @ kernel + bias (if any); products in the kernel's dtype, sums in float32 at least."""
  kernel = p['kernel']
  wide = jnp.promote_types(kernel.dtype, jnp.float32)
  y = jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=wide)
  return y + p['bias'].reshape((1,) * (y.ndim - 1) + (-1,)) if 'bias' in p else y


def normalised(x_NTD: jax.Array, p: Params, config: ViTConfig) -> jax.Array:
  """LayerNorm of tokens with a scale and a bias."""
  x_NTD = norms.normalise(x_NTD, config.epsilon)
  return x_NTD * p['scale'][None, None] + p['bias'][None, None]
