"""Statistics of a source's pictures, computed once and kept in a file."""

from collections.abc import Iterable
import pathlib
from typing import Any

import jax
import numpy as np

from diversedit_jax import meeting
from diversedit_jax.data import order, sources
from diversedit_jax.evaluation import (
  accumulate,
  card,
  feature_network,
  multihost,
  pictures,
  reference,
)

_ORDER_SEED = 0


def summarise(
  batches: Iterable[np.ndarray],
  count: int,
  network: feature_network.FeatureNetwork,
  mesh: jax.sharding.Mesh,
  batch_size: int,
) -> accumulate.Summary:
  """Statistics of `count` pictures, with the features of some from all over them."""
  return feature_network.Extractor(network, mesh, batch_size).summarise(
    batches,
    count,
    keep=min(count, network.points),
    places_N=order.permutation(_ORDER_SEED, 0, count),
  )


def cached_statistics(
  source: sources.Source,
  network: feature_network.FeatureNetwork,
  mesh: jax.sharding.Mesh,
  batch_size: int,
  folder: pathlib.Path,
) -> reference.Reference:
  """The statistics of all pictures of a source by a network; from the file if it is there.

  The features of some pictures from all over the source are kept for precision and recall.

  Args:
    source: uint8 pictures.
    network: turns pictures into features.
    mesh: devices.
    batch_size: pictures at a time, over all devices.
    folder: where the file is looked for, and written.

  Raises:
    UserError: the source has no square uint8 colour pictures, or not all processes see the folder.
  """
  pictures.check_source(source)
  facts = facts_of(
    network,
    image_size=source.pixel_shape[0],
    source=source.name,
    sha256=source.pixels_digest(),
  )
  path = folder / file_name(source, network)
  if not meeting.all_agree(path.is_file()):
    read = pictures.batches(source, batch_size)
    summary = summarise(read, len(source), network, mesh, batch_size)
    if jax.process_index() == 0:
      reference.write(path, summary, facts, limit=network.points)
    multihost.wait_for(path.is_file, folder)
  return reference.read(path)


def facts_of(
  network: feature_network.FeatureNetwork, *, image_size: int, source: str, sha256: str
) -> dict[str, Any]:
  """Facts of statistics, as `reference.Reference` has them: the network, and which pictures."""
  return {
    'inception_sha256': network.sha256,
    'image_size': image_size,
    'resize': network.resize,
    'source': source,
    'source_sha256': sha256,
    'network': network.facts(),
    'versions': card.versions(),
  }


def file_name(source: sources.Source, network: feature_network.FeatureNetwork) -> str:
  """Name of the file: source, size and network, with the beginning of their digests."""
  name = source.name.replace('/', '-').replace(':', '-')
  side, digest = source.pixel_shape[0], source.pixels_digest()
  return f'{name}-{side}-{digest[:8]}-{network.name}-{network.sha256[:8]}.npz'
