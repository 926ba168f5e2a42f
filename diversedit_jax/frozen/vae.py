"""The variational autoencoder of latent diffusion (arXiv 2112.10752) and its relatives, frozen.

The encoder maps an image x in [-1, 1] to the moments of a normal distribution, on a grid that is
2^(levels - 1) times smaller along a side (`data.latents` draws from it); the decoder maps a latent
z to an image. Down is a Conv3 with stride 2 that pads only at the bottom and at the right, Up
repeats every position 2x2 and applies a Conv3:

  (1)  block      x <- Shortcut(x) + Conv3(SiLU(GN(Conv3(SiLU(GN(x))))))
  (2)  attention  x <- x + Out(softmax(q k / sqrt(C)) v),  q, k, v = Linear(GN(x))
  (3)  encoder    Conv3, levels of (1) with Down between them, (1) (2) (1), Conv3(SiLU(GN(x)))
  (4)  decoder    Conv3, (1) (2) (1), levels of (1) with Up between them, Conv3(SiLU(GN(x)))

In a level with attention, (2) follows each (1). SD-VAE, SDXL's, SD3's and FLUX's have none; VA-VAE
and REPA-E's have it in the last level, where 256 pixels are 16 (`vae_kinds` has their sizes).

Attributes have the names of diffusers' `AutoencoderKL`, so that the names of weights follow
mechanically (`vae_files`). Norms, softmax and the residual stream are in float32 at least, and so
are the thin layers at both ends: they cost nothing and decide the last bits of pixels and latents.
"""

import dataclasses
from typing import Any, ClassVar

from flax import nnx
import jax

from diversedit_jax import types
from diversedit_jax.data import latents
from diversedit_jax.frozen import autoencoders, vae_kinds
from diversedit_jax.frozen import vae_layers as layers

DTYPES = layers.DTYPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class VAEConfig:
  """Sizes of an autoencoder, and the scaling of its latents.

  block_channels: width of each level, from the pixels to the latents.
  layers_per_block: residual blocks in a level of the encoder; the decoder's levels have one more.
  norm_groups: number of groups in every GroupNorm.
  scale, shift: arguments of `data.latents.Scaling`, one number or one per latent channel.
  quant_conv: whether a 1x1 convolution follows the encoder.
  post_quant_conv: whether a 1x1 convolution precedes the decoder.
  encoder_attention, decoder_attention: the levels with attention, 0 being that of the pixels.
  """

  image_channels: int = 3
  latent_channels: int = 4
  block_channels: tuple[int, ...] = (128, 256, 512, 512)
  layers_per_block: int = 2
  norm_groups: int = 32
  scale: float | tuple[float, ...] = 0.18215
  shift: float | tuple[float, ...] = 0.0
  quant_conv: bool = True
  post_quant_conv: bool = True
  encoder_attention: tuple[int, ...] = ()
  decoder_attention: tuple[int, ...] = ()

  drawn: ClassVar[bool] = True

  def __post_init__(self):
    def require(fits, message):
      if not fits:
        raise types.UserError(f'VAE: {message}')

    for name in ('block_channels', 'scale', 'shift'):
      if isinstance(getattr(self, name), list):
        object.__setattr__(self, name, tuple(getattr(self, name)))
    require(self.block_channels, 'block_channels must name at least one level, found none')
    counts = ('image_channels', 'latent_channels', 'layers_per_block', 'norm_groups')
    for name in (*counts, 'block_channels'):
      for count in jax.tree.leaves(getattr(self, name)):
        whole = isinstance(count, int) and count >= 1
        require(whole, f'{name} must be whole numbers from 1, found {count!r}')
    require(
      all(width % self.norm_groups == 0 for width in self.block_channels),
      f'norm_groups={self.norm_groups} does not divide every width of {self.block_channels}; the '
      'right number is norm_num_groups in the config.json published with the weights',
    )
    vae_kinds.check_scaling('VAE', self.scale, self.shift, self.latent_channels)

  @property
  def factor(self) -> int:
    """Pixels per latent position, along a side."""
    return 2 ** (len(self.block_channels) - 1)

  def facts(self) -> dict[str, Any]:
    """The fields as JSON has them, for the plan of a store; no attention is left out, as before."""
    fields = dataclasses.asdict(self)
    late = ('encoder_attention', 'decoder_attention')
    return {name: value for name, value in fields.items() if name not in late or value}

  @property
  def scaling(self) -> latents.Scaling:
    """The map from the latents of this autoencoder to those that a diffusion model sees."""
    return latents.Scaling(scale=self.scale, shift=self.shift)

  def network(self, *, rngs: autoencoders.Keys, dtype: str) -> 'VAE':
    """The network, with weights of no meaning."""
    return VAE(self, rngs=rngs, dtype=dtype)


