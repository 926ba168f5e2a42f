"""`--mode=stats`: statistics of pictures, to score samples against."""

import pathlib

from diversedit_jax import experiment as experiment_lib
from diversedit_jax.evaluation import cached_statistics, pictures, scorers
from diversedit_jax.experiment import run_dir
from diversedit_jax.modes import run_context


def run(experiment: experiment_lib.Experiment, workdir: str) -> list[pathlib.Path]:
  """Writes statistics of the pictures of `data.source` by Inception and `eval.encoder`.

  Raises:
    UserError: a source without square uint8 colour pictures, or no weights.
  """
  mesh, source = run_context.make_mesh(experiment), experiment.data.open(pixels=True)
  options = experiment.evaluation
  pictures.check_source(source)
  folder = run_dir.open_for_output(workdir) / 'statistics'
  networks = [scorers.open_inception(options.inception)]
  if options.encoder:
    side = source.pixel_shape[0]
    networks.append(
      scorers.open_encoder(options.encoder, options.encoder_weights, experiment.source, side)
    )
  for network in networks:
    cached_statistics.cached_statistics(source, network, mesh, options.batch_size, folder)
  return [folder / cached_statistics.file_name(source, network) for network in networks]
