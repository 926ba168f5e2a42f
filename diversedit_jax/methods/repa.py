"""REPA: block outputs, projected, aligned with features of frozen encoders (arXiv 2410.06940).

  loss = -weight * mean over pairs, examples and tokens of cos(projector(f_block), encoder tokens)

The released code aligns the output of one block; DiverseDiT (2603.04239, Fig. 2) also looks at
several (encoder, block) pairs at once, each with its own projector. A cosine bounds the norms from
below by 1e-12, as PyTorch's `normalize` does.

iREPA (arXiv 2512.10794; `repa.preset=irepa`) looks at how the tokens of an image differ: its
projector is a convolution of the token grid (`heads.ConvProjector`), and the encoder's patch tokens
are normalised over those of their image (`losses.spatial`). A class token (REG) has no place on the
grid: it is not normalised, nor part of the sums, and its projector is REPA's own.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, ClassVar

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import options, types
from diversedit_jax.frozen import encoders
from diversedit_jax.losses import arithmetic, spatial
from diversedit_jax.methods import base, registry
from diversedit_jax.models import config as model_config
from diversedit_jax.models import heads as heads_lib
from diversedit_jax.models import taps

BLOCKS = {12: 5, 24: 8, 28: 8}
"""Aligned block by depth in DiverseDiT's recipe (Table A1); REPA itself takes 4 for depth 12."""

_SHORTEST = 1e-12


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preset:
  """Published values of options that are None, and blocks by depth (None: the flow's)."""

  weight: float
  projector: str
  spatial_norm: float | None
  blocks: Mapping[int, int] | None


