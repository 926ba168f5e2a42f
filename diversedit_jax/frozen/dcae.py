"""The deep compression autoencoder (DC-AE, arXiv 2410.10733), frozen.

The encoder maps an image x in [-1, 1] to one latent z, of which nothing is drawn, on a grid that
is 32, 64 or 128 times smaller along a side; the decoder maps z to an image. fold makes channels of
2x2 positions, mean takes means of neighbouring channels, rep repeats each channel:

  (1)  block      x <- x + Norm(Conv3(act(Conv3(x))))
  (2)  attention  x <- x + Norm(W [O_1, O_2, ...]),   heads of all scales,
                  O = ReLU(Q) (ReLU(K)' V) / (ReLU(Q) ReLU(K)' 1)           linear in positions
  (3)  gated      x <- x + RMS(Conv1(a SiLU(b))),     [a, b] = DWConv3(SiLU(Conv1(x)))
  (4)  down       x <- Conv3(x) with stride 2, or fold(Conv3(x));    + mean(fold(x))
  (5)  up         x <- Conv3(x twice as large), or unfold(Conv3(x)); + unfold(rep(x))
  (6)  encoder    Conv3, levels of (1) or (2) (3), each but the innermost with (4) at its end,
                  Conv3(x) + mean(x)
  (7)  decoder    Conv3(z) + rep(z), levels of (1) or (2) (3), each but the innermost with (5) at
                  its beginning, Conv3(ReLU(RMS(x)))

The last terms of (4) to (6), and rep(z), are the paper's residual autoencoding (section 3.2): what
is kept without parameters when positions become channels. A first level without blocks is left
out: a (4) takes the place of the first Conv3 of (6), and a (5) that of the last of (7), without
their last terms. (2) and (3) are EfficientViT's (arXiv 2205.14756).

Attributes have the names of diffusers' `AutoencoderDC`. As in `vae`, norms, the sums of (2) and the
residual stream are in float32 at least, and so are the layers at both ends.
"""

import dataclasses
import itertools
from typing import Any, ClassVar

from flax import nnx
import jax

from diversedit_jax import types
from diversedit_jax.data import latents
from diversedit_jax.frozen import autoencoders, vae_kinds, vae_layers
from diversedit_jax.frozen import dcae_layers as layers

BLOCKS = ('ResBlock', 'EfficientViTBlock')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
  """One resolution of one half.

  width: its channels. depth: blocks in it; 0 in the first alone, which is then left out.
  block: one of `BLOCKS`. scales: sizes of the neighbourhoods of (2), beside that of one position.
  norm, activation: of its blocks, names in `layers.NORMS` and `layers.ACTIVATIONS`.
  """

  width: int
  depth: int
  block: str
  scales: tuple[int, ...] = ()
  norm: str = 'rms_norm'
  activation: str = 'silu'


@dataclasses.dataclass(frozen=True, kw_only=True)
class DCAEConfig:
  """Sizes of an autoencoder, and the scaling of its latents.

  encoder, decoder: levels of each half, from the pixels to the latents.
  head: channels of a head in (2).
  down_folds, up_folds: whether (4) and (5) fold, or else have a stride and double.
  out_shortcut, in_shortcut: whether (6) ends, and (7) begins, with its second term.
  last_activation: the ReLU of (7).
  scale, shift: arguments of `data.latents.Scaling`, one number or one per latent channel.

  Raises:
    UserError: sizes do not fit together; it names the entries of `config.json` (`dcae_files`).
  """

  encoder: tuple[Level, ...]
  decoder: tuple[Level, ...]
  latent_channels: int
  image_channels: int = 3
  head: int = 32
  down_folds: bool = True
  up_folds: bool = True
  out_shortcut: bool = True
  in_shortcut: bool = True
  last_activation: str = 'relu'
  scale: float | tuple[float, ...]
  shift: float | tuple[float, ...] = 0.0

  drawn: ClassVar[bool] = False

  def __post_init__(self):
    def require(fits, message):
      if not fits:
        raise types.UserError(f'DC-AE: {message}')

    halves = {'encoder': self.encoder, 'decoder': self.decoder}
    counts = [len(half) for half in halves.values()]
    require(
      counts[0] == counts[1] > 1,
      f'encoder_block_out_channels has {counts[0]} levels and decoder_block_out_channels '
      f'{counts[1]}; expected as many, and at least 2',
    )
    shortcuts = {'encoder_out_shortcut': self.out_shortcut, 'decoder_in_shortcut': self.in_shortcut}
    for (half, levels), (key, shortcut) in zip(halves.items(), shortcuts.items(), strict=True):
      widths = f'{half}_block_out_channels'
      for i, level in enumerate(levels):
        require(
          level.depth or not i,
          f'{half}_layers_per_block has {level.depth} for level {i}; only level 0 may have none',
        )
        require(
          level.block != 'EfficientViTBlock' or not level.depth or level.width >= self.head,
          f'attention_head_dim={self.head} is more than the {level.width} channels of level {i} in '
          f'{widths}',
        )
      for i, (outer, inner) in enumerate(itertools.pairwise(levels)):
        require(
          not outer.depth or 4 * outer.width % inner.width == 0,
          f'{widths} has {inner.width} for level {i + 1}, which does not divide 4 x {outer.width}, '
          f'four positions of level {i}',
        )
      require(
        not shortcut or not levels[-1].width % self.latent_channels,
        f'latent_channels={self.latent_channels} does not divide {levels[-1].width}, the last of '
        f'{widths}, as {key} needs it',
      )
    for i, level in enumerate(self.encoder[1:], 1):
      require(
        not self.down_folds or level.width % 4 == 0,
        f'encoder_block_out_channels has {level.width} for level {i}; expected a multiple of 4, '
        'which downsample_block_type=pixel_unshuffle folds',
      )
    vae_kinds.check_scaling('DC-AE', self.scale, self.shift, self.latent_channels)

  @property
  def factor(self) -> int:
    """Pixels per latent position, along a side."""
    return 2 ** (len(self.encoder) - 1)

  @property
  def scaling(self) -> latents.Scaling:
    """The map from the latents of this autoencoder to those that a diffusion model sees."""
    return latents.Scaling(scale=self.scale, shift=self.shift)

  def facts(self) -> dict[str, Any]:
    """The fields as JSON has them, for the plan of a store."""
    return dataclasses.asdict(self)

  def network(self, *, rngs: autoencoders.Keys, dtype: str) -> 'DCAE':
    """The network, with weights of no meaning."""
    return DCAE(self, rngs=rngs, dtype=dtype)


