"""What samples are scored by: networks with weights, references, and their scores as numbers."""

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import pathlib
from typing import Any, Protocol

import jax
import numpy as np

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import types
from diversedit_jax.data import images, sources
from diversedit_jax.evaluation import digits, feature_network, picture_metrics, reference
from diversedit_jax.experiment import eval_options
from diversedit_jax.frozen import encoders, inception_files
from diversedit_jax.modes import cached_statistics, decoding

Read = Callable[[], Iterable[np.ndarray]]
"""Opens the batches of finished samples, from the first on, as often as wanted."""


class Scorer(Protocol):
  """Makes what a model samples comparable, and compares it.

  image_shape: (H, W, C) of finished samples. names: of the scores.
  """

  image_shape: tuple[int, int, int]
  names: tuple[str, ...]

  def facts(self) -> dict[str, Any]:
    """How samples are finished, which decides them as much as the sampler does."""

  def compared(self) -> dict[str, Any]:
    """What decides the scores of finished samples."""

  def finish(self, made: np.ndarray) -> np.ndarray:
    """What is scored, of what the sampler made [n, H, W, C]."""

  def score(self, read: Read, labels: np.ndarray) -> dict[str, Any]:
    """'scores' by name, 'warnings' in words and more facts, of one sample for each label."""


def open_scorer(
  experiment: experiment_lib.Experiment,
  mesh: jax.sharding.Mesh,
  folder: pathlib.Path,
  decoder: decoding.Decoder | None,
  networks: Mapping[str, feature_network.FeatureNetwork],
) -> Scorer:
  """The scorer of `eval.reference`.

  Args:
    experiment: whose samples. mesh: computes. folder: keeps statistics that are computed here.
    decoder: of latents. networks: of `open_networks`.

  Raises:
    UserError: no reference, no weights, or any that do not fit the model's samples or one another.
  """
  options, source = experiment.evaluation, experiment.source
  if not options.reference:
    raise types.UserError(
      "eval.reference is '': give ADM's .npz (VIRTUAL_imagenet256_labeled.npz for 256 px), "
      'statistics that --mode=stats wrote, or pictures as in data.source'
    )
  if options.reference != 'digits':
    return PictureScorer(experiment, mesh, folder, decoder, networks)
  if not source.name.startswith('digits'):
    raise types.UserError(
      f'eval.reference=digits scores samples of data.source=digits, got {experiment.data.source}'
    )
  return DigitsScorer()


def open_all(
  experiment: experiment_lib.Experiment, mesh: jax.sharding.Mesh, folder: pathlib.Path
) -> Scorer:
  """`open_scorer` with a decoder and networks of its own."""
  decoder = decoding.open_decoder(experiment, mesh)
  return open_scorer(experiment, mesh, folder, decoder, open_networks(experiment, decoder))


def open_networks(
  experiment: experiment_lib.Experiment, decoder: decoding.Decoder | None
) -> dict[str, feature_network.FeatureNetwork]:
  """The networks that look at pictures, by the prefix of their scores; none for the digits.

  Raises:
    UserError: no weights, which are named, or an encoder that does not take the pictures.
  """
  options = experiment.evaluation
  if options.reference == 'digits':
    return {}
  found = {'': open_inception(options.inception)}
  if options.encoder:
    found['encoder_'] = open_encoder(experiment, image_side(experiment.source, decoder))
  return found


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

  def finish(self, made: np.ndarray) -> np.ndarray:
    return made

  def score(self, read: Read, labels: np.ndarray) -> dict[str, Any]:
    found = self._reference.evaluate(np.concatenate(list(read())), labels)
    return {'scores': {name: found[name] for name in self.names}, **found}


