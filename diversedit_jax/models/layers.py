"""The transformer block with adaLN-Zero, the long-skip fusion and the final layer.

One block (DiT, arXiv 2212.09748, adaLN-Zero), c the conditioning vector:

  (1)  s1, k1, g1, s2, k2, g2 = Linear(SiLU(c))        shift, scale, gate for attention, then MLP
  (2)  x <- x + g1 * Attention(LN(x) * (1 + k1) + s1)
  (3)  x <- x + g2 * MLP(LN(x) * (1 + k2) + s2)

and the fusion of a long residual connection (DiverseDiT, arXiv 2603.04239, Eq. 8):

  (4)  f = Linear(LN([x, skip]))

Normalisation, softmax and the residual stream stay in float32 whatever the compute dtype of the
matrix products. The backward pass finds the matrix products and computes the cheap steps between
them again, all of them or but a few (`recomputed`).
"""

from collections.abc import Callable

from flax import nnx
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from diversedit_jax import trees
from diversedit_jax.models import attention, embed, products

NORM_EPSILON = 1e-6
QK_NORM_EPSILON = 1e-5  # The default of torch.nn.LayerNorm, which timm uses for q and k.

_STATISTICS = 'statistics'
_PRODUCTS = jax.checkpoint_policies.dots_saveable
_KEPT = {
  False: _PRODUCTS,
  True: jax.checkpoint_policies.save_from_both_policies(
    _PRODUCTS, jax.checkpoint_policies.save_only_these_names(products.OPERAND, _STATISTICS)
  ),
}


def recomputed(
  function: Callable[..., jax.Array], unrolled: bool, static_argnums: tuple[int, ...] = ()
) -> Callable[..., jax.Array]:
  """A function whose cheap steps the backward pass computes again.

  Its arguments and matrix products are kept. In a loop whatever is kept is copied to the loop's
  stack and back, which costs more than a normalisation or a GELU. Where blocks are `unrolled`
  nothing is copied, and what goes into a product is kept too, with the mean and variance of each
  token: a GPU moves half the bytes then (benchmarks/NOTES.md). Without a loop the compiler would
  merge what is computed again with the first time, and keep it: so JAX's barrier is on there,
  though it costs fusions.
  """
  return jax.checkpoint(
    function, prevent_cse=unrolled, policy=_KEPT[unrolled], static_argnums=static_argnums
  )


def normalise(x_NTD: jax.Array, epsilon: float = NORM_EPSILON) -> jax.Array:
  """LayerNorm over the last axis without parameters, in float32 at least."""
  x = x_NTD.astype(jnp.promote_types(x_NTD.dtype, jnp.float32))
  centred = x - checkpoint_name(jnp.mean(x, axis=-1, keepdims=True), _STATISTICS)
  variance = checkpoint_name(jnp.mean(jnp.square(centred), axis=-1, keepdims=True), _STATISTICS)
  return centred * jax.lax.rsqrt(variance + epsilon)


def modulate(x_NTD: jax.Array, shift_ND: jax.Array, scale_ND: jax.Array) -> jax.Array:
  """x * (1 + scale) + shift, one shift and scale for all tokens of an example."""
  return x_NTD * (1 + scale_ND[:, None]) + shift_ND[:, None]


def modulated(
  layer: nnx.Module, x_NTD: jax.Array, shift_ND: jax.Array, scale_ND: jax.Array
) -> jax.Array:
  """layer(LN(x) (1 + scale) + shift)."""
  return layer(modulate(normalise(x_NTD), shift_ND, scale_ND))


def gated(x_NTD: jax.Array, gate_ND: jax.Array, h_NTD: jax.Array) -> jax.Array:
  """x + gate * h in the dtype of x."""
  return x_NTD + gate_ND[:, None] * h_NTD.astype(x_NTD.dtype)


