"""A store made by `python -m diversedit_jax.prepare`: a source of latents, pixels or both."""

import json
import pathlib
from typing import Any

import numpy as np

from diversedit_jax import paths, types
from diversedit_jax.data import latents
from diversedit_jax.data.sources import base
from diversedit_jax.data.store import layout, local, reader


class StoreSource(base.Source):
  """See `base.Source`. If there are latents, they are what is learned, and pixels lie beside."""

  reads_files = True
  options = ('crop', 'orientation', 'cache')

  def __init__(
    self,
    path: str | pathlib.Path,
    *,
    pixels: bool = True,
    cache: str | pathlib.Path | None = None,
  ):
    """Opens a finished store.

    Args:
      path: folder of the store, or its URL.
      pixels: whether to read pixels beside latents; only encoders need them.
      cache: folder on a disk of this host to which `fetch` copies the store.

    Raises:
      UserError: there is no store, it is unfinished, or a file is damaged, which is named.
    """
    self.store = reader.Store(path)
    plan = self.plan
    self._cache = None if cache is None else paths.path(cache)
    self.name = f'store/{self.store.root.name}'
    self.space: base.Space = 'latents' if plan.latents else 'pixels'
    self.num_classes = len(plan.label_names)
    self.scaling = None
    self.can_mirror = True
    self._columns = [c for c in plan.columns if pixels or c == self._main]
    if plan.vae and 'scale' in plan.vae:
      self.scaling = latents.Scaling(scale=plan.vae['scale'], shift=plan.vae['shift'])
    if plan.latents:
      self.can_mirror = plan.columns[plan.latents].twins

  @property
  def plan(self) -> layout.Plan:
    """How the store was made."""
    return self.store.manifest.plan

  @property
  def labels(self) -> np.ndarray:
    """Labels of all examples, int32 [len]."""
    return self.store.labels

  @property
  def shape(self) -> tuple[int, int, int]:
    """(H, W, C) of what the model makes; moments have twice the channels."""
    height, width, channels = self.plan.columns[self._main].shape
    return height, width, channels // 2 if self._main == 'moments' else channels

  @property
  def pixel_shape(self) -> tuple[int, int, int] | None:
    """(H, W, C) of the pixels, which are the data or lie beside them; None if they are not read."""
    return self.plan.columns['pixels'].shape if 'pixels' in self._columns else None

  def __len__(self) -> int:
    return len(self.store)

  def fetch(self) -> None:
    """See `base.Source`."""
    if self._cache is not None:
      self.store.fetch(self._cache, self._columns)

  def name_of(self, index: int) -> str:
    """The name of the picture that the example was made of."""
    return self.store.key(index)

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """See `base.Source`. Mirror images are those that were encoded, not mirrored latents."""
    base.check_indices(self.name, indices, len(self))
    if flips is not None and not self.can_mirror:
      raise ValueError(
        f'{self.name} has no latents of mirror images, and latents cannot be mirrored'
      )
    batch: dict[str, Any] = {'labels': self.labels[indices]}
    if latent := self.plan.latents:
      batch[latent] = self._read(latent, indices, flips)
    if 'pixels' in self._columns:
      key = 'pixels' if latent else 'images'
      batch[key] = base.mirrored(self._read('pixels', indices), flips)
    return batch

  def _read(self, column, indices, flips=None):
    try:
      return self.store.read(column, indices, flips)
    except local.BadRecord as error:
      raise base.BadExample(self.name, error.reason, error.way) from error

  @property
  def label_names(self) -> tuple[str, ...]:
    """Names of all classes."""
    return self.plan.label_names

  def digest(self) -> str:
    """SHA-256 of the shards' facts, which hold checksums, of labels and of `latent_facts`."""
    manifest, facts = self.store.manifest, self.latent_facts()
    more = [] if facts is None else [json.dumps(facts, sort_keys=True)]
    return base.digest_of(*manifest.shards, manifest.labels, *more)

  def latent_facts(self) -> dict[str, Any] | None:
    """The 'encoder_sha256' and, by channel, 'scale' and 'shift' of latents; None for pixels.

    The tokens of an encoder have its name, and the digest of their statistics, instead.
    """
    if self.scaling is None:
      known = ('encoder', 'encoder_sha256', 'statistics_sha256')
      vae = self.plan.vae
      return vae and {name: vae[name] for name in known if name in vae}
    values = {
      name: np.broadcast_to(np.float64(getattr(self.scaling, name)), self.shape[-1]).tolist()
      for name in ('scale', 'shift')
    }
    return {'encoder_sha256': self.plan.vae['encoder_sha256'], **values}

  def mirrored_latents(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Latents of mirror images, or their moments, by key; {} for a store of pixels."""
    if self.space == 'pixels':
      return {}
    everywhere = np.ones(len(indices), bool)
    return {self.plan.latents: self._read(self.plan.latents, indices, everywhere)}

  def preparation(self) -> dict[str, str]:
    """How the store was made, in words."""
    manifest, plan = self.store.manifest, self.plan
    vae = plan.vae and (
      f'{plan.vae["file"] or plan.vae["encoder"]}, encoder '
      f'{plan.vae.get("encoder_sha256", "fitted to data")[:16]}'
    )
    return {
      'source': f'{plan.source}, content {manifest.content_sha256[:16]}',
      'crop': f'{plan.crop} to {plan.size}, orientation {plan.orientation}',
      'vae': vae or 'none, pixels',
      'shards': f'{plan.shards}, {manifest.count} examples, {manifest.skipped} skipped',
    }

  def check_made(self, **stated: int | str | None) -> None:
    """Refuses a store made with another size, crop or orientation than stated; None accepts any.

    Raises:
      UserError: naming what was stated and what the store has.
    """
    for name, value in stated.items():
      found = getattr(self.plan, name)
      if value is not None and found != value:
        raise types.UserError(f'data.{name}={value}, but {self.name} was made with {name} {found}')

  def check_encoder(self, file: str, encoder_sha256: str) -> None:
    """Refuses another encoder than the store's; decoders may differ.

    Raises:
      UserError: the encoders differ.
    """
    made = self.plan.vae
    if made is not None and made.get('encoder_sha256') != encoder_sha256:
      raise types.UserError(
        f'{self.name} was made with another autoencoder than vae.weights={file}: the encoder of '
        f'{made["file"]} is {str(made.get("encoder_sha256"))[:12]}..., not {encoder_sha256[:12]}...'
      )

  @property
  def _main(self):
    return self.plan.latents or 'pixels'


def _open(request: base.Request) -> StoreSource:
  if not request.rest:
    raise types.UserError("data 'store' is malformed; expected 'store:FOLDER'")
  source = StoreSource(request.path(), pixels=request.pixels, cache=request.cache)
  source.check_made(size=request.size, crop=request.crop, orientation=request.orientation)
  return source


base.register('store', _open)
