"""Pixels of another source whose latents are made in the training step, so that none are stored."""

from collections.abc import Callable, Mapping
import json
from typing import Any

import numpy as np

from diversedit_jax.data.sources import base


class EncodedSource(base.Wrapped):
  """See `base.Source`: 'pixels' alone, of which `tokenizer` makes latents of a shape.

  Mirror images are those of the pixels, so latents are of mirrored pictures.
  """

  space: base.Space = 'latents'
  scaling = None

  def __init__(
    self,
    of: base.Source,
    *,
    tokenizer: Any,
    shape: tuple[int, int, int],
    facts: Callable[[bool], Mapping[str, Any]],
  ):
    """Wraps a source that has pixels.

    Args:
      of: the source. tokenizer: a frozen encoder. shape: (h, w, C) of the latents.
      facts: function from whether the weights must be there to `latent_facts`.
    """
    super().__init__(of)
    self.tokenizer, self.shape, self._facts = tokenizer, shape, facts

  def __getstate__(self) -> dict[str, Any]:
    """What worker processes need, which read pixels alone."""
    return {'of': self.of, 'shape': self.shape}

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """See `base.Source`."""
    found = self.of.gather(indices) if flips is None else self.of.gather(indices, flips)
    pixels = found['images' if self.of.space == 'pixels' else 'pixels']
    return {'pixels': pixels, 'labels': found['labels']}

  def digest(self) -> str:
    """SHA-256 of the pixels' digest and of what makes latents of them."""
    return base.digest_of(self.of.digest(), json.dumps(self._facts(True), sort_keys=True))

  def pixels_digest(self) -> str:
    """See `base.Source`."""
    return self.of.pixels_digest()

  def latent_facts(self) -> dict[str, Any]:
    """What makes the latents; without the digest of weights that are not given."""
    return dict(self._facts(False))

  def mirrored_latents(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """{}: pixels are mirrored instead."""
    del indices
    return {}
