"""Scores of an existing `.npz` of samples: what ADM's evaluator does, without TensorFlow."""

import hashlib
import os
from typing import Any

import jax

from diversedit_jax import sharding, types
from diversedit_jax.evaluation import (
  card,
  checks,
  feature_network,
  picture_metrics,
  pictures,
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
    inception_weights: their file, or the network.
    options: of the scores. mesh: computes; None takes all devices.

  Returns:
    'scores' by name, 'warnings' in words, 'reference', and 'protocol', the facts behind them.

  Raises:
    UserError: a file that cannot be read, or one that does not fit another.
  """
  network = inception_weights
  if not isinstance(network, inception.Inception):
    network = inception_files.load(network)
  view, mesh = feature_network.of_inception(network), mesh or sharding.make_mesh()
  file, options = samples.SampleFile(samples_file), options or picture_metrics.MetricOptions()
  height, width, _ = file.image_shape
  if height != width:
    raise types.UserError(f'{file.path} holds {height}x{width} pictures, expected square ones')
  judged = picture_metrics.PictureMetrics(
    view, reference.read(reference_file), image_size=height, options=options, mesh=mesh
  )
  labels = file.labels()  # Before the scores, which take long.
  digest = hashlib.sha256()
  batches = pictures.digested(file.batches(options.batch_size), digest)
  found = judged.score(batches, len(file))
  found['warnings'] += [] if labels is None else checks.order_warnings(labels)
  facts = {
    'samples': {
      'name': file.path.name,
      'images': len(file),
      'side': height,
      'sha256': digest.hexdigest(),
    },
    'network': view.facts(),
    'precision_recall': options.precision_recall,
    'kid_subsets': options.kid_subsets,
    'batch_size': options.batch_size,
    'device': card.devices(),
    'versions': card.versions(),
  }
  return {**found, 'protocol': facts}
