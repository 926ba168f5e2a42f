"""Scores of an existing `.npz` of samples: what ADM's evaluator does, without TensorFlow."""

import hashlib
import os
from typing import Any

import jax

from diversedit_jax import progress, sharding, types
from diversedit_jax.evaluation import (
  card,
  checks,
  feature_network,
  picture_metrics,
  reference,
  samples,
)
from diversedit_jax.frozen import inception, inception_files


def evaluate_npz(
  samples_file: str | os.PathLike[str],
  reference_file: str | os.PathLike[str],
  inception_weights: str | os.PathLike[str] | inception.Inception,
  *,
  options: picture_metrics.MetricOptions | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> dict[str, Any]:
  """FID, sFID, Inception Score, precision, recall and kernel distance of the samples in a file.

  Args:
    samples_file: `.npz` with `arr_0`, uint8 [N, H, W, 3], in an order that is not that of labels.
    reference_file: ADM's `.npz`, or statistics that `--mode=stats` wrote.
    inception_weights: file of the weights, or the network itself.
    options: which scores.
    mesh: devices; None takes all.

  Returns:
    'scores' by name, 'warnings' in words, 'reference', and 'protocol', the facts behind them.

  Raises:
    UserError: a file cannot be read, or does not fit the others.
  """
  network = inception_weights
  if not isinstance(network, inception.Inception):
    network = inception_files.load(network)
  network, mesh = feature_network.of_inception(network), mesh or sharding.make_mesh()
  file, options = samples.SampleFile(samples_file), options or picture_metrics.MetricOptions()
  height, width, _ = file.image_shape
  if height != width:
    raise types.UserError(f'{file.path} holds {height}x{width} pictures, expected square ones')
  metrics = picture_metrics.PictureMetrics(
    network, reference.read(reference_file), image_size=height, options=options, mesh=mesh
  )
  labels = file.labels()  # Before the scores, which take long.
  digest = hashlib.sha256()
  found = picture_metrics.score({'': metrics}, _read(file, options.batch_size, digest), len(file))
  found['warnings'] += [] if labels is None else checks.order_warnings(labels)
  facts = {
    'samples': {
      'name': file.path.name,
      'images': len(file),
      'side': height,
      'sha256': digest.hexdigest(),
    },
    'network': network.facts(),
    'precision_recall': options.precision_recall,
    'kid_subsets': options.kid_subsets,
    'batch_size': options.batch_size,
    'device': card.devices(),
    'versions': card.versions(),
  }
  facts_of_reference = found.pop('references')[network.name]
  return {**found, 'reference': facts_of_reference, 'protocol': facts}


def _read(file, size, digest):
  """The batches of a file, with progress logged and their bytes added to a digest."""
  meter, done = progress.Progress(f'scoring {file.path.name}', len(file), 'images'), 0
  for batch in file.batches(size):
    digest.update(batch.data)
    yield batch
    done += len(batch)
    meter.at(done)
