"""Scores of samples that exist already: what ADM's evaluator does, without TensorFlow."""

from collections.abc import Sequence
import functools
import hashlib
import os
from typing import Any

import jax
import numpy as np

from diversedit_jax import progress, sharding
from diversedit_jax.data import sources
from diversedit_jax.evaluation import (
  card,
  checks,
  feature_network,
  panel,
  picture_metrics,
  picture_sets,
)
from diversedit_jax.frozen import inception, inception_files


def evaluate_npz(
  samples_file: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
  reference_file: str | os.PathLike[str],
  inception_weights: str | os.PathLike[str] | inception.Inception,
  *,
  options: picture_metrics.MetricOptions | None = None,
  mesh: jax.sharding.Mesh | None = None,
  quantiser: str = 'truncate',
  others: panel.PanelOptions | None = None,
) -> dict[str, Any]:
  """FID, sFID, Inception Score, precision, recall and kernel distance of samples.

  Args:
    samples_file: what `picture_sets` reads, one or several that make one set, in an order that is
      not that of labels.
    reference_file: ADM's `.npz`, statistics that `--mode=stats` wrote, or pictures, which are
      cropped to the size of the samples.
    inception_weights: file of the weights, or the network itself.
    options: which scores.
    mesh: devices; None takes all.
    quantiser: how samples that are floats become levels, see `data.images`.
    others: further networks, for FDr6 and CMMD.

  Returns:
    'scores' by name, 'warnings' in words, 'reference' of Inception, 'references' by network, and
    'protocol', the facts behind them.

  Raises:
    UserError: a file cannot be read, or does not fit the others.
  """
  network = inception_weights
  if not isinstance(network, inception.Inception):
    network = inception_files.load(network)
  network, mesh = feature_network.of_inception(network), mesh or sharding.make_mesh()
  options, others = options or picture_metrics.MetricOptions(), others or panel.PanelOptions()
  given = picture_sets.open_set(samples_file, quantiser)
  side, labels = given.image_shape[0], given.labels()  # Before the scores, which take long.
  metrics = {}
  for prefix, one in {'': network, **panel.open_networks(others)}.items():
    published = panel.reference_of(others, prefix, one)
    against = picture_sets.open_reference(
      published or os.fspath(reference_file),
      one,
      functools.partial(sources.open_source, size=side, labels='any'),
      image_size=side,
      mesh=mesh,
      batch_size=options.batch_size,
      quantiser=quantiser,
      own=bool(published),
      key=panel.key_of(prefix),
    )
    metrics[prefix] = picture_metrics.PictureMetrics(
      one, against, image_size=side, options=options, mesh=mesh
    )
  ratios = panel.Ratios(others, metrics, side)
  digest = hashlib.sha256()
  read = _read(given, options.batch_size, digest)
  found = ratios.add(picture_metrics.score(metrics, read, len(given)))
  if labels is not None and (sorted_by_label := checks.order_warnings(labels)):
    found['warnings'] = [w for w in found['warnings'] if not w.startswith(checks.ALIKE)]
    found['warnings'] += sorted_by_label
  found['warnings'] += given.remarks
  quantised = getattr(given, 'quantised', None)
  networks = {one.network.name: one.network.facts() for one in metrics.values()}
  facts = {
    'samples': {
      'name': given.name,
      'images': len(given),
      'side': side,
      'sha256': digest.hexdigest(),
      **({'quantiser': quantised} if quantised else {}),
    },
    'network': network.facts(),
    **({'networks': networks} if len(networks) > 1 else {}),
    **ratios.facts(),
    'precision_recall': options.precision_recall,
    'kid_subsets': options.kid_subsets,
    'batch_size': options.batch_size,
    'device': card.devices(),
    'versions': card.versions(),
  }
  return {**found, 'reference': found['references'][network.name], 'protocol': facts}


def _read(given, size, digest):
  """The batches of a set, with progress logged and their bytes added to a digest."""
  meter, done = progress.Progress(f'scoring {given.name}', len(given), 'images'), 0
  for batch in given.batches(size):
    digest.update(np.ascontiguousarray(batch).data)
    yield batch
    done += len(batch)
    meter.at(done)
