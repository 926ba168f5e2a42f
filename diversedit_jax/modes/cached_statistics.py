"""Statistics of a source's pictures, computed once and kept in a file."""

import pathlib

from absl import logging
import jax

from diversedit_jax import checkpoint
from diversedit_jax.data import order, sources
from diversedit_jax.evaluation import card, feature_network, pictures, reference
from diversedit_jax.modes import multihost

_ORDER_SEED = 0


def kept(
  source: sources.Source,
  view: feature_network.FeatureNetwork,
  mesh: jax.sharding.Mesh,
  batch_size: int,
  folder: pathlib.Path,
) -> reference.Reference:
  """The statistics of all pictures of a source by a network; from the file if it is there.

  The features of some pictures from all over the source are kept for precision and recall.

  Args:
    source: uint8 pictures. view: the network. mesh: computes. batch_size: of all devices.
    folder: where the file is looked for and written.

  Raises:
    UserError: for a source without square uint8 colour pictures, or a folder that not all
      processes see.
  """
  pictures.check_source(source)
  side = source.pixel_shape[0]
  facts = {
    'inception_sha256': view.sha256,
    'image_size': side,
    'resize': view.resize,
    'source': source.name,
    'source_sha256': pictures.digest(source),
    'network': view.facts(),
    'versions': card.versions(),
  }
  path = folder / file_name(source, view)
  if not checkpoint.all_processes(path.is_file()):
    logging.info('%s: statistics of %d pictures by %s', source.name, len(source), view.name)
    n = len(source)
    summary = feature_network.Extractor(view, mesh, batch_size).summarise(
      pictures.batches(source, batch_size),
      n,
      keep=min(n, reference.POOL_LIMIT),
      places=order.permutation(_ORDER_SEED, 0, n),
    )
    if jax.process_index() == 0:
      reference.write(path, summary, facts)
    multihost.wait_for(path.is_file, folder)
  return reference.read(path)


def file_name(source: sources.Source, view: feature_network.FeatureNetwork) -> str:
  """Of the file; tells source, size and network, and by digests which of each."""
  name = source.name.replace('/', '-').replace(':', '-')
  side = source.pixel_shape[0]
  return f'{name}-{side}-{pictures.digest(source)[:8]}-{view.name}-{view.sha256[:8]}.npz'
