"""Sampled latents as pictures."""

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import sharding
from diversedit_jax.data import images
from diversedit_jax.evaluation import checks
from diversedit_jax.frozen import vae, vae_tiles

_BATCH = 8  # Pictures decoded at a time on each device.


class Decoder:
  """Latents [n, h, w, C] as the model makes them -> pictures [n, H, W, 3] uint8."""

  def __init__(
    self, autoencoder: vae.Autoencoder, tile: int, mesh: jax.sharding.Mesh, quantiser: str
  ):
    """Puts the decoder on the devices.

    Args:
      autoencoder: the VAE.
      tile: side in latents beyond which pictures are decoded in tiles; 0 never does.
      mesh: devices that share a batch.
      quantiser: how pixels become levels, see `data.images`.
    """
    self.file, self.sha256 = autoencoder.file, autoencoder.decoder_sha256
    self._name = autoencoder.name
    self.factor, self.quantiser = autoencoder.config.factor, quantiser
    self._dtype, self._tile, self._scaling = autoencoder.dtype, tile, autoencoder.config.scaling
    self._mesh, self._size = mesh, _BATCH * sharding.batch_divisor(mesh)
    scaling, factor = autoencoder.config.scaling, autoencoder.config.factor
    self._params = jax.device_put(autoencoder.params, sharding.replicated(mesh))

    def decode(params, x_NHWC):
      z_NHWC = scaling.undo(x_NHWC)
      one = lambda z: autoencoder.decode(params, z)
      side = tile or max(2, *z_NHWC.shape[1:3])
      made = vae_tiles.decode_tiled(
        one, z_NHWC, factor=factor, tile=side, overlap=max(side // 4, 1), batch=self._size
      )
      return images.levels(made, quantiser), jnp.isfinite(made).all()

    self._decode = jax.jit(decode, out_shardings=sharding.replicated(mesh))

  def facts(self) -> dict[str, object]:
    """Facts for a protocol card."""
    return {
      'autoencoder': self._name,
      'file': self.file,
      'decoder_sha256': self.sha256,
      'scale': self._scaling.scale,
      'shift': self._scaling.shift,
      'dtype': self._dtype,
      'tile': self._tile,
    }

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
          f'the decoder {self.file} makes values that are not finite of samples {start} to '
          f'{start + len(some_NHWC) - 1}; their latents lie in [{some_NHWC.min():g}, '
          f'{some_NHWC.max():g}]'
        )
      parts.append(np.asarray(made)[: len(some_NHWC)])
    return np.concatenate(parts)
