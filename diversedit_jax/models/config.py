"""What a SiT is (`Architecture`) and how it is run (`Execution`), declared key by key.

The weights of a run mean the same under any `Execution` and only under its own `Architecture`.
"""

import dataclasses

import jax.numpy as jnp

from diversedit_jax import options, types
from diversedit_jax.models import blocks
from diversedit_jax.models.config_parts import Context, Head, Skip

DTYPES = ('float32', 'bfloat16')
TIME_INPUTS = ('unit', 'ddpm')
PADDED_HEADS = (80, 96, 128)
ATTENTIONS = ('auto', 'xla', 'cudnn', *(f'cudnn@{d}' for d in PADDED_HEADS), 'flash')
"""'cudnn@d' pads heads with zeros to d values; 'flash' is JAX's Pallas kernel for TPUs."""
NORMS = ('layer', 'rms')
TIME_FEATURES = ('sinusoids', 'gaussian')
CONDITIONINGS = ('adaln', 'tokens')
REMATS = ('none', 'full', 'dots', 'names')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Architecture(options.Section, section='model', decides_network=True):
  """All that decides the parameters of the network and what they mean.

  Beside its options, which are keys of the config:

  input_size: rows and columns of the latent or image, from the data.
  channels: channels of input and output, from the data.
  num_classes: K, from the data; 0 makes an unconditional model.
  interval: whether a second time is embedded, h = t - r (MeanFlow).
  class_token: Z, width of a class token that goes through the blocks before the patches (REG); 0
    for none.
  base: block, from 1, whose output a second final layer reads (internal guidance); 0 for none.
  """

  depth: int = options.option(0, at_least=0, doc='L, number of blocks; 0 takes it from model.size.')
  width: int = options.option(
    0, at_least=0, doc='D, features of a token; 0 takes it from model.size.'
  )
  heads: int = options.option(0, at_least=0, doc='Attention heads; 0 takes them from model.size.')
  patch_size: int = options.option(
    0, at_least=0, doc='Side of a patch in latent pixels; 0 takes it from model.size.'
  )
  mlp_ratio: float = options.option(4.0, above=0, doc='Hidden width of the MLP over D.')
  block: str = options.option(
    'sit',
    choices=blocks.NAMES,
    doc='Published block, whose parts are taken where the next ones are None: sit, lightning '
    '(LightningDiT, 2501.01423), ddt (RAE, 2510.11690), or raev2 (2605.18324), published with '
    'model.qk_norm=True; see docs/backbones.md.',
  )
  norm: str | None = options.option(
    None, choices=NORMS, doc='Normalisation of tokens: LayerNorm without weights, or RMSNorm.'
  )
  mlp: str | None = options.option(
    None,
    choices=blocks.MLPS,
    doc='MLP of a block: gelu, or swiglu, whose hidden width is int(2/3 int(D mlp_ratio)).',
  )
  rope: bool | None = options.option(
    None, doc='Rotary positions of queries and keys by row and column, beside the fixed table.'
  )
  shift: bool | None = options.option(
    None, doc='Whether the conditioning also shifts; without, it scales and gates only.'
  )
  time_features: str | None = options.option(
    None,
    choices=TIME_FEATURES,
    doc="What the embedding of time reads: SiT's sinusoids, or those of fixed Gaussian numbers.",
  )
  position_table: bool | None = options.option(
    None, doc='Whether the fixed table of positions is added to the tokens.'
  )
  conditioning: str | None = options.option(
    None,
    choices=CONDITIONINGS,
    doc='How blocks learn of time and label: adaln modulates them, tokens stand before the others '
    'and modulate nothing (RAEv2, 2605.18324; needs a head).',
  )
  qk_norm: bool = options.option(
    False,
    doc='Normalises queries and keys per head, by the LayerNorm or RMSNorm that norm says; off in '
    'all published SiT models.',
  )
  skip: Skip = options.option(Skip(), doc='See model.skip.')
  head: Head = options.option(Head(), doc='See model.head.')
  context: Context = options.option(Context(), doc='See model.context.')
  learn_sigma: bool = options.option(
    False,
    doc="A head of 2C channels, the first C the prediction, as DiT's and the original SiT's.",
  )
  time_input: str = options.option(
    'unit',
    choices=TIME_INPUTS,
    doc="What the embedding of time sees: t itself, or the step of DiT's diffusion (path vp only).",
  )
  input_size: tuple[int, int]
  channels: int = 4
  num_classes: int = 1000
  interval: bool = False
  class_token: int = 0
  base: int = 0

  def __post_init__(self):
    super().__post_init__()
    for name, part in blocks.parts(self.block).items():
      if getattr(self, name) is None:
        object.__setattr__(self, name, part)
    for name in ('depth', 'width', 'heads', 'patch_size'):
      if getattr(self, name) < 1:
        raise types.UserError(f'model.{name} is 0; set it, or model.size to a published size')
    rows, cols = self.input_size
    p = self.patch_size
    for holds, message in (
      (self.channels >= 1, f'channels must be at least 1, got {self.channels}'),
      (self.num_classes >= 0, f'num_classes must be at least 0, got {self.num_classes}'),
      (self.class_token >= 0, f'class_token must be at least 0, got {self.class_token}'),
      (
        0 <= self.base <= self.depth,
        f'a base prediction of block {self.base}, but model.depth={self.depth}',
      ),
      (
        rows >= p and cols >= p and rows % p == 0 and cols % p == 0,
        f'input size {rows}x{cols} is not divisible by model.patch_size={p}',
      ),
      (
        self.width % self.heads == 0,
        f'model.heads={self.heads} does not divide model.width={self.width}',
      ),
      (
        not self.position_table or self.width % 4 == 0,
        f'model.width={self.width} is not divisible by 4, as the position table needs',
      ),
      (
        not self.rope or self.width // self.heads % 4 == 0,
        f'model.rope turns pairs in both halves of a head, whose width model.width/model.heads='
        f'{self.width}/{self.heads} is not divisible by 4',
      ),
      (
        self.time_input == 'unit' or self.time_features == 'sinusoids',
        f'model.time_input={self.time_input} tells steps up to 999, and model.time_features='
        f'{self.time_features} are for times in [0, 1]; set model.time_features=sinusoids',
      ),
      (
        self.conditioning == 'adaln' or not blocks.own_block(self.block),
        f'model.block={self.block} has equations of its own, which model.conditioning=tokens would '
        'leave out; set model.conditioning=adaln',
      ),
      (
        self.conditioning == 'adaln' or self.head.depth > 0,
        'model.conditioning=tokens modulates no block, so the final layer needs a decoder that is '
        'modulated: set model.head.depth',
      ),
      (
        not self.skip.enabled or self.depth % 2 == 0,
        f'model.skip.enabled pairs the two halves of the blocks and needs an even depth, got '
        f'model.depth={self.depth}',
      ),
      (
        self.skip.enabled or not self.skip.residual,
        'model.skip.residual=True says how long skips are fused, but model.skip.enabled=False',
      ),
    ):
      if not holds:
        raise types.UserError(message)
    _check_head(self)

  @property
  def decoder(self) -> 'Architecture':
    """The blocks of the head as an architecture of their own; needs `head.depth`."""
    head = self.head
    return dataclasses.replace(
      self,
      depth=head.depth,
      width=head.width or self.width,
      heads=head.heads or self.heads,
      head=Head(),
      skip=Skip(),
      conditioning='adaln',
      position_table=False,
      base=0,
    )

  @property
  def stacks(self) -> tuple['Architecture', ...]:
    """The architectures of all blocks: this one and, with a head, the decoder's."""
    return (self, self.decoder) if self.head.depth else (self,)

  @property
  def last(self) -> 'Architecture':
    """The architecture of the tokens that the final layer reads: the decoder's, or this one."""
    return self.stacks[-1]

  @property
  def context_tokens(self) -> int:
    """Tokens of time and label before those of the input."""
    return self.context.time + self.context.label if self.conditioning == 'tokens' else 0

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of the patch tokens."""
    return self.input_size[0] // self.patch_size, self.input_size[1] // self.patch_size

  @property
  def tokens(self) -> int:
    """T, the number of patch tokens of one example."""
    rows, cols = self.grid
    return rows * cols

  @property
  def hidden(self) -> int:
    """Features of the MLP's hidden layer."""
    return blocks.mlp(self.mlp).hidden(self.width, self.mlp_ratio)

  @property
  def vectors(self) -> int:
    """Vectors that a block makes of the conditioning: scales, gates and, with them, shifts."""
    return 6 if self.shift else 4

  @property
  def sequence(self) -> int:
    """Tokens that taps show: the patches and, for REG, the class token."""
    return self.tokens + bool(self.class_token)

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, C) of one example."""
    return (*self.input_size, self.channels)

  @property
  def null_label(self) -> int | None:
    """The label of the unconditional prediction; None for a model without classes."""
    return self.num_classes or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Execution(options.Section, section='model'):
  """Precision, attention, what is recomputed, loop or no loop.

  platform: 'gpu', 'tpu' or 'cpu' of a machine that is not here, for plans; '' is this one.
  """

  dtype: str = options.option(
    'float32',
    choices=DTYPES,
    doc='Type of matrix products in the blocks; bfloat16 halves their time and memory.',
  )
  residual_dtype: str = options.option(
    'float32', choices=DTYPES, doc='Type of the residual stream.'
  )
  attention: str = options.option(
    'auto',
    choices=ATTENTIONS,
    may_change=True,
    doc="Attention kernel: auto tries those that run here; cudnn@80 pads heads; flash is a TPU's.",
  )
  remat: str = options.option(
    'none',
    choices=REMATS,
    may_change=True,
    doc='What the backward pass computes again, for less memory: nothing, all of a block, all but '
    'its products, or all but a few named values.',
  )
  unroll: int = options.option(
    0,
    at_least=0,
    may_change=True,
    doc='Blocks in one step of the loop over them; 0 takes all on a GPU (a few are worse there '
    'than one or all) and one elsewhere.',
  )
  platform: str = ''

  def __post_init__(self):
    super().__post_init__()
    if self.dtype != 'bfloat16' and self.residual_dtype != 'float32':
      raise types.UserError(
        f'model.residual_dtype={self.residual_dtype} needs model.dtype=bfloat16: float32 products '
        'make it float32'
      )

  @property
  def compute_dtype(self) -> jnp.dtype | None:
    """Type for the layers; None follows the inputs, so that float64 stays float64."""
    return None if self.dtype == 'float32' else jnp.dtype(self.dtype)


def _check_head(architecture):
  head = architecture.head
  if not head.depth:
    for name in ('width', 'heads'):
      if getattr(head, name):
        raise types.UserError(
          f'model.head.{name}={getattr(head, name)} is for a decoder of model.head.depth blocks, '
          'which is 0'
        )
    return
  width, heads = head.width or architecture.width, head.heads or architecture.heads
  if width % heads:
    raise types.UserError(f'model.head.heads={heads} does not divide model.head.width={width}')
  if architecture.rope and width // heads % 4:
    raise types.UserError(
      f'model.rope turns pairs in both halves of a head, whose width model.head.width/'
      f'model.head.heads={width}/{heads} is not divisible by 4'
    )


PLAIN = Execution()
"""Float32, on this machine, everything else as it is by default."""
