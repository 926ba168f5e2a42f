"""`--mode=sample`: samples of some weights, with their protocol card."""

import pathlib

import jax
import numpy as np

from diversedit_jax import experiment as experiment_lib
from diversedit_jax.data import files, sources
from diversedit_jax.evaluation import card
from diversedit_jax.modes import decoding, run_context
from diversedit_jax.sampling import generate


def run(
  experiment: experiment_lib.Experiment, workdir: str, origin: str | None
) -> list[pathlib.Path]:
  """Writes samples.npz with its card, and a grid of the pictures if there are some; the paths.

  Latents become pictures, uint8, where `vae.weights` is given.
  """
  decoder = decoding.open_decoder(experiment, run_context.make_mesh(experiment))
  path, weights = run_context.open_weights(experiment, workdir, origin)
  options = experiment.sample
  labels = generate.make_labels(
    options.labels, np.arange(options.number), experiment.architecture.num_classes, options.seed
  )
  made, facts = run_context.generate_samples(experiment, weights, labels)
  arrays = {sources.KEYS[experiment.source.space]: made, 'labels': labels}
  if decoder is not None:
    with run_context.sampling(experiment, weights.mesh):
      arrays['images'] = decoder(made)
    facts |= {'quantiser': decoder.quantiser, 'vae': decoder.facts()}
  if jax.process_index() != 0:
    return []
  with files.atomic(path / 'samples' / 'samples.npz') as temporary:
    np.savez(temporary, **arrays)
  written = [path / 'samples' / 'samples.npz', path / 'samples' / 'samples.json']
  card.write_json(written[1], facts)
  if 'images' in arrays:
    order = np.argsort(labels, kind='stable')
    columns = int(np.bincount(labels).max())
    grid, pictures = path / 'samples' / 'grid.png', arrays['images'][order]
    run_context.save_grid(grid, pictures, labels[order], columns, title=run_context.caption(facts))
    written.append(grid)
  return written