def flops(config: VAEConfig, height: int, width: int) -> tuple[float, float]:
  """FLOPs (encode, decode) for one image with so many pixels, a multiply-add being 2."""
  widths, depth, latent = config.block_channels, config.layers_per_block, config.latent_channels
  last, outer, inner = len(widths) - 1, widths[0], widths[-1]
  pixels = [height * width / 4**i for i in range(len(widths))]
  conv = lambda inputs, outputs, p, size=3: 2 * size**2 * inputs * outputs * p

  def blocks(inputs, outputs, p, count):
    shortcut = conv(inputs, outputs, p, 1) if inputs != outputs else 0
    return conv(inputs, outputs, p) + shortcut + (2 * count - 1) * conv(outputs, outputs, p)

  attention = lambda width, p: 4 * conv(width, width, p, 1) + 4 * p * p * width
  p = pixels[-1]
  middle = 2 * blocks(inner, inner, p, 1) + attention(inner, p)
  encode = conv(config.image_channels, outer, pixels[0]) + middle + conv(inner, 2 * latent, p)
  decode = conv(latent, inner, p) + middle + conv(outer, config.image_channels, pixels[0])
  for i, w in enumerate(widths):
    encode += blocks(widths[max(i - 1, 0)], w, pixels[i], depth)
    decode += blocks(widths[min(i + 1, last)], w, pixels[i], depth + 1)
  for i in range(last):
    encode += conv(widths[i], widths[i], pixels[i + 1])
    decode += conv(widths[i + 1], widths[i + 1], pixels[i])
  for i in config.encoder_attention:
    encode += depth * attention(widths[i], pixels[i])
  for i in config.decoder_attention:
    decode += (depth + 1) * attention(widths[i], pixels[i])
  encode += config.quant_conv * conv(2 * latent, 2 * latent, p, 1)
  decode += config.post_quant_conv * conv(latent, latent, p, 1)
  return float(encode), float(decode)


class VAE(nnx.Module):
  """Both halves, with matrix products in a dtype.

  Raises:
    UserError: the dtype is unknown, or is 'float64' without jax_enable_x64.
  """

  def __init__(self, config: VAEConfig, *, rngs: autoencoders.Keys, dtype: str = 'float32'):
    layers.check_dtype(dtype)
    self.config = config
    self.encoder = Encoder(config, rngs=rngs, dtype=dtype)
    self.decoder = Decoder(config, rngs=rngs, dtype=dtype)
    conv, c = layers.Make(config.norm_groups, dtype, rngs).wide.conv, config.latent_channels
    self.quant_conv = conv(2 * c, 2 * c, 1) if config.quant_conv else None
    self.post_quant_conv = conv(c, c, 1) if config.post_quant_conv else None

  def encode(self, x_NHWC: jax.Array) -> jax.Array:
    """Maps pixels in [-1, 1] to moments [N, H/f, W/f, 2C]: means, then logarithms of variances.

    Raises:
      UserError: a side is not a multiple of the factor f.
    """
    layers.check_image(x_NHWC, self.config.image_channels, self.config.factor)
    moments = self.encoder(x_NHWC)
    return moments if self.quant_conv is None else self.quant_conv(moments)

  def decode(self, z_NHWC: jax.Array) -> jax.Array:
    """Maps latents without scaling (`Scaling.undo`) to pixels around [-1, 1], not clipped."""
    types.check('z', z_NHWC, 'N H W C', C=self.config.latent_channels)
    return self.decoder(z_NHWC if self.post_quant_conv is None else self.post_quant_conv(z_NHWC))


class Encoder(nnx.Module):
  """The encoder (3), without the 1x1 convolution after it."""

  def __init__(self, config: VAEConfig, *, rngs: autoencoders.Keys, dtype: str):
    make, widths = layers.Make(config.norm_groups, dtype, rngs), config.block_channels
    last, blocks = len(widths) - 1, config.layers_per_block
    self.conv_in = make.wide.conv(config.image_channels, widths[0])
    self.down_blocks = nnx.List(
      layers.Level(
        make,
        widths[max(i - 1, 0)],
        width,
        blocks,
        attention=i in config.encoder_attention,
        down=i < last,
      )
      for i, width in enumerate(widths)
    )
    self.mid_block = layers.Middle(make, widths[-1])
    self.conv_norm_out = make.norm(widths[-1])
    self.conv_out = make.wide.conv(widths[-1], 2 * config.latent_channels)

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    x = self.conv_in(x_NHWC)
    for level in self.down_blocks:
      x = level(x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
  """The decoder (4), without the 1x1 convolution before it."""

  def __init__(self, config: VAEConfig, *, rngs: autoencoders.Keys, dtype: str):
    make, widths = layers.Make(config.norm_groups, dtype, rngs), config.block_channels[::-1]
    last, blocks = len(widths) - 1, config.layers_per_block + 1
    self.conv_in = make.wide.conv(config.latent_channels, widths[0])
    self.mid_block = layers.Middle(make, widths[0])
    self.up_blocks = nnx.List(
      layers.Level(
        make,
        widths[max(i - 1, 0)],
        width,
        blocks,
        attention=last - i in config.decoder_attention,
        up=i < last,
      )
      for i, width in enumerate(widths)
    )
    self.conv_norm_out = make.norm(widths[-1])
    self.conv_out = make.wide.conv(widths[-1], config.image_channels)

  def __call__(self, z_NHWC: jax.Array) -> jax.Array:
    x = self.mid_block(self.conv_in(z_NHWC))
    for level in self.up_blocks:
      x = level(x)
    return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))