class Attention(nnx.Module):
  """Multi-head self-attention of queries, keys and values laid out [q | k | v].

  `qkv` makes them, in one biased projection; a call attends and projects back.
  """

  def __init__(self, config, *, rngs: nnx.Rngs):
    width, dtype = config.width, config.compute_dtype
    self.heads = config.heads
    self.implementation = config.kernel()
    self.qkv = products.Linear(
      width,
      3 * width,
      kernel_init=embed.xavier('embed', 'heads'),
      bias_init=embed.zeros('heads'),
      dtype=dtype,
      rngs=rngs,
    )
    self.proj = products.Linear(
      width,
      width,
      kernel_init=embed.xavier('heads', 'embed'),
      bias_init=embed.zeros('embed'),
      dtype=dtype,
      rngs=rngs,
    )
    if config.qk_norm:
      norm = lambda: nnx.LayerNorm(
        width // config.heads,
        epsilon=QK_NORM_EPSILON,
        use_fast_variance=False,
        dtype=dtype,
        scale_init=embed.ones(None),
        bias_init=embed.zeros(None),
        rngs=rngs,
      )
      self.q_norm, self.k_norm = norm(), norm()
    self.qk_norm = config.qk_norm

  def __call__(self, qkv_NTE: jax.Array) -> jax.Array:
    n, t, d = *qkv_NTE.shape[:2], qkv_NTE.shape[2] // 3
    qkv = jnp.split(checkpoint_name(qkv_NTE, 'qkv'), 3, axis=-1)
    q, k, v = (x.reshape(n, t, self.heads, d // self.heads) for x in qkv)
    if self.qk_norm:
      q, k = self.q_norm(q), self.k_norm(k)
    out = attention.attend(q, k, v, self.implementation).reshape(n, t, d)
    return self.proj(checkpoint_name(out, 'attention'))


class Mlp(nnx.Module):
  """D -> ratio * D -> D with the tanh-approximated GELU."""

  def __init__(self, config, *, rngs: nnx.Rngs):
    hidden, dtype = int(config.width * config.mlp_ratio), config.compute_dtype
    self.fc1 = products.Linear(
      config.width,
      hidden,
      kernel_init=embed.xavier('embed', 'mlp'),
      bias_init=embed.zeros('mlp'),
      dtype=dtype,
      rngs=rngs,
    )
    self.fc2 = products.Linear(
      hidden,
      config.width,
      kernel_init=embed.xavier('mlp', 'embed'),
      bias_init=embed.zeros('embed'),
      dtype=dtype,
      rngs=rngs,
    )

  def __call__(self, x_NTD: jax.Array) -> jax.Array:
    return self.fc2(jax.nn.gelu(checkpoint_name(self.fc1(x_NTD), 'fc1'), approximate=True))


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


def adaln(config, parts: int, *, rngs: nnx.Rngs) -> products.Linear:
  """The zero-initialised layer that turns the conditioning into `parts` vectors of width D."""
  return products.Linear(
    config.width,
    parts * config.width,
    kernel_init=embed.zeros('embed', None),
    bias_init=embed.zeros(None),
    dtype=config.compute_dtype,
    rngs=rngs,
  )


class Block(nnx.Module):
  """Equations (1) to (3); the identity at initialisation."""

  def __init__(self, config, *, rngs: nnx.Rngs):
    self.attn = Attention(config, rngs=rngs)
    self.mlp = Mlp(config, rngs=rngs)
    self.adaln = adaln(config, 6, rngs=rngs)
    self.unrolled = config.unrolled

  def __call__(self, x_NTD: jax.Array, c_ND: jax.Array) -> jax.Array:
    modulate_, gate = (recomputed(f, self.unrolled) for f in (modulated, gated))
    modulation = self.adaln(jax.nn.silu(c_ND)).astype(x_NTD.dtype)
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
    h = self.attn(modulate_(self.attn.qkv, x_NTD, shift1, scale1))
    x_NTD = gate(x_NTD, gate1, h)
    return gate(x_NTD, gate2, modulate_(self.mlp, x_NTD, shift2, scale2))


def fused(
  x_NTD: jax.Array,
  skip_NTD: jax.Array,
  scale_E: jax.Array,
  bias_E: jax.Array,
  kernel_ED: jax.Array,
  dtype: jnp.dtype | None,
  dot_general: Callable[..., jax.Array],
) -> jax.Array:
  """(4) less the bias of its product, E = 2D, without [x, skip] in memory.

  Sums over both halves, and a product of `dtype` (None is that of x) with each half of the kernel,
  whose gradients are by `dot_general`; see `products.wide`.
  """
  d, wide = x_NTD.shape[-1], jnp.promote_types(x_NTD.dtype, jnp.float32)
  halves = [x_NTD.astype(wide), skip_NTD.astype(wide)]
  average = lambda parts: checkpoint_name(
    sum(jnp.sum(h, axis=-1, keepdims=True) for h in parts) / (2 * d), _STATISTICS
  )
  mean = average(halves)
  halves = [h - mean for h in halves]
  inverse = jax.lax.rsqrt(average([jnp.square(h) for h in halves]) + NORM_EPSILON)
  parts = []
  for h, half in zip(halves, (slice(None, d), slice(d, None)), strict=True):
    h = h * inverse * scale_E[None, None, half] + bias_E[None, None, half]
    h = checkpoint_name(h.astype(dtype or wide), products.OPERAND)
    parts.append(products.wide(h, kernel_ED[half].astype(dtype or wide), dot_general))
  return sum(parts)


class Fuse(nnx.Module):
  """Equation (4): joins a block of the second half to its mirror in the first half."""

  def __init__(self, config, *, rngs: nnx.Rngs):
    width = config.width
    self.norm = nnx.LayerNorm(
      2 * width,
      epsilon=NORM_EPSILON,
      use_fast_variance=False,
      scale_init=embed.ones(None),
      bias_init=embed.zeros(None),
      rngs=rngs,
    )
    self.linear = products.Linear(
      2 * width,
      width,
      kernel_init=embed.xavier(None, 'embed'),
      bias_init=embed.zeros('embed'),
      dtype=config.compute_dtype,
      rngs=rngs,
    )
    self.unrolled = config.unrolled

  def __call__(self, x_NTD: jax.Array, skip_NTD: jax.Array) -> jax.Array:
    norm, linear = self.norm, self.linear
    fuse = recomputed(fused, self.unrolled, static_argnums=(5, 6))
    out = fuse(
      x_NTD,
      skip_NTD,
      norm.scale[...],
      norm.bias[...],
      linear.kernel[...],
      linear.dtype,
      linear.dot_general,
    )
    return (out + linear.bias[None, None].astype(out.dtype)).astype(x_NTD.dtype)


class Final(nnx.Module):
  """adaLN with its own shift and scale, then the zero-initialised linear heads.

  (x_NTD, c_ND) -> (patches [N, T, P*P*C'], class token [N, Z] or None), with C' = 2C where the
  network also predicts a variance. A class token stands before the patches.
  """

  def __init__(self, config, *, rngs: nnx.Rngs):
    head = lambda out: products.Linear(
      config.width,
      out,
      kernel_init=embed.zeros('embed', None),
      bias_init=embed.zeros(None),
      rngs=rngs,
    )
    self.adaln = adaln(config, 2, rngs=rngs)
    self.linear = head(config.patch_size**2 * config.channels * (2 if config.learn_sigma else 1))
    self.has_class_token = bool(config.class_token)
    if config.class_token:
      self.class_linear = head(config.class_token)

  def __call__(self, x_NTD: jax.Array, c_ND: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    modulation = self.adaln(jax.nn.silu(c_ND)).astype(x_NTD.dtype)
    shift, scale = jnp.split(modulation, 2, axis=-1)
    x_NTD = modulate(normalise(x_NTD), shift, scale)
    if not self.has_class_token:
      return self.linear(x_NTD), None
    return self.linear(x_NTD[:, 1:]), self.class_linear(x_NTD[:, 0])
