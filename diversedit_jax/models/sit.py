"""SiT, the diffusion transformer (arXiv 2401.08740), with DiverseDiT's long residual connections.

In the notation of `types`:

  x_NHWC -> patches -> Linear + positions -> L blocks -> adaLN, Linear -> unpatchify -> velocity
  t_N -> sinusoids -> MLP ---+
  y_N -> label table --------+-> c_ND, which modulates every block
  h_N -> sinusoids -> MLP ---+   only where an average over an interval is predicted (MeanFlow)

and, for REG, a class token [N, Z] that is noised like the data and predicted with them.
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import sharding, trees, types
from diversedit_jax.models import attention, embed, layers, products, sizes, stack, taps
from diversedit_jax.models import config as model_config

DTYPES = ('float32', 'bfloat16')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SiTConfig:
  """Everything that decides the shape and the arithmetic of a SiT.

  input_size: (rows, columns) of the latent or image.
  channels: of input and output. num_classes: K; 0 makes an unconditional model.
  depth, width, heads, mlp_ratio, patch_size: see `sizes`.
  qk_norm: affine LayerNorm of q and k per head (off in all published SiT models).
  skip: long residual connections, or None.
  interval: a second time embedding, of h = t - r (MeanFlow).
  class_token: Z, width of a class token that goes through the blocks before the patches (REG); 0
    is none.
  learn_sigma: the head has 2C channels, of which the first C are the prediction (DiT and the
    original SiT; only DiT trains the others).
  time_input: what the sinusoids see, see `embed.TIME_INPUTS`.
  dtype: of matrix products within the blocks; the two ends of the network stay in float32.
  residual_dtype: of the residual stream.
  attention: of `attention.IMPLEMENTATIONS`. remat: see `stack.REMAT_POLICIES`.
  unroll: blocks per step of the loop over them; 0 is all on a GPU and one elsewhere.
  platform: 'gpu', 'tpu' or 'cpu' of a machine that is not here, see `attention.choose`.
  """

  input_size: tuple[int, int]
  depth: int
  width: int
  heads: int
  patch_size: int
  channels: int = 4
  num_classes: int = 1000
  mlp_ratio: float = 4.0
  qk_norm: bool = False
  skip: stack.Skip | None = None
  interval: bool = False
  class_token: int = 0
  learn_sigma: bool = False
  time_input: str = 'unit'
  dtype: str = 'float32'
  residual_dtype: str = 'float32'
  attention: str = 'auto'
  remat: str = 'none'
  unroll: int = 0
  platform: str = ''

  def __post_init__(self):
    def require(fits, message):
      if not fits:
        raise types.UserError(message)

    def known(field, value, options):
      require(value in options, f'unknown {field} {value!r}{trees.did_you_mean(value, options)}')

    for name in ('depth', 'width', 'heads', 'patch_size', 'channels'):
      require(
        getattr(self, name) >= 1, f'model.{name} must be at least 1, got {getattr(self, name)}'
      )
    require(
      self.num_classes >= 0, f'model.num_classes must not be negative, got {self.num_classes}'
    )
    require(self.mlp_ratio > 0, f'model.mlp_ratio must be positive, got {self.mlp_ratio}')
    require(self.unroll >= 0, f'model.unroll must not be negative, got {self.unroll}')
    rows, cols = self.input_size
    p = self.patch_size
    require(
      rows >= p and cols >= p and rows % p == 0 and cols % p == 0,
      f'input size {rows}x{cols} is not divisible by the patch size {p}',
    )
    require(
      self.width % self.heads == 0, f'{self.heads} heads do not divide the width {self.width}'
    )
    require(
      self.width % 4 == 0, f'the position table needs a width divisible by 4, got {self.width}'
    )
    require(
      self.skip is None or self.depth % 2 == 0,
      f'long skips pair the two halves of the blocks and need an even depth, got {self.depth}',
    )
    if self.skip is not None:
      known('model.skip.placement', self.skip.placement, stack.SKIP_PLACEMENTS)
    require(self.class_token >= 0, f'the class token cannot have a width of {self.class_token}')
    known('model.time_input', self.time_input, embed.TIME_INPUTS)
    known('model.dtype', self.dtype, DTYPES)
    known('model.residual_dtype', self.residual_dtype, DTYPES)
    require(
      self.dtype == 'bfloat16' or self.residual_dtype == 'float32',
      'model.residual_dtype=bfloat16 needs model.dtype=bfloat16: float32 products make it float32',
    )
    known('model.attention', self.attention, attention.IMPLEMENTATIONS)
    known('model.remat', self.remat, stack.REMAT_POLICIES)

  def kernel(self) -> str:
    """Name of the attention kernel, chosen where it is 'auto'; see `attention.choose`."""
    return attention.choose(
      self.attention, self.sequence, self.heads, self.width // self.heads, self.dtype, self.platform
    )

  @classmethod
  def of_size(cls, name: str, **fields) -> 'SiTConfig':
    """The config of a published size, 'S/2' to 'XL/8'."""
    return cls(**dataclasses.asdict(sizes.size(name)), **fields)

  @property
  def tokens(self) -> int:
    """T, the number of patch tokens of one example."""
    rows, cols = self.grid
    return rows * cols

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of the patch tokens."""
    return self.input_size[0] // self.patch_size, self.input_size[1] // self.patch_size

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, C) of one example."""
    return (*self.input_size, self.channels)

  @property
  def sequence(self) -> int:
    """Tokens that go through the blocks: the patches and, for REG, the class token."""
    return self.tokens + bool(self.class_token)

  @property
  def blocks_per_step(self) -> int:
    """`unroll`, and for 0 what is best where gradients are wanted; see `stack.looped` for others.

    A GPU writes whatever the backward pass needs to a loop's stack and reads it back, which is half
    of what it moves; without a loop XL/2 still compiles in a minute (benchmarks/NOTES.md).
    """
    return self.unroll or (self.depth if (self.platform or jax.default_backend()) == 'gpu' else 1)

  @property
  def unrolled(self) -> bool:
    """Whether no loop over blocks remains; long skips part them into two loops."""
    return self.blocks_per_step >= (self.depth if self.skip is None else self.depth // 2)

  @property
  def compute_dtype(self) -> jnp.dtype | None:
    """For the layers; None follows the inputs, so that float64 stays float64."""
    return None if self.dtype == 'float32' else jnp.dtype(self.dtype)

  @property
  def null_label(self) -> int | None:
    """The label of the unconditional prediction; None for a model without classes."""
    return self.num_classes or None


class SiT(nnx.Module):
  """Scalable interpolant transformer; at initialisation its output is exactly zero."""

  def __init__(self, architecture, execution=model_config.Execution(), *, rngs: nnx.Rngs):
    self.architecture, self.execution = architecture, execution
    fields = vars(architecture) | vars(execution)
    skip = stack.Skip(placement=architecture.skip.placement) if architecture.skip.enabled else None
    config = SiTConfig(**(fields | {'skip': skip}))
    self.config = config
    self.patch_embed = products.Linear(
      config.patch_size**2 * config.channels,
      config.width,
      kernel_init=embed.xavier(None, 'embed'),
      bias_init=embed.zeros('embed'),
      rngs=rngs,
    )
    self.time_embed = embed.TimeEmbed(config.width, rngs=rngs)
    self.label_embed = embed.LabelEmbed(config.num_classes, config.width, rngs=rngs)
    if config.interval:
      self.interval_embed = embed.TimeEmbed(config.width, rngs=rngs)
    if config.class_token:
      self.class_token_embed = embed.ClassTokenEmbed(config.class_token, config.width, rngs=rngs)
    self.blocks = stack.Stack(config, rngs=rngs)
    self.final = layers.Final(config, rngs=rngs)

  def tokens(self, x_NHWC: jax.Array, class_token_NZ: jax.Array | None = None) -> jax.Array:
    """Patch tokens with their positions, [N, T, D] in the dtype of the residual stream.

    A class token comes first, without a position: [N, 1 + T, D].
    """
    config = self.config
    positions = embed.position_table(*config.grid, config.width)
    x_NTD = self.patch_embed(embed.patchify(x_NHWC, config.patch_size))
    x_NTD = x_NTD.astype(jnp.promote_types(x_NTD.dtype, config.residual_dtype))
    x_NTD = x_NTD + jnp.asarray(positions, x_NTD.dtype)[None]
    if class_token_NZ is None:
      return x_NTD
    first_ND = self.class_token_embed(class_token_NZ).astype(x_NTD.dtype)
    return jnp.concatenate([first_ND[:, None], x_NTD], axis=1)

  def condition(self, t_N: jax.Array, y_N: jax.Array, h_N: jax.Array | None = None) -> jax.Array:
    """The conditioning vector c_ND, the sum of the embeddings of time, label and interval."""
    c_ND = self.time_embed(embed.TIME_INPUTS[self.config.time_input](t_N)) + self.label_embed(y_N)
    if h_N is not None:
      c_ND = c_ND + self.interval_embed(h_N)
    return sharding.constrain_batch(c_ND)

  def __call__(
    self,
    x_NHWC: jax.Array,
    t_N: jax.Array,
    y_N: jax.Array,
    *,
    h_N: jax.Array | None = None,
    class_token_NZ: jax.Array | None = None,
    tap: taps.Tap | None = None,
    blocks: int | None = None,
  ) -> types.Output:
    """One forward pass.

    Args:
      x_NHWC: noisy latents or images.
      t_N: times in [0, 1], 0 data and 1 noise.
      y_N: integer labels, K for the null label.
      h_N: lengths t - r of intervals that end at t; for a model with `interval`, and only there.
      class_token_NZ: noisy class tokens; for a model with `class_token`, and only there.
      tap: what to keep of the block outputs.
      blocks: stop after so many of them, for the features alone; None runs all.

    Returns:
      `Output` with the prediction [N, H, W, C] and that of the class token [N, Z], in float32 at
      least (None if only the first blocks ran), and the tap's features.

    Raises:
      ValueError: for a wrong shape, a missing input, or one that the model has no place for.
    """
    config = self.config
    rows, cols = config.input_size
    types.check('x', x_NHWC, 'N H W C', H=rows, W=cols, C=config.channels)
    types.check('t', t_N, 'N', N=x_NHWC.shape[0])
    types.check('y', y_N, 'N', N=x_NHWC.shape[0])
    _check_input('h_N', h_N, config.interval)
    _check_input('class_token_NZ', class_token_NZ, config.class_token > 0)
    c_ND = self.condition(t_N, y_N, h_N)
    x_NTD, features = self.blocks(
      self.tokens(x_NHWC, class_token_NZ), c_ND, tap=tap or taps.nothing(), blocks=blocks
    )
    if blocks is not None and blocks < config.depth:
      return types.Output(None, features)
    out, class_token_NZ = self.final(x_NTD, c_ND)
    pred = embed.unpatchify(out, config.patch_size, rows, cols)[..., : config.channels]
    pred, class_token_NZ = jax.tree.map(_finished, (pred, class_token_NZ))
    return types.Output(pred, features, class_token_NZ)


def _finished(x: jax.Array) -> jax.Array:
  return sharding.constrain_batch(x.astype(jnp.promote_types(x.dtype, jnp.float32)))


def _check_input(name, given, wanted):
  if (given is not None) != wanted:
    raise ValueError(f'{name} is {"missing" if wanted else "not an input of this model"}')
