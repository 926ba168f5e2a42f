"""What both kinds of autoencoder share: their sizes, weights and shapes (`vae` and `dcae`)."""

import dataclasses
import functools
from typing import Any, ClassVar, Protocol

from flax import nnx
import jax

from diversedit_jax.data import latents


class Keys(Protocol):
  """Where layers take the keys of their parameters, as nnx.Rngs.

  There is no other stream: a layer that asks for one, as dropout does, cannot be made by `shapes`,
  where `_OneKey` stands for nnx.Rngs. What is frozen has no such layers.
  """

  def params(self) -> jax.Array: ...


class Config(Protocol):
  """Sizes of an autoencoder of any kind, hashable: `vae.VAEConfig` or `dcae.DCAEConfig`.

  drawn: whether encoding gives the moments of latents that are drawn, or the latents themselves.
  factor: pixels per latent position, along a side.
  scale, shift: arguments of `data.latents.Scaling`. scaling: that of both.
  """

  drawn: ClassVar[bool]
  image_channels: int
  latent_channels: int
  scale: float | tuple[float, ...]
  shift: float | tuple[float, ...]

  @property
  def factor(self) -> int: ...

  @property
  def scaling(self) -> latents.Scaling: ...

  def facts(self) -> dict[str, Any]:
    """The fields as JSON has them, for the plan of a store."""

  def network(self, *, rngs: Keys, dtype: str) -> nnx.Module:
    """The network, which can `encode` and `decode`, with weights of no meaning."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Autoencoder:
  """An autoencoder with weights, made by `vae_files`; the weights are arguments, not constants.

  config: its sizes.
  params: weights as a nested dict of float32 numpy arrays.
  file: name of the file they came from.
  name: what it is, as 'SDXL VAE f8d4', or 'AutoencoderKL f8d4' for one that is not known.
  encoder_sha256, decoder_sha256: digests of the names and values in each half, its 1x1 convolution
    included; the same whatever the format and the naming of the file.
  dtype: dtype of the matrix products.
  """

  config: Config
  params: dict[str, Any]
  file: str
  encoder_sha256: str
  decoder_sha256: str
  dtype: str = 'float32'
  name: str = 'AutoencoderKL'

  def encode(self, params: Any, x_NHWC: jax.Array) -> jax.Array:
    """The network's `encode` as a pure function of the parameters."""
    return nnx.merge(_split(self.config, self.dtype)[0], params).encode(x_NHWC)

  def decode(self, params: Any, z_NHWC: jax.Array) -> jax.Array:
    """The network's `decode` as a pure function of the parameters."""
    return nnx.merge(_split(self.config, self.dtype)[0], params).decode(z_NHWC)


def shapes(config: Config) -> dict[str, Any]:
  """The parameters as jax.ShapeDtypeStruct; lists are dicts with keys 0, 1, ..."""
  return _split(config, 'float32')[1]


class _OneKey:
  """The same key for all parameters: shapes need no more, and tracing nnx.Rngs takes seconds."""

  def params(self) -> jax.Array:
    return jax.random.key(0)


@functools.cache
def _split(config: Config, dtype: str) -> tuple[nnx.GraphDef, dict[str, Any]]:
  """The structure of the network and the shapes of its parameters."""
  model = nnx.eval_shape(lambda: config.network(rngs=_OneKey(), dtype=dtype))
  graphdef, variables = nnx.split(model, nnx.Param)
  return graphdef, nnx.to_pure_dict(variables)
