"""`--mode=sample`: samples of some weights, with their protocol card."""

from collections.abc import Iterator, Sequence
import pathlib
import time

import jax
import numpy as np

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import progress
from diversedit_jax.data import images, sources
from diversedit_jax.evaluation import card, samples
from diversedit_jax.modes import (
  evaluate,
  guiding,
  identity,
  null_label,
  opening,
  restoring,
  run_context,
)
from diversedit_jax.sampling import generate

_KEY = 'sample.labels'


def run(
  experiment: experiment_lib.Experiment, workdir: str, origin: str | None
) -> list[pathlib.Path]:
  """Writes samples.npz with its card, and a grid of the pictures if there are some; the paths.

  Latents become pictures, uint8, where `vae.weights` or `rae.decoder` is given. The memory holds a
  batch, and what the grid shows.

  Raises:
    UserError: there are samples of another protocol in the folder.
  """
  decoder = opening.open_decoder(experiment, run_context.make_mesh(experiment))
  path, weights = restoring.open_weights(experiment, workdir, origin)
  options, count = experiment.sample, experiment.sample.number
  classes = experiment.architecture.num_classes
  labels = generate.make_labels(options.labels, np.arange(count), classes, options.seed)
  sampler = null_label.sampler_for(experiment, _KEY)
  null_label.check_trained(experiment, weights.label_dropout, [sampler], _KEY)
  weights = guiding.with_guide(experiment, workdir, weights, [sampler], _KEY)
  folder = path / 'samples' / weights.named(options.name)
  archive, known = folder / 'samples.npz', folder / 'samples.json'
  generator = run_context.make_generator(
    experiment, weights.graphdef, weights.mesh, count, sampler, weights.guide
  )
  finished = {}
  if decoder is not None:
    finished = decoder.facts()
  facts = run_context.protocol(
    experiment,
    weights,
    labels,
    sampler=sampler,
    label_policy=generate.canonical(options.labels, classes),
    seconds=0.0,
    batch_size=generator.batch_size,
    parameters=weights.fingerprint,
    **finished,
  )
  identity.check_card(
    known, facts, 'Choose another folder for these (--config.sample.name=NAME), or remove that one'
  )
  size = experiment.source.shape[:2]
  limit = images.grid_limit(*(size if decoder is None else decoder.size(*size)))
  grid = _Grid(labels, limit, weights.label_names)
  started = time.monotonic()
  with run_context.sampling(experiment, weights.mesh):
    batches = _batches(experiment, generator, weights.params, labels, decoder, grid)
    if jax.process_index() != 0:
      for _ in batches:
        pass
      return []
    samples.write_arrays(archive, count, batches, {'labels': labels})
  facts['seconds'] = time.monotonic() - started
  if weights.remarks:
    facts['warnings'] = list(weights.remarks)
    evaluate.warn('samples', weights.remarks)
  card.write_json(known, facts)
  return [archive, known, *grid.save(folder / 'grid.png', run_context.caption(facts))]


def _batches(experiment, generator, params, labels, decoder, grid) -> Iterator[dict]:
  """Rows of the arrays by name, the largest array first."""
  meter = progress.Progress('sampling', len(labels), 'images')
  for start in range(0, len(labels), generator.batch_size):
    indices = np.arange(start, min(start + generator.batch_size, len(labels)))
    made = generator(params, labels[indices], indices)
    arrays = {sources.KEYS[experiment.source.space]: made}
    if decoder is not None:
      arrays = {'images': decoder(made), **arrays}
    grid.add(start, arrays.get('images'))
    meter.at(start + len(indices))
    yield arrays


class _Grid:
  """The pictures that a grid shows, picked out as they are made."""

  def __init__(self, labels: np.ndarray, limit: tuple[int, int], names: Sequence[str]):
    """labels: of all samples. limit: the most rows and columns. names: of all classes, or ()."""
    self._labels, self._names, self._pictures = labels, names, {}
    self._shown, self._columns = choose(labels, *limit)

  def add(self, start: int, pictures: np.ndarray | None) -> None:
    """Looks at the samples from a position on; None for latents, of which there is no grid."""
    if pictures is not None:
      here = self._shown[(self._shown >= start) & (self._shown < start + len(pictures))]
      self._pictures |= {i: pictures[i - start].copy() for i in here.tolist()}

  def save(self, path: pathlib.Path, title: str) -> list[pathlib.Path]:
    """Saves the grid; the path, or nothing without pictures."""
    if not self._pictures:
      return []
    if len(self._shown) < len(self._labels):
      title += f', {len(self._shown)} of {len(self._labels)} samples'
    pictures = np.stack([self._pictures[i] for i in self._shown.tolist()])
    labels = self._labels[self._shown]
    run_context.save_grid(path, pictures, labels, self._columns, title=title, names=self._names)
    return [path]


def choose(labels: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, int]:
  """Positions of the samples that a grid shows, row by row, and its columns.

  One class to a row, in one row or several, if all classes have as many samples and no other
  arrangement shows more; else a square in the order of the labels.

  Args:
    labels: label of each sample. rows, columns: the most there may be.
  """
  side = min(int(np.ceil(np.sqrt(len(labels)))), columns)
  some = np.arange(min(len(labels), side * rows))
  square = some[np.argsort(labels[some], kind='stable')]
  classes, counts = np.unique(labels, return_counts=True)
  if len(set(counts.tolist())) > 1:
    return square, side
  count, width = int(counts[0]), min(int(counts[0]), columns)
  height = max(min(count // width, rows // len(classes)), 1)
  by_class = np.argsort(labels, kind='stable').reshape(len(classes), count)
  by_class = by_class[: rows // height, : height * width].reshape(-1)
  return (by_class, width) if len(by_class) >= len(square) else (square, side)
