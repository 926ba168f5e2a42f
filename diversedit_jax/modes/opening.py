"""What a config names for samples, opened: their decoder, and what they are scored by."""

import dataclasses
import functools
import pathlib

import jax

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import types
from diversedit_jax.data import sources
from diversedit_jax.evaluation import (
  classifier,
  feature_network,
  panel,
  picture_metrics,
  picture_sets,
  scorers,
)
from diversedit_jax.evaluation import decoder as decoder_lib
from diversedit_jax.experiment import eval_options
from diversedit_jax.frozen import vae_files
from diversedit_jax.sampling import generate


def open_decoder(
  experiment: experiment_lib.Experiment, mesh: jax.sharding.Mesh
) -> decoder_lib.Decoder | None:
  """The decoder of `vae.weights` or `rae.decoder`; None without, or for a model of pixels.

  Raises:
    UserError: no such file, weights of another network, or of others than those of the latents.
  """
  options, quantiser = experiment.vae, experiment.evaluation.quantiser
  if experiment.rae.decoder:
    return decoder_lib.Decoder(experiment.rae.open_decoder(experiment.source), mesh, quantiser)
  if not options.weights:
    return None
  autoencoder = vae_files.load(
    options.weights, scale=options.scale, shift=options.shift, dtype=options.dtype
  )
  found, needed = autoencoder.config.latent_channels, experiment.source.shape[-1]
  if found != needed:
    raise types.UserError(
      f'vae.weights={options.weights} has {found} latent channels, but the model makes {needed}'
    )
  experiment.source.check_encoder(options.weights, autoencoder.encoder_sha256)
  network = decoder_lib.OfVae(autoencoder=autoencoder, tile=options.tile)
  return decoder_lib.Decoder(network, mesh, quantiser)


def open_networks(
  experiment: experiment_lib.Experiment, decoder: decoder_lib.Decoder | None
) -> dict[str, feature_network.FeatureNetwork]:
  """The networks that look at pictures, by the prefix of their scores; {} for the digits.

  Raises:
    UserError: samples that are no pictures, weights that are missing, which are named, or an
      encoder that does not take the pictures.
  """
  options = experiment.evaluation
  if options.reference == 'digits':
    return {}
  side = scorers.image_side(experiment.source, decoder)
  found = {}
  others = options.classifier or options.cmmd or options.networks
  if options.inception or panel.INCEPTION in options.networks or not others:
    found[''] = scorers.open_inception(options.inception)
  if options.encoder:
    found['encoder_'] = scorers.open_encoder(
      options.encoder, options.encoder_weights, experiment.source, side
    )
  if options.classifier:
    classes = experiment.source.num_classes
    found['classifier_'] = classifier.open_network(options.classifier, classes)
  return found | panel.open_networks(options)


def open_scorer(
  experiment: experiment_lib.Experiment,
  mesh: jax.sharding.Mesh,
  folder: pathlib.Path,
  decoder: decoder_lib.Decoder | None,
  networks: dict[str, feature_network.FeatureNetwork],
) -> scorers.Scorer:
  """The scorer of `eval.reference`.

  Args:
    experiment: whose samples are scored.
    mesh: devices.
    folder: where statistics that are computed here are kept.
    decoder: decoder of latents.
    networks: what `open_networks` gave.

  Raises:
    UserError: no reference, or one that does not fit the model's samples or a network.
  """
  options, source, data = experiment.evaluation, experiment.source, experiment.data
  if not options.reference:
    raise types.UserError(
      "eval.reference is '': give ADM's .npz (VIRTUAL_imagenet256_labeled.npz for 256 px), "
      'statistics that --mode=stats wrote, or pictures as in data.source'
    )
  if options.reference == 'digits':
    if not source.name.startswith('digits'):
      raise types.UserError(
        f'eval.reference=digits scores samples of data.source=digits, got {data.source}'
      )
    if generate.is_null(options.labels, source.num_classes):
      raise types.UserError(
        f'eval.labels={options.labels} with eval.reference=digits, which asks whether samples look '
        'like their class; --mode=sample --config.sample.labels=null shows them'
      )
    return scorers.DigitsScorer()
  side = scorers.image_side(source, decoder)
  open_pictures = functools.partial(
    sources.open_source,
    size=side,
    crop=data.crop,
    orientation=data.orientation,
    classes=data.classes,
    labels='any',
    cache=data.cache,
  )
  metrics = {}
  for prefix, network in networks.items():
    if generate.is_null(options.labels, source.num_classes):  # Then samples are of no class.
      network = dataclasses.replace(network, labelled=False)
    published = panel.reference_of(options, prefix, network)
    own = options.encoder_reference if prefix == 'encoder_' else published
    against = picture_sets.open_reference(
      own or options.reference,
      network,
      open_pictures,
      image_size=side,
      mesh=mesh,
      batch_size=options.batch_size,
      folder=folder,
      quantiser=options.quantiser,
      own=bool(published),
      key=panel.key_of(prefix),
    )
    metrics[prefix] = picture_metrics.PictureMetrics(
      network, against, image_size=side, options=options.metrics(), mesh=mesh
    )
  return scorers.PictureScorer(metrics, side, options.quantiser, decoder, options.panel())


def open_all(
  experiment: experiment_lib.Experiment, mesh: jax.sharding.Mesh, folder: pathlib.Path
) -> scorers.Scorer:
  """`open_scorer` with a decoder and networks of its own."""
  decoder = open_decoder(experiment, mesh)
  return open_scorer(experiment, mesh, folder, decoder, open_networks(experiment, decoder))


def check_score(key: str, name: str, scorer: scorers.Scorer) -> None:
  """Refuses the name of a score that a scorer will not give, naming its config key (UserError)."""
  if name not in scorer.names:
    known = ', '.join(k for k in scorer.names if k in eval_options.BEST)
    raise types.UserError(f'{key}={name!r} is not among the scores of this reference: {known}')