class PictureScorer:
  """See `Scorer`: FID and the rest, of uint8 pictures."""

  def __init__(
    self,
    experiment: experiment_lib.Experiment,
    mesh: jax.sharding.Mesh,
    folder: pathlib.Path,
    decoder: decoding.Decoder | None,
    networks: Mapping[str, feature_network.FeatureNetwork],
  ):
    """Opens references, and refuses what does not fit; see `open_scorer`."""
    options, side = experiment.evaluation, image_side(experiment.source, decoder)
    self._quantiser, self.image_shape = options.quantiser, (side, side, 3)
    self._decoder = decoder
    self._judges = {
      prefix: picture_metrics.PictureMetrics(
        view,
        open_reference(experiment, view, mesh, side, folder),
        image_size=side,
        options=options.judge(),
        mesh=mesh,
      )
      for prefix, view in networks.items()
    }
    self.names = tuple(prefix + k for prefix, one in self._judges.items() for k in one.names)

  def facts(self) -> dict[str, Any]:
    vae = {} if self._decoder is None else {'vae': self._decoder.facts()}
    return {'quantiser': self._quantiser, **vae}

  def compared(self) -> dict[str, Any]:
    options, judges = self._judges[''].options, self._judges.values()
    return {
      'reference': {one.view.name: one.reference.sha256 for one in judges},
      'networks': {one.view.name: one.view.facts() for one in judges},
      'precision_recall': options.precision_recall,
      'kid_subsets': options.kid_subsets,
    }

  def finish(self, made: np.ndarray) -> np.ndarray:
    """uint8 [n, H, W, 3].

    Raises:
      UserError: for values that are not finite.
    """
    if self._decoder is not None:
      return self._decoder(made)
    return images.to_uint8(made, self._quantiser)

  def score(self, read: Read, labels: np.ndarray) -> dict[str, Any]:
    """Scores of an encoder begin with 'encoder_'."""
    numbers, warnings, references = {}, [], {}
    for prefix, one in self._judges.items():
      found = one.score(read(), len(labels))
      numbers |= {prefix + name: value for name, value in found['scores'].items()}
      warnings += [line for line in found['warnings'] if line not in warnings]
      references[one.view.name] = found['reference']
    return {'scores': numbers, 'warnings': warnings, 'references': references}


def check_name(key: str, name: str, scorer: Scorer) -> None:
  """Refuses a choice of a score that a scorer will not give, naming the key (UserError)."""
  if name not in scorer.names:
    known = ', '.join(k for k in scorer.names if k in eval_options.BEST)
    raise types.UserError(f'{key}={name!r} is not among the scores of this reference: {known}')


def image_side(source: sources.Source, decoder: decoding.Decoder | None) -> int:
  """Of the pictures that samples become, in pixels.

  Raises:
    UserError: latents without a VAE, or other than square pictures of 3 channels.
  """
  height, width, channels = source.shape
  if source.space == 'latents':
    if decoder is None:
      raise types.UserError(
        f'{source.name} are latents, and scores are of pictures: give vae.weights=FILE, the VAE '
        'that decodes them'
      )
    height, width, channels = height * decoder.factor, width * decoder.factor, 3
  if channels != 3 or height != width:
    raise types.UserError(
      f'samples are {height}x{width}x{channels}, but FID is of square pictures of 3 channels'
    )
  return height


def open_inception(weights: str) -> feature_network.FeatureNetwork:
  """Inception of a file, or of 'random:SEED' for trials.

  Raises:
    UserError: as `inception_files.load`, also without any name.
  """
  try:
    return feature_network.of_inception(inception_files.load(weights))
  except types.UserError as error:
    raise types.UserError(f'eval.inception={weights!r}: {error}') from error


def open_encoder(
  experiment: experiment_lib.Experiment, side: int
) -> feature_network.FeatureNetwork:
  """The encoder of `eval.encoder` for pictures of a side.

  Raises:
    UserError: an unknown one, no weights, or pictures that it does not take.
  """
  options = experiment.evaluation
  request = encoders.Request(
    source=experiment.source,
    grid=(side // 16, side // 16),
    image_shape=(side, side, 3),
    weights=options.encoder_weights,
    key='eval.encoder_weights',
  )
  return feature_network.of_encoder(encoders.open_encoder(options.encoder, request))


def open_reference(
  experiment: experiment_lib.Experiment,
  view: feature_network.FeatureNetwork,
  mesh: jax.sharding.Mesh,
  side: int,
  folder: pathlib.Path,
) -> reference.Reference:
  """What a network's features are compared with: a file, or pictures looked at here.

  Raises:
    UserError: see `reference.read` and `sources.open_source`; or ADM's statistics for an encoder.
  """
  options, spec = experiment.evaluation, experiment.evaluation.reference
  if view.name != 'inception':
    spec = options.encoder_reference or spec
  if spec.partition(':')[0] in sources.KINDS:
    data = experiment.data
    source = sources.open_source(
      spec, size=side, crop=data.crop, orientation=data.orientation, classes=data.classes
    )
    return cached_statistics.kept(source, view, mesh, options.batch_size, folder)
  found = reference.read(spec)
  if view.name == 'inception' or found.facts:
    return found
  # ADM's statistics are of Inception, but its images can be looked at by any network.
  if found.images_NHWC is None:
    raise types.UserError(
      f'{found.name} holds statistics of Inception and no images: give eval.encoder_reference, '
      f'made by --mode=stats with eval.encoder={view.name}'
    )
  return dataclasses.replace(found, mu=None, sigma=None, mu_s=None, sigma_s=None)
