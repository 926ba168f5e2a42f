"""Layers of the deep compression autoencoder: equations (1) to (5) of `dcae`."""

from collections.abc import Sequence
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax.frozen import autoencoders, vae_layers

NORM_EPSILON, ATTENTION_EPSILON = 1e-5, 1e-15
EXPANSION = 4  # How many times wider the convolutions (3) are inside.
# Weights come from files; tracing random ones would take seconds.
_ZEROS = nnx.initializers.zeros_init()
ACTIVATIONS = {'relu': jax.nn.relu, 'silu': jax.nn.silu}


class Make(NamedTuple):
  """Arguments of every layer: dtype of its products, random numbers."""

  dtype: str
  rngs: autoencoders.Keys

  @property
  def wide(self) -> 'Make':
    return self._replace(dtype='float32' if self.dtype == 'bfloat16' else self.dtype)

  def conv(
    self,
    inputs: int,
    outputs: int,
    size: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    bias: bool = True,
  ) -> nnx.Conv:
    return nnx.Conv(
      inputs,
      outputs,
      (size, size),
      strides=stride,
      padding=size // 2,
      feature_group_count=groups,
      use_bias=bias,
      kernel_init=_ZEROS,
      dtype=jnp.dtype(self.dtype),
      precision=vae_layers.precision(self.dtype),
      rngs=self.rngs,
    )

  def linear(self, inputs: int, outputs: int) -> nnx.Linear:
    return nnx.Linear(
      inputs,
      outputs,
      use_bias=False,
      kernel_init=_ZEROS,
      dtype=jnp.dtype(self.dtype),
      precision=vae_layers.precision(self.dtype),
      rngs=self.rngs,
    )


class RmsNorm(nnx.Module):
  """w x / sqrt(mean x^2 + e) + b over channels, in float32 at least."""

  def __init__(self, width: int):
    self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    x = _wide(x_NHWC)
    square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return _affine(x * jax.lax.rsqrt(square + NORM_EPSILON), self.scale[...], self.bias[...])


class BatchNorm(nnx.Module):
  """w (x - mean) / sqrt(var + e) + b with the statistics of training, in float32 at least."""

  def __init__(self, width: int):
    self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))
    self.running_mean, self.running_var = nnx.Param(jnp.zeros(width)), nnx.Param(jnp.ones(width))

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    scale = self.scale[...] * jax.lax.rsqrt(self.running_var[...] + NORM_EPSILON)
    return _affine(_wide(x_NHWC), scale, self.bias[...] - self.running_mean[...] * scale)


NORMS = {'rms_norm': RmsNorm, 'batch_norm': BatchNorm}


class ResBlock(nnx.Module):
  """A block (1)."""

  def __init__(self, make: Make, width: int, *, norm: str, activation: str):
    self.conv1, self.conv2 = make.conv(width, width), make.conv(width, width, bias=False)
    self.norm = NORMS[norm](width)
    self.activation = activation

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    h = self.conv2(ACTIVATIONS[self.activation](self.conv1(x_NHWC)))
    return x_NHWC + self.norm(h).astype(x_NHWC.dtype)


class EfficientViTBlock(nnx.Module):
  """Attention (2) and then convolutions (3)."""

  def __init__(self, make: Make, width: int, *, head: int, scales: Sequence[int], norm: str):
    self.attn = LinearAttention(make, width, head=head, scales=scales, norm=norm)
    self.conv_out = GatedConvs(make, width)

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    return self.conv_out(self.attn(x_NHWC))


class LinearAttention(nnx.Module):
  """Attention (2) over all positions, at several scales.

  One matrix makes all of q, k and v, and each further scale gathers them from its neighbourhood:
  a convolution of each channel alone, then a matrix for each head's q, for its k and for its v.
  `to_q`, `to_k` and `to_v` are thirds of that one matrix, not q, k and v: what they make, side by
  side, is cut into (q, k, v) of the first head, of the second, and so on.
  """

  def __init__(self, make: Make, width: int, *, head: int, scales: Sequence[int], norm: str):
    self.head, inner = head, width // head * head
    self.to_q, self.to_k, self.to_v = (make.linear(width, inner) for _ in range(3))
    self.to_qkv_multiscale = nnx.List(Gather(make, inner, head, size) for size in scales)
    self.to_out = make.linear(inner * (1 + len(scales)), width)
    self.norm_out = NORMS[norm](width)

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    n, h, w, _ = x_NHWC.shape
    qkv = jnp.concatenate([make(x_NHWC) for make in (self.to_q, self.to_k, self.to_v)], axis=-1)
    qkv = jnp.concatenate([qkv, *(gather(qkv) for gather in self.to_qkv_multiscale)], axis=-1)
    # In float32 at least: sums over all positions follow, and a quotient.
    q, k, v = jnp.moveaxis(_wide(qkv).reshape(n, h * w, -1, 3, self.head), 3, 0)
    q, k, exact = jax.nn.relu(q), jax.nn.relu(k), jax.lax.Precision.HIGHEST
    sums_NGDE = jnp.einsum('NTGD,NTGE->NGDE', k, v, precision=exact)
    above = jnp.einsum('NTGD,NGDE->NTGE', q, sums_NGDE, precision=exact)
    below = jnp.einsum('NTGD,NGD->NTG', q, k.sum(axis=1), precision=exact)[..., None]
    out_NHWC = (above / (below + ATTENTION_EPSILON)).reshape(n, h, w, -1)
    return x_NHWC + self.norm_out(self.to_out(out_NHWC)).astype(x_NHWC.dtype)


