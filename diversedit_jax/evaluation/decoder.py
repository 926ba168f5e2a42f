"""Sampled latents as pictures."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import sharding
from diversedit_jax.data import images
from diversedit_jax.evaluation import checks
from diversedit_jax.frozen import autoencoders, rae, rae_decoder, vae_tiles
from diversedit_jax.frozen.encoders import preprocess

_BATCH = 8  # Pictures decoded at a time on each device.
# What the numbers of an RAE's decoder stand for: mean and deviation of pixels in [0, 1].
RAE_PIXELS = {
  'imagenet': (preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD),
  'symmetric': ((0.5,) * 3, (0.5,) * 3),
  'unit': ((0.0,) * 3, (1.0,) * 3),
}


class Network(Protocol):
  """What makes pictures of latents. file: name of its file. params: its weights, on the host."""

  file: str
  params: Any

  def size(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the pictures of latents with so many."""

  def decode(self, params: Any, x_NHWC: jax.Array, batch: int) -> jax.Array:
    """Pixels around [-1, 1] of latents as the model makes them, so many at a time."""

  def facts(self) -> dict[str, Any]:
    """Facts for a protocol card, under the name of the kind of autoencoder."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OfVae:
  """See `Network`: a VAE or a DC-AE.

  tile: side in latents beyond which pictures are decoded in tiles; 0 never does.
  """

  autoencoder: autoencoders.Autoencoder
  tile: int

  @property
  def file(self) -> str:
    """Name of the file of weights."""
    return self.autoencoder.file

  @property
  def params(self) -> Any:
    """The weights."""
    return self.autoencoder.params

  def size(self, height: int, width: int) -> tuple[int, int]:
    """See `Network`."""
    factor = self.autoencoder.config.factor
    return height * factor, width * factor

  def decode(self, params: Any, x_NHWC: jax.Array, batch: int) -> jax.Array:
    """See `Network`."""
    config = self.autoencoder.config
    z_NHWC = config.scaling.undo(x_NHWC)
    one = lambda z: self.autoencoder.decode(params, z)
    side = self.tile or max(2, *z_NHWC.shape[1:3])
    return vae_tiles.decode_tiled(
      one, z_NHWC, factor=config.factor, tile=side, overlap=max(side // 4, 1), batch=batch
    )

  def facts(self) -> dict[str, Any]:
    """See `Network`."""
    scaling = self.autoencoder.config.scaling
    found = {
      'autoencoder': self.autoencoder.name,
      'file': self.file,
      'decoder_sha256': self.autoencoder.decoder_sha256,
      'scale': scaling.scale,
      'shift': scaling.shift,
      'dtype': self.autoencoder.dtype,
      'tile': self.tile,
    }
    return {'vae': found}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class OfRae:
  """See `Network`: the decoder of an RAE.

  decoder: the decoder. statistics: of the latents. shape: (h, w, C) of them.
  pixels: what its numbers stand for, a name in `RAE_PIXELS`. encoder: of the latents; '' if that is
    not known.
  """

  decoder: rae_decoder.Decoder
  statistics: rae.Statistics
  shape: tuple[int, int, int]
  pixels: str
  encoder: str

  @property
  def file(self) -> str:
    """Name of the file of weights."""
    return self.decoder.file

  @property
  def params(self) -> Any:
    """The weights, and the statistics."""
    return {'decoder': self.decoder.params, 'statistics': self.statistics.over(self.shape)}

  def size(self, height: int, width: int) -> tuple[int, int]:
    """See `Network`: the decoder's own, whatever the grid of the latents is."""
    del height, width
    return self.decoder.config.side, self.decoder.config.side

  def decode(self, params: Any, x_NHWC: jax.Array, batch: int) -> jax.Array:
    """See `Network`."""
    del batch
    tokens_NHWC = rae.denormalise(params['statistics'], x_NHWC)
    made_NHWC = rae_decoder.decode(params['decoder'], tokens_NHWC, self.decoder.config)
    mean, std = (np.float32(x)[None, None, None] for x in RAE_PIXELS[self.pixels])
    return 2 * (made_NHWC * std + mean) - 1

  def facts(self) -> dict[str, Any]:
    """See `Network`."""
    found = {
      'file': self.file,
      'decoder_sha256': self.decoder.sha256,
      'statistics': {'file': self.statistics.file, 'sha256': self.statistics.sha256},
      'pixels': self.pixels,
      'encoder': self.encoder,
    }
    return {'rae': found}


class Decoder:
  """Latents [n, h, w, C] as the model makes them -> pictures [n, H, W, 3] uint8."""

  def __init__(self, network: Network, mesh: jax.sharding.Mesh, quantiser: str):
    """Puts the decoder on the devices.

    Args:
      network: what makes pictures of latents.
      mesh: devices that share a batch.
      quantiser: how pixels become levels, see `data.images`.
    """
    self.quantiser, self._network, self._mesh = quantiser, network, mesh
    self._size = _BATCH * sharding.batch_divisor(mesh)
    self._params = jax.device_put(network.params, sharding.replicated(mesh))

    def decode(params, x_NHWC):
      made = network.decode(params, x_NHWC, self._size)
      return images.levels(made, quantiser), jnp.isfinite(made).all()

    self._decode = jax.jit(decode, out_shardings=sharding.replicated(mesh))

  def size(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the pictures of latents with so many."""
    return self._network.size(height, width)

  def facts(self) -> dict[str, Any]:
    """Facts for a protocol card: how pixels become levels, and the network by its kind."""
    return {'quantiser': self.quantiser, **self._network.facts()}

  def __call__(self, x_NHWC: np.ndarray) -> np.ndarray:
    """Pictures of latents.

    Raises:
      NotFinite: the decoder makes values that are not finite.
    """
    parts = []
    for start in range(0, len(x_NHWC), self._size):
      some_NHWC = x_NHWC[start : start + self._size]
      batch = sharding.pad_rows(some_NHWC, self._size)
      batch = jax.device_put(batch, sharding.batch_sharding(self._mesh))
      made, finite = self._decode(self._params, batch)
      if not finite:
        raise checks.NotFinite(
          f'the decoder {self._network.file} makes values that are not finite of samples {start} '
          f'to {start + len(some_NHWC) - 1}; their latents lie in [{some_NHWC.min():g}, '
          f'{some_NHWC.max():g}]'
        )
      parts.append(np.asarray(made)[: len(some_NHWC)])
    return np.concatenate(parts)
