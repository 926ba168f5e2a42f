"""What samples are scored by: made comparable, then compared with a reference."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np

from diversedit_jax import types
from diversedit_jax.data import images, sources
from diversedit_jax.evaluation import decoder as decoder_lib
from diversedit_jax.evaluation import digits, feature_network, panel, picture_metrics
from diversedit_jax.frozen import encoders, inception_files


class Scorer(Protocol):
  """Makes what a model samples comparable, and compares it.

  image_shape: (H, W, C) of finished samples.
  names: names of the scores.
  """

  image_shape: tuple[int, int, int]
  names: tuple[str, ...]

  def facts(self) -> dict[str, Any]:
    """How samples are finished, which decides them as much as the sampler does."""

  def compared(self) -> dict[str, Any]:
    """What decides the scores of finished samples."""

  def finish(self, made_NHWC: np.ndarray) -> np.ndarray:
    """What is scored, [n, *image_shape], from what the sampler made."""

  def score(self, batches: Iterable[np.ndarray], labels_N: np.ndarray) -> dict[str, Any]:
    """'scores' by name, 'warnings' in words and more facts; one finished sample for each label."""


class DigitsScorer:
  """See `Scorer`: class consistency and Fréchet distance of digits, from floats in [-1, 1]."""

  image_shape = (8, 8, 1)
  names = ('class_consistency', 'frechet_distance')

  def __init__(self):
    self._reference = digits.DigitsReference.build()

  def facts(self) -> dict[str, Any]:
    return {'quantiser': None}

  def compared(self) -> dict[str, Any]:
    return {'reference': 'digits'}

  def finish(self, made_NHWC: np.ndarray) -> np.ndarray:
    return made_NHWC

  def score(self, batches: Iterable[np.ndarray], labels_N: np.ndarray) -> dict[str, Any]:
    found = self._reference.evaluate(np.concatenate(list(batches)), labels_N)
    return {'scores': {name: found[name] for name in self.names}, **found}


class PictureScorer:
  """See `Scorer`: FID and the rest, from uint8 pictures.

  metrics: by prefix of the names of their scores; '' is Inception, 'encoder_' an encoder,
    'classifier_' a classifier.
  side: pixels of the pictures.
  quantiser: how pixels become levels, see `data.images`.
  decoder: decoder of latents; None for a model of pixels.
  options: which ratios of distances are among the scores.
  """

  def __init__(
    self,
    metrics: Mapping[str, picture_metrics.PictureMetrics],
    side: int,
    quantiser: str,
    decoder: decoder_lib.Decoder | None,
    options: panel.PanelOptions | None = None,
  ):
    self._metrics, self._quantiser, self._decoder = metrics, quantiser, decoder
    self._ratios = panel.Ratios(options or panel.PanelOptions(), metrics, side)
    self.image_shape = (side, side, 3)
    self.names = tuple(prefix + k for prefix, one in metrics.items() for k in one.names)
    self.names += self._ratios.names

  def facts(self) -> dict[str, Any]:
    return {'quantiser': self._quantiser} if self._decoder is None else self._decoder.facts()

  def compared(self) -> dict[str, Any]:
    metrics = self._metrics.values()
    options = next(iter(metrics)).given
    return {
      'reference': {one.network.name: one.reference.sha256 for one in metrics},
      'networks': {one.network.name: one.network.facts() for one in metrics},
      'precision_recall': options.precision_recall,
      'kid_subsets': options.kid_subsets,
      **self._ratios.facts(),
    }

  def finish(self, made_NHWC: np.ndarray) -> np.ndarray:
    """Pictures, uint8 [n, H, W, 3].

    Raises:
      UserError: values that are not finite.
    """
    if self._decoder is not None:
      return self._decoder(made_NHWC)
    return images.to_uint8(made_NHWC, self._quantiser)

  def score(self, batches: Iterable[np.ndarray], labels_N: np.ndarray) -> dict[str, Any]:
    found = picture_metrics.score(self._metrics, batches, len(labels_N), labels_N)
    return self._ratios.add(found)


def image_side(source: sources.Source, decoder: decoder_lib.Decoder | None) -> int:
  """Side of the pictures that samples become, in pixels.

  Raises:
    UserError: latents that nothing decodes, or samples that are not square pictures of 3 channels.
  """
  height, width, channels = source.shape
  if source.space == 'latents':
    if decoder is None:
      raise types.UserError(
        f'{source.name} are latents, and scores are of pictures: give vae.weights=FILE, the '
        'autoencoder that decodes them, or rae.decoder=FILE'
      )
    (height, width), channels = decoder.size(height, width), 3
  if channels != 3 or height != width:
    raise types.UserError(
      f'samples are {height}x{width}x{channels}, but FID is of square pictures of 3 channels'
    )
  return height


def open_inception(weights: str) -> feature_network.FeatureNetwork:
  """Inception from a file, or with random weights from 'random:SEED' for trials.

  Raises:
    UserError: as `inception_files.load`, and for an empty name.
  """
  try:
    return feature_network.of_inception(inception_files.load(weights))
  except types.UserError as error:
    raise types.UserError(f'eval.inception={weights!r}: {error}') from error


def open_encoder(
  name: str, weights: str, source: sources.Source, side: int
) -> feature_network.FeatureNetwork:
  """The encoder `eval.encoder` for pictures of a side.

  Raises:
    UserError: the encoder is unknown, has no weights, or does not take such pictures.
  """
  request = encoders.Request(
    source=source,
    grid=(side // 16, side // 16),
    image_shape=(side, side, 3),
    weights=weights,
    key='eval.encoder_weights',
  )
  return feature_network.of_encoder(encoders.open_encoder(name, request))
