"""`--mode=stats`: statistics of pictures, to score samples against, and of an encoder's tokens."""

import pathlib

from absl import logging
import jax
import numpy as np

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import progress, sharding
from diversedit_jax.data import files
from diversedit_jax.evaluation import cached_statistics, panel, pictures, scorers
from diversedit_jax.experiment import run_dir
from diversedit_jax.methods import batches
from diversedit_jax.modes import run_context


def run(experiment: experiment_lib.Experiment, workdir: str) -> list[pathlib.Path]:
  """Writes statistics of the pictures of `data.source` by the networks of `eval`.

  With `rae.encoder` and without `rae.statistics` it writes those of the encoder's tokens, and
  others only where a network is named.

  Raises:
    UserError: a source without square uint8 colour pictures, or no weights.
  """
  mesh, source = run_context.make_mesh(experiment), experiment.data.open(pixels=True)
  options = experiment.evaluation
  folder, written = run_dir.open_for_output(workdir) / 'statistics', []
  if experiment.rae.encoder and not experiment.rae.statistics:
    written.append(_of_tokens(experiment, mesh, folder))
    if not (options.inception or options.encoder or options.networks or options.cmmd):
      return written
  pictures.check_source(source)
  networks = []
  if options.inception or not (options.networks or options.cmmd):
    networks.append(scorers.open_inception(options.inception))
  elif panel.INCEPTION in options.networks:
    logging.warning('eval.fdr: no statistics of inception without its weights, eval.inception')
  if options.encoder:
    side = source.pixel_shape[0]
    networks.append(
      scorers.open_encoder(options.encoder, options.encoder_weights, experiment.source, side)
    )
  networks += panel.open_networks(options).values()
  for network in networks:
    cached_statistics.cached_statistics(source, network, mesh, options.batch_size, folder)
  written += [folder / cached_statistics.file_name(source, network) for network in networks]
  return written


def _of_tokens(experiment, mesh, folder):
  """Writes mean and variance of the tokens of `rae.encoder`, as `rae.statistics` takes them."""
  source, tokenizer = experiment.source, experiment.source.tokenizer
  size = sharding.round_up(experiment.evaluation.batch_size, mesh)
  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  params = jax.device_put(tokenizer.load(), whole)

  @jax.jit
  def sums(params, batch, counted_N):
    tokens_NTC = tokenizer.apply(params, batches.pixels(batch)).tokens * counted_N[:, None, None]
    return jax.device_put((tokens_NTC.sum(axis=0), (tokens_NTC**2).sum(axis=0)), whole)

  mean, square = 0.0, 0.0
  reading = progress.Progress(f'tokens of {source.name}', len(source), 'images')
  for start in range(0, len(source), size):
    indices = np.arange(start, min(start + size, len(source)))
    batch = {'pixels': sharding.pad_rows(source.gather(indices)['pixels'], size)}
    counted_N = (np.arange(size) < len(indices)).astype(np.float32)
    with jax.set_mesh(mesh):
      found = sums(params, *jax.device_put((batch, counted_N), split))
    mean, square = (
      mean + np.asarray(found[0], np.float64),
      square + np.asarray(found[1], np.float64),
    )
    reading.at(start + len(indices))
  mean, square = mean / len(source), square / len(source)
  to_CHW = lambda x: np.moveaxis(x.reshape(source.shape), -1, 0).astype(np.float32)
  path = folder / f'tokens-{experiment.rae.encoder}.npz'
  if jax.process_index() == 0:
    folder.mkdir(parents=True, exist_ok=True)
    with files.atomic(path) as temporary:
      np.savez(temporary, mean=to_CHW(mean), var=to_CHW(np.maximum(square - mean**2, 0)))
  return path