PRESETS = {
  # DiverseDiT's table A1, and REPA's released code.
  'repa': Preset(weight=0.5, projector='mlp', spatial_norm=None, blocks=None),
  # iREPA's SiT. Its JiT has weight 0.5; a is 0.8 by the command line of its JiT, 1 by the function.
  'irepa': Preset(weight=1.0, projector='conv', spatial_norm=0.6, blocks={12: 4, 24: 8, 28: 8}),
}
PROJECTORS = ('mlp', 'conv')
KERNEL = 3
"""iREPA's; its published command for SiT builds one of 1, against its own text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pair:
  """encoder: its name. block: whose output is aligned, from 1. width: Z, width of its tokens."""

  encoder: str
  block: int
  width: int


@registry.register('repa')
@dataclasses.dataclass(frozen=True, kw_only=True)
class Repa(base.Term):
  """Aligns blocks with features of frozen encoders (REPA, arXiv 2410.06940; iREPA, 2512.10794).

  aligned: what is aligned with what; `prepare` makes it from `pairs`.
  class_token: whether the class token is aligned with the encoder's summary too, as REG does.
  """

  pairs: str = options.option(
    'dinov2-vit-b',
    doc='ENCODER@BLOCK,... with blocks from 1; without a block 5 (depth 12; 4 for reg and irepa) '
    'or 8 (24, 28). Encoders: pca, dinov2-vit-{s,b,l,g}, dinov2reg-vit-{s,b,l,g}, mae-vit-{b,l,h}, '
    'mocov3-vit-{s,b,l}, clip-vit-l, siglip2-vit-{b,l,so400m}, convnextv2-{t,b,l}, ijepa-vit-h '
    '(not for reg); see docs/methods.md.',
  )
  preset: str = options.option(
    'repa',
    choices=PRESETS,
    doc='Published values of what is None below: REPA, or iREPA (2512.10794).',
  )
  weight: float | None = options.option(
    None,
    at_least=0,
    doc='Factor of the mean over pairs; 0 only with reg. None is 0.5 (repa) or 1 (irepa, SiT; its '
    'JiT has 0.5).',
  )
  projector: str | None = options.option(
    None,
    choices=PROJECTORS,
    doc='Three layers for each token (mlp), or a convolution of their grid (conv), beside which a '
    "class token keeps the mlp. None is the preset's: mlp (repa), conv (irepa).",
  )
  hidden: int = options.option(2048, at_least=1, doc='Width of the projectors that are mlp.')
  kernel: int | None = options.option(
    None,
    at_least=1,
    doc="Side of the convolution's kernel, odd; None is 3, of which iREPA's command makes 1.",
  )
  spatial_norm: float | None = options.option(
    None,
    at_least=0,
    at_most=1,
    doc="Normalises the encoder's patch tokens over each image, subtracting this share of their "
    "mean. None is the preset's: not at all (repa), 0.6 (irepa).",
  )
  epsilon: float | None = options.option(
    None,
    above=0,
    doc='Added to the deviation that this normalisation divides by; None is 1e-6, with which a '
    'channel that is constant over an image outweighs all others.',
  )
  weights: str = options.option(
    '', path=True, may_change=True, doc="Folder with the encoders' official weight files."
  )
  dtype: str = options.option(
    'float32', choices=model_config.DTYPES, doc="Type of the encoders' matrix products."
  )
  aligned: tuple[Pair, ...] = ()
  class_token: bool = False
  needs_pixels: ClassVar[bool] = True
  couples_examples: ClassVar[bool] = False

  def __post_init__(self):
    super().__post_init__()
    for name in ('weight', 'projector', 'spatial_norm'):
      if getattr(self, name) is None:
        object.__setattr__(self, name, getattr(PRESETS[self.preset], name))
    for name, needed, has in (
      ('kernel', 'projector=conv', self.projector == 'conv'),
      ('epsilon', 'spatial_norm=NUMBER', self.spatial_norm is not None),
    ):
      if getattr(self, name) is not None and not has:
        raise types.UserError(
          f'repa.{name}={getattr(self, name)} is for repa.{needed}: set that, or leave it out'
        )
    if self.kernel is not None and self.kernel % 2 == 0:
      raise types.UserError(f'repa.kernel must be odd, to have a middle, got {self.kernel}')

  def prepare(self, setup: base.Setup) -> 'Repa':
    """With its encoders opened; see `open_pairs`."""
    if not self.weight:
      raise types.UserError('repa.weight=0 aligns nothing; leave repa out of the method')
    return self.open_pairs(setup, BLOCKS)

  def open_pairs(self, setup: base.Setup, blocks: Mapping[int, int]) -> 'Repa':
    """The term with the encoders of its pairs opened, shapes only.

    Args:
      setup: data and model.
      blocks: the block by depth where neither a pair nor the preset names one.

    Raises:
      UserError: for pairs that cannot be read, an unknown encoder, or data without pixels.
    """
    blocks = PRESETS[self.preset].blocks or blocks
    parsed = parse_pairs(self.pairs, setup.architecture.depth, blocks)
    request = self.request(setup)
    opened = {
      name: encoders.open_encoder(name, request) for name in dict.fromkeys(n for n, _ in parsed)
    }
    aligned = tuple(
      Pair(encoder=name, block=block, width=opened[name].shapes().tokens.shape[-1])
      for name, block in parsed
    )
    return dataclasses.replace(self, aligned=aligned, opened=tuple(opened.values()))

  def request(self, setup: base.Setup) -> encoders.Request:
    """How encoders are opened for this model and data.

    Raises:
      UserError: for data without pixels.
    """
    if setup.source.pixel_shape is None:
      raise types.UserError(
        f'method={setup.method!r} shows pixels to an encoder, and {setup.source.name} has none '
        'beside its latents'
      )
    return encoders.Request(
      source=setup.source,
      grid=setup.architecture.grid,
      image_shape=setup.source.pixel_shape,
      weights=self.weights,
      dtype=self.dtype,
      key='repa.weights',
    )

  def check(self, architecture: model_config.Architecture, examples: int) -> None:
    del examples
    for pair in self.aligned:
      base.check_block('repa.pairs', pair.block, architecture.depth)
    if self.spatial_norm is not None and architecture.tokens < 2:
      raise types.UserError(
        f'repa.spatial_norm={self.spatial_norm} normalises over the patch tokens of an image, and '
        f'model.patch_size={architecture.patch_size} makes one; take smaller patches'
      )

  def idle(self, key: str) -> str:
    if key == 'hidden' and self.projector == 'conv' and not self.class_token:
      return 'repa.projector is a convolution, which has no hidden layer'
    return ''

  def heads(
    self,
    architecture: model_config.Architecture,
    execution: model_config.Execution,
    *,
    rngs: nnx.Rngs,
  ) -> nnx.Module:
    """One projector per pair, by number."""
    width, how = architecture.width, {'dtype': execution.compute_dtype, 'rngs': rngs}

    def make(pair):
      if self.projector == 'mlp':
        return heads_lib.Projector(width, self.hidden, pair.width, **how)
      return heads_lib.ConvProjector(
        width,
        pair.width,
        kernel=self.kernel or KERNEL,
        grid=architecture.grid,
        class_hidden=self.hidden if self.class_token else 0,
        **how,
      )

    return nnx.Dict({str(i): make(pair) for i, pair in enumerate(self.aligned)})

  @property
  def _blocks(self) -> tuple[int, ...]:
    return tuple(sorted({pair.block for pair in self.aligned}))

  def tap(self, key: jax.Array, depth: int) -> taps.Tap:
    del key, depth
    return taps.chosen([block - 1 for block in self._blocks])

  def loss(self, features: Any, context: base.Context) -> tuple[jax.Array, base.Metrics]:
    """The weighted loss.

    Metrics: 'loss' (before weighting), with several pairs 'loss/ENCODER@BLOCK', and of normalised
    tokens 'constant', see `spatial.constant_share`.
    """
    losses, constant = {}, []
    for i, pair in enumerate(self.aligned):
      projected_NTZ = context.heads[str(i)](features[self._blocks.index(pair.block)])
      target_NTZ = context.noisy.batch[f'{pair.encoder}/tokens']
      if self.spatial_norm is not None:
        constant.append(spatial.constant_share(target_NTZ))
        target_NTZ = spatial.normalised(
          target_NTZ, self.spatial_norm, self.epsilon or spatial.EPSILON
        )
      if self.class_token:
        summary_NZ = context.noisy.batch[f'{pair.encoder}/summary']
        target_NTZ = jnp.concatenate([summary_NZ[:, None], target_NTZ], axis=1)
      losses[f'{pair.encoder}@{pair.block}'] = jnp.mean(alignment(projected_NTZ, target_NTZ))
    loss = sum(losses.values()) / len(losses)
    each = {f'loss/{name}': value for name, value in losses.items()} if len(losses) > 1 else {}
    if constant:
      each['constant'] = sum(constant) / len(constant)
    return self.weight * loss, {'loss': loss, **each}

  def flops(self, architecture: model_config.Architecture, examples: int) -> float:
    """The projectors, forward and backward."""
    del examples
    width, hidden = architecture.width, self.hidden
    mlp = sum(width * hidden + hidden * hidden + hidden * p.width for p in self.aligned)
    if self.projector == 'mlp':
      return 3 * 2.0 * architecture.sequence * mlp
    conv = sum((self.kernel or KERNEL) ** 2 * width * p.width for p in self.aligned)
    return 3 * 2.0 * (architecture.tokens * conv + self.class_token * mlp)


def alignment(projected_NTZ: jax.Array, target_NTZ: jax.Array) -> jax.Array:
  """Minus the mean over tokens of the cosine between projection and target.

  Args:
    projected_NTZ: output of one encoder's projector, any float type.
    target_NTZ: features of that encoder, same shape; no gradient reaches them.

  Returns:
    loss_N in [-1, 1], in float32 (float64 if either input is float64).

  Raises:
    ValueError: if the shapes differ or are not of rank 3.
  """
  projected, target = arithmetic.student_and_teacher(projected_NTZ, target_NTZ)
  return -jnp.mean(arithmetic.cosine(projected, target, -1, _SHORTEST), axis=1)


def parse_pairs(
  text: str, depth: int, blocks: Mapping[int, int] = BLOCKS
) -> tuple[tuple[str, int], ...]:
  """(encoder, block) of each 'ENCODER@BLOCK' in a list with commas; blocks count from 1.

  Without '@BLOCK' the block is that of the depth in `blocks`.

  Raises:
    UserError: for an empty list, a repeated pair, a block that is no number, or none for the depth.
  """
  pairs = []
  for item in text.split(','):
    encoder, _, block = item.strip().partition('@')
    if not encoder or (block and not block.isdecimal()):
      raise types.UserError(
        f"repa.pairs={text!r} is not a list of ENCODER@BLOCK as in 'dinov2-vit-b@8'"
      )
    if not block and depth not in blocks:
      raise types.UserError(f'repa.pairs={text!r} needs a block for depth {depth}: {encoder}@BLOCK')
    pairs.append((encoder, int(block) if block else blocks[depth]))
  if len(set(pairs)) < len(pairs):
    raise types.UserError(f'repa.pairs={text!r} names a pair twice')
  return tuple(pairs)
