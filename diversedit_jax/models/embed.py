"""Into and out of tokens: patches, the fixed position table, time and label embeddings.

Sources: DiT (arXiv 2212.09748), SiT (2401.08740), REPA (2410.06940) and their PyTorch code.
"""

from typing import ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import sharding
from diversedit_jax.interpolants import ddpm

TIME_FREQUENCIES = 256
MAX_PERIOD = 10_000.0
TIME_INPUTS = {'unit': lambda t_N: t_N, 'ddpm': ddpm.index}
"""What the embedding of time sees: t itself (SiT and its kin), or the step of DiT's diffusion."""

XAVIER = nnx.initializers.xavier_uniform()
"""On the [in, out] matrix, as every linear layer of DiT that is not zeroed."""


def xavier(*axes: str | None) -> nnx.Initializer:
  """`XAVIER` that carries logical axis names."""
  return sharding.annotated(XAVIER, *axes)


def zeros(*axes: str | None) -> nnx.Initializer:
  """Zeros that carry logical axis names."""
  return sharding.annotated(nnx.initializers.zeros, *axes)


def ones(*axes: str | None) -> nnx.Initializer:
  """Ones that carry logical axis names."""
  return sharding.annotated(nnx.initializers.ones, *axes)


def normal(*axes: str | None) -> nnx.Initializer:
  """N(0, 0.02^2), for the label table and the time MLP."""
  return sharding.annotated(nnx.initializers.normal(0.02), *axes)


def position_table(rows: int, cols: int, width: int) -> np.ndarray:
  """Fixed sine-cosine table [T, D] float32, tokens in row-major order.

  The first half of a row encodes the column and the second half the row, each as [sin, cos] of
  position * 10000^(-k / (D/4)); computed in float64 as in the reference.
  """
  if width % 4:
    raise ValueError(f'the position table needs a width divisible by 4, got {width}')
  omega = MAX_PERIOD ** (-np.arange(width // 4, dtype=np.float64) / (width // 4))
  row, col = np.meshgrid(np.arange(rows), np.arange(cols), indexing='ij')
  halves = [np.outer(position.reshape(-1), omega) for position in (col, row)]
  table = np.concatenate([f(angles) for angles in halves for f in (np.sin, np.cos)], axis=1)
  return table.astype(np.float32)


def patchify(x_NHWC: jax.Array, patch: int) -> jax.Array:
  """[N, H, W, C] -> [N, T, P*P*C]; a token holds (row in patch, column in patch, channel)."""
  n, h, w, c = x_NHWC.shape
  x = x_NHWC.reshape(n, h // patch, patch, w // patch, patch, c)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, patch * patch * c)


def unpatchify(x_NTP: jax.Array, patch: int, height: int, width: int) -> jax.Array:
  """[N, T, P*P*C] -> [N, H, W, C], the inverse of `patchify`."""
  n = x_NTP.shape[0]
  x = x_NTP.reshape(n, height // patch, width // patch, patch, patch, -1)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, height, width, -1)


def time_features(t_N: jax.Array) -> jax.Array:
  """Sinusoids [N, 256] of unscaled times: cosines first, then sines, in float32."""
  half = TIME_FREQUENCIES // 2
  frequencies = np.exp(-np.log(MAX_PERIOD) * np.arange(half) / half).astype(np.float32)
  angles = t_N.astype(jnp.float32)[:, None] * frequencies[None]
  return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


class TimeEmbed(nnx.Module):
  """t_N -> [N, D]: sinusoids, Linear, SiLU, Linear.

  features: number of sinusoids.
  """

  features: ClassVar[int] = TIME_FREQUENCIES

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    bias = zeros('embed')
    self.fc1 = nnx.Linear(
      self.features, width, kernel_init=normal(None, 'embed'), bias_init=bias, rngs=rngs
    )
    self.fc2 = nnx.Linear(
      width, width, kernel_init=normal(None, 'embed'), bias_init=bias, rngs=rngs
    )

  def __call__(self, t_N: jax.Array) -> jax.Array:
    return self.fc2(jax.nn.silu(self.fc1(time_features(t_N))))


class GaussianTimeEmbed(nnx.Module):
  """t_N -> [N, D]: [sin(2 pi t W), cos(2 pi t W)] for fixed W ~ N(0, 1), Linear, SiLU, Linear.

  As RAE has it (arXiv 2510.11690), in float32 at least. features: number of sines and cosines.
  """

  features: ClassVar[int] = 2 * TIME_FREQUENCIES

  def __init__(self, width: int, *, rngs: nnx.Rngs):
    draw = sharding.annotated(nnx.initializers.normal(1.0), None)
    self.frequencies = nnx.Param(draw(rngs.params(), (TIME_FREQUENCIES,)), fixed=True)
    bias = zeros('embed')
    self.fc1 = nnx.Linear(
      self.features, width, kernel_init=normal(None, 'embed'), bias_init=bias, rngs=rngs
    )
    self.fc2 = nnx.Linear(
      width, width, kernel_init=normal(None, 'embed'), bias_init=bias, rngs=rngs
    )

  def __call__(self, t_N: jax.Array) -> jax.Array:
    frequencies = jax.lax.stop_gradient(self.frequencies[...])
    t_N = t_N.astype(jnp.promote_types(t_N.dtype, jnp.float32))
    angles = 2 * np.pi * t_N[:, None] * frequencies[None]
    features = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return self.fc2(jax.nn.silu(self.fc1(features)))


TIME_EMBEDS = {'sinusoids': TimeEmbed, 'gaussian': GaussianTimeEmbed}
"""By `model.time_features`."""


class ClassTokenEmbed(nnx.Module):
  """REG's class token (arXiv 2507.01467), [N, Z] -> [N, D]: Linear, then an affine LayerNorm."""

  def __init__(self, features: int, width: int, *, rngs: nnx.Rngs):
    self.proj = nnx.Linear(
      features, width, kernel_init=xavier(None, 'embed'), bias_init=zeros('embed'), rngs=rngs
    )
    self.norm = nnx.LayerNorm(
      width,
      epsilon=1e-6,
      use_fast_variance=False,
      scale_init=ones(None),
      bias_init=zeros(None),
      rngs=rngs,
    )

  def __call__(self, token_NZ: jax.Array) -> jax.Array:
    return self.norm(self.proj(token_NZ))


class LabelEmbed(nnx.Module):
  """y_N -> [N, D]: a table of K + 1 rows, the last one for the null label K.

  With no classes there is one row, which every example takes: an unconditional model.
  """

  def __init__(self, num_classes: int, width: int, *, rngs: nnx.Rngs):
    self.null_label = num_classes
    self.embedding = nnx.Param(normal('classes', 'embed')(rngs.params(), (num_classes + 1, width)))

  def __call__(self, y_N: jax.Array) -> jax.Array:
    return jnp.take(self.embedding[...], y_N, axis=0, mode='clip')