class DCAE(nnx.Module):
  """Both halves, with matrix products in a dtype.

  Raises:
    UserError: the dtype is unknown, or is 'float64' without jax_enable_x64.
  """

  def __init__(self, config: DCAEConfig, *, rngs: autoencoders.Keys, dtype: str = 'float32'):
    vae_layers.check_dtype(dtype)
    self.config = config
    self.encoder = Encoder(config, layers.Make(dtype, rngs))
    self.decoder = Decoder(config, layers.Make(dtype, rngs))

  def encode(self, x_NHWC: jax.Array) -> jax.Array:
    """Maps pixels in [-1, 1] to latents [N, H/f, W/f, C] without scaling.

    Raises:
      UserError: a side is not a multiple of the factor f.
    """
    vae_layers.check_image(x_NHWC, self.config.image_channels, self.config.factor)
    return self.encoder(x_NHWC)

  def decode(self, z_NHWC: jax.Array) -> jax.Array:
    """Maps latents without scaling (`Scaling.undo`) to pixels around [-1, 1], not clipped."""
    types.check('z', z_NHWC, 'N H W C', C=self.config.latent_channels)
    return self.decoder(z_NHWC)


class Encoder(nnx.Module):
  """The encoder (6)."""

  def __init__(self, config: DCAEConfig, make: layers.Make):
    levels, folds, pixels = config.encoder, config.down_folds, config.image_channels
    self.shortcut = config.out_shortcut
    if levels[0].depth:
      self.conv_in = make.wide.conv(pixels, levels[0].width)
    else:
      self.conv_in = layers.Down(make.wide, pixels, levels[1].width, folds=folds, shortcut=False)
    self.down_blocks = nnx.List(nnx.List(_blocks(make, level, config.head)) for level in levels)
    for level, after, blocks in zip(levels, levels[1:], self.down_blocks, strict=False):
      if level.depth:
        blocks.append(layers.Down(make, level.width, after.width, folds=folds))
    self.conv_out = make.wide.conv(levels[-1].width, config.latent_channels)

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    x = self.conv_in(x_NHWC)
    for level in self.down_blocks:
      for layer in level:
        x = layer(x)
    z = self.conv_out(x)
    return z + layers.averaged(x, z.shape[-1]) if self.shortcut else z


class Decoder(nnx.Module):
  """The decoder (7)."""

  def __init__(self, config: DCAEConfig, make: layers.Make):
    levels, folds, pixels = config.decoder, config.up_folds, config.image_channels
    self.shortcut = config.in_shortcut
    self.conv_in = make.wide.conv(config.latent_channels, levels[-1].width)
    self.up_blocks = nnx.List(nnx.List(_blocks(make, level, config.head)) for level in levels)
    for level, before, blocks in zip(levels, levels[1:], self.up_blocks, strict=False):
      if level.depth:
        blocks.insert(0, layers.Up(make, before.width, level.width, folds=folds))
    outer = levels[0] if levels[0].depth else levels[1]
    self.norm_out = layers.RmsNorm(outer.width)
    self.activation = config.last_activation
    if levels[0].depth:
      self.conv_out = make.wide.conv(outer.width, pixels)
    else:
      self.conv_out = layers.Up(make.wide, outer.width, pixels, folds=folds, shortcut=False)

  def __call__(self, z_NHWC: jax.Array) -> jax.Array:
    x = self.conv_in(z_NHWC)
    x = x + layers.repeated(z_NHWC, x.shape[-1]) if self.shortcut else x
    for level in reversed(self.up_blocks):
      for layer in level:
        x = layer(x)
    return self.conv_out(layers.ACTIVATIONS[self.activation](self.norm_out(x)))


def _blocks(make, level, head):
  for _ in range(level.depth):
    if level.block == 'ResBlock':
      yield layers.ResBlock(make, level.width, norm=level.norm, activation=level.activation)
    else:
      yield layers.EfficientViTBlock(
        make, level.width, head=head, scales=level.scales, norm=level.norm
      )
