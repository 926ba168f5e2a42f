"""Layers of the VAE: equations (1) and (2) of `vae`, and the steps between resolutions."""

import functools
import math
from typing import Any, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import trees, types
from diversedit_jax.frozen import autoencoders

DTYPES = ('float32', 'bfloat16', 'float64')
NORM_EPSILON = 1e-6


class Make(NamedTuple):
  """Arguments of every layer: groups of its norms, dtype of its products, random numbers."""

  groups: int
  dtype: str
  rngs: autoencoders.Keys

  @property
  def wide(self) -> 'Make':
    return self._replace(dtype='float32' if self.dtype == 'bfloat16' else self.dtype)

  def norm(self, width: int) -> nnx.GroupNorm:
    # Without a dtype, the norm takes that of its input and parameters, float32 at least.
    return nnx.GroupNorm(
      width, self.groups, epsilon=NORM_EPSILON, use_fast_variance=False, rngs=self.rngs
    )

  def conv(self, inputs: int, outputs: int, size: int = 3, stride: int = 1) -> nnx.Conv:
    edge = (0, 1) if stride == 2 else (size // 2, size // 2)
    return nnx.Conv(
      inputs,
      outputs,
      (size, size),
      strides=stride,
      padding=(edge, edge),
      dtype=jnp.dtype(self.dtype),
      precision=precision(self.dtype),
      rngs=self.rngs,
    )

  def linear(self, width: int) -> nnx.Linear:
    return nnx.Linear(
      width, width, dtype=jnp.dtype(self.dtype), precision=precision(self.dtype), rngs=self.rngs
    )


class Level(nnx.Module):
  """Blocks (1) at one resolution, maybe each with (2), followed by Down, Up or neither."""

  def __init__(
    self, make, inputs: int, width: int, layers: int, *, attention=False, down=False, up=False
  ):
    self.resnets = nnx.List(Resnet(make, width if i else inputs, width) for i in range(layers))
    self.attentions = nnx.List(Attention(make, width) for _ in range(layers if attention else 0))
    self.downsamplers = nnx.List([Down(make, width)] if down else [])
    self.upsamplers = nnx.List([Up(make, width)] if up else [])

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    for i, resnet in enumerate(self.resnets):
      x_NHWC = resnet(x_NHWC)
      if self.attentions:
        x_NHWC = self.attentions[i](x_NHWC)
    for layer in (*self.downsamplers, *self.upsamplers):
      x_NHWC = layer(x_NHWC)
    return x_NHWC


class Middle(nnx.Module):
  """The layers (1) (2) (1) at the resolution of the latents."""

  def __init__(self, make, width: int):
    self.resnets = nnx.List([Resnet(make, width, width), Resnet(make, width, width)])
    self.attentions = nnx.List([Attention(make, width)])

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    return self.resnets[1](self.attentions[0](self.resnets[0](x_NHWC)))


class Resnet(nnx.Module):
  """A block (1); the shortcut is a 1x1 convolution where the width changes, else the identity."""

  def __init__(self, make, inputs: int, width: int):
    self.norm1, self.conv1 = make.norm(inputs), make.conv(inputs, width)
    self.norm2, self.conv2 = make.norm(width), make.conv(width, width)
    self.conv_shortcut = make.conv(inputs, width, 1) if inputs != width else None

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    h = self.conv1(jax.nn.silu(self.norm1(x_NHWC)))
    h = self.conv2(jax.nn.silu(self.norm2(h)))
    skip = x_NHWC if self.conv_shortcut is None else self.conv_shortcut(x_NHWC)
    return skip.astype(x_NHWC.dtype) + h.astype(x_NHWC.dtype)


class Attention(nnx.Module):
  """Attention (2) over all positions, with one head that is as wide as the layer."""

  def __init__(self, make, width: int):
    self.group_norm = make.norm(width)
    self.to_q, self.to_k, self.to_v = (make.linear(width) for _ in range(3))
    self.to_out = nnx.List([make.linear(width)])

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    n, h, w, c = x_NHWC.shape
    y_NTC = self.group_norm(x_NHWC).reshape(n, h * w, c)
    q, k, v = self.to_q(y_NTC), self.to_k(y_NTC), self.to_v(y_NTC)
    product = functools.partial(
      jnp.einsum, precision=precision(q.dtype), preferred_element_type=x_NHWC.dtype
    )
    logits_NTS = product('NTC,NSC->NTS', q, k) / math.sqrt(c)
    out_NTC = product('NTS,NSC->NTC', jax.nn.softmax(logits_NTS).astype(v.dtype), v)
    return x_NHWC + self.to_out[0](out_NTC).reshape(x_NHWC.shape).astype(x_NHWC.dtype)


class Down(nnx.Module):
  """A convolution that halves the rows and the columns."""

  def __init__(self, make, width: int):
    self.conv = make.conv(width, width, stride=2)

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    return self.conv(x_NHWC).astype(x_NHWC.dtype)


class Up(nnx.Module):
  """A convolution after doubling the rows and the columns."""

  def __init__(self, make, width: int):
    self.conv = make.conv(width, width)

  def __call__(self, x_NHWC: jax.Array) -> jax.Array:
    n, h, w, c = x_NHWC.shape
    # Rounded before it is repeated: four times less to move.
    x = x_NHWC.astype(self.conv.dtype)[:, :, None, :, None]
    x = jnp.broadcast_to(x, (n, h, 2, w, 2, c)).reshape(n, 2 * h, 2 * w, c)
    return self.conv(x).astype(x_NHWC.dtype)


def check_dtype(dtype: str) -> None:
  """Refuses a dtype of products that is unknown, or float64 without jax_enable_x64 (UserError)."""
  trees.check_known('dtype of the autoencoder', dtype, DTYPES)
  if dtype == 'float64' and not jax.config.jax_enable_x64:
    raise types.UserError('the autoencoder computes in float64 only with JAX_ENABLE_X64=1')


def check_image(x_NHWC: jax.Array, channels: int, factor: int) -> None:
  """Refuses images of other channels, or with a side that a factor does not divide (UserError)."""
  types.check('x', x_NHWC, 'N H W C', C=channels)
  height, width = x_NHWC.shape[1:3]
  if height % factor or width % factor:
    raise types.UserError(
      f'the autoencoder encodes images with sides divisible by {factor}; found {height}x{width}; '
      'crop or resize them first'
    )


def precision(dtype: Any) -> jax.lax.Precision | None:
  """Full float32 precision, where TPUs and TF32 would drop bits; bfloat16 needs no setting."""
  return None if jnp.dtype(dtype) == jnp.bfloat16 else jax.lax.Precision.HIGHEST
