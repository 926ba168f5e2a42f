"""Sampled latents as pictures, through the VAE that the config names."""

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import sharding, types
from diversedit_jax.data import images, sources
from diversedit_jax.frozen import vae, vae_files, vae_tiles

_BATCH = 8  # Pictures decoded at a time on each device.


def open_decoder(
  experiment: experiment_lib.Experiment, mesh: jax.sharding.Mesh
) -> 'Decoder | None':
  """The decoder of `vae.weights`; None without one, or for a model that makes pixels.

  Raises:
    UserError: no such file, weights of another network, or a VAE that the latents are not of.
  """
  options, source = experiment.vae, experiment.source
  if not options.weights:
    return None
  autoencoder = vae_files.load(
    options.weights, scale=options.scale, shift=options.shift, dtype=options.dtype
  )
  found, needed = autoencoder.config.latent_channels, experiment.architecture.channels
  if found != needed:
    raise types.UserError(
      f'vae.weights={options.weights} has {found} latent channels, but the model makes {needed}'
    )
  if isinstance(source, sources.StoreSource):
    source.check_encoder(options.weights, autoencoder.encoder_sha256)
  return Decoder(autoencoder, options.tile, mesh, experiment.evaluation.quantiser)


class Decoder:
  """Latents [n, h, w, C] as the model makes them -> pictures [n, H, W, 3] uint8."""

  def __init__(
    self, autoencoder: vae.Autoencoder, tile: int, mesh: jax.sharding.Mesh, quantiser: str
  ):
    """tile: side in latents beyond which pictures are decoded in tiles; 0 never does.

    quantiser: of `data.images`.
    """
    self.file, self.sha256 = autoencoder.file, autoencoder.decoder_sha256
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
    """For a protocol card."""
    return {
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
      UserError: where the decoder makes values that are not finite.
    """
    parts, n = [], len(x_NHWC)
    for start in range(0, n, self._size):
      rows = np.minimum(np.arange(start, start + self._size), n - 1)  # The last repeats its end.
      batch = jax.device_put(x_NHWC[rows], sharding.batch_sharding(self._mesh))
      made, finite = self._decode(self._params, batch)
      if not finite:
        raise types.UserError(
          f'the decoder {self.file} makes values that are not finite of samples {rows[0]} to '
          f'{rows[-1]}; their latents lie in [{x_NHWC[rows].min():g}, {x_NHWC[rows].max():g}]'
        )
      parts.append(np.asarray(made))
    return np.concatenate(parts)[:n]