class Gather(nnx.Module):
  """The q, k and v of all heads from neighbourhoods of size x size positions."""

  def __init__(self, make: Make, inner: int, head: int, size: int):
    width = 3 * inner
    self.proj_in = make.conv(width, width, size, groups=width, bias=False)
    self.proj_out = make.conv(width, width, 1, groups=width // head, bias=False)

  def __call__(self, qkv_NHWC: jax.Array) -> jax.Array:
    return self.proj_out(self.proj_in(qkv_NHWC))


class GatedConvs(nnx.Module):
  """The convolutions (3)."""

  def __init__(self, make: Make, width: int):
    inner = EXPANSION * width
    self.conv_inverted = make.conv(width, 2 * inner, 1)
    self.conv_depth = make.conv(2 * inner, 2 * inner, groups=2 * inner)
    self.conv_point = make.conv(inner, width, 1, bias=False)
    self.norm = RmsNorm(width)

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    h = self.conv_depth(jax.nn.silu(self.conv_inverted(x_NHWC)))
    h, gate = jnp.split(h, 2, axis=-1)
    h = self.conv_point(h * jax.nn.silu(gate))
    return x_NHWC + self.norm(h).astype(x_NHWC.dtype)


class Down(nnx.Module):
  """The step (4) down; `folds`: four positions become channels after the convolution."""

  def __init__(self, make: Make, inputs: int, outputs: int, *, folds: bool, shortcut: bool = True):
    self.folds, self.shortcut, self.outputs = folds, shortcut, outputs
    stride = {} if folds else {'stride': 2}
    self.conv = make.conv(inputs, outputs // 4 if folds else outputs, **stride)

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    h = self.conv(x_NHWC).astype(x_NHWC.dtype)
    h = fold(h) if self.folds else h
    return h + averaged(fold(x_NHWC), self.outputs) if self.shortcut else h


class Up(nnx.Module):
  """The step (5) up; `folds`: channels become four positions after the convolution."""

  def __init__(self, make: Make, inputs: int, outputs: int, *, folds: bool, shortcut: bool = True):
    self.folds, self.shortcut, self.outputs = folds, shortcut, outputs
    self.conv = make.conv(inputs, 4 * outputs if folds else outputs)

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    x = x_NHWC.astype(self.conv.dtype)
    h = unfold(self.conv(x)) if self.folds else self.conv(unfold(jnp.repeat(x, 4, axis=-1)))
    h = h.astype(x_NHWC.dtype)
    return h + unfold(repeated(x_NHWC, 4 * self.outputs)) if self.shortcut else h


def fold(x_NHWC: jax.Array) -> jax.Array:
  """[N, H, W, C] -> [N, H/2, W/2, 4C]: a channel becomes four, the 2x2 positions by rows."""
  n, h, w, c = x_NHWC.shape
  x = x_NHWC.reshape(n, h // 2, 2, w // 2, 2, c)
  return x.transpose(0, 1, 3, 5, 2, 4).reshape(n, h // 2, w // 2, 4 * c)


def unfold(x_NHWC: jax.Array) -> jax.Array:
  """[N, H, W, 4C] -> [N, 2H, 2W, C], the inverse of `fold`."""
  n, h, w, c = x_NHWC.shape
  x = x_NHWC.reshape(n, h, w, c // 4, 2, 2)
  return x.transpose(0, 1, 4, 2, 5, 3).reshape(n, 2 * h, 2 * w, c // 4)


def averaged(x_NHWC: jax.Array, channels: int) -> jax.Array:
  """Means of neighbouring channels, so many."""
  *shape, c = x_NHWC.shape
  return x_NHWC.reshape(*shape, channels, c // channels).mean(axis=-1)


def repeated(x_NHWC: jax.Array, channels: int) -> jax.Array:
  """Each channel several times in a row, until there are so many."""
  return jnp.repeat(x_NHWC, channels // x_NHWC.shape[-1], axis=-1)


def _wide(x):
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _affine(x_NHWC, scale_C, bias_C):
  return x_NHWC * scale_C[None, None, None] + bias_C[None, None, None]
