"""`--mode=stats`: statistics of pictures, to score samples against."""

import pathlib

from diversedit_jax import experiment as experiment_lib
from diversedit_jax.evaluation import cached_statistics, panel, pictures, scorers
from diversedit_jax.experiment import run_dir
from diversedit_jax.modes import run_context


def run(experiment: experiment_lib.Experiment, workdir: str) -> list[pathlib.Path]:
  """Writes statistics of the pictures of `data.source` by the networks of `eval`.

  Raises:
    UserError: a source without square uint8 colour pictures, or no weights.
  """
  mesh, source = run_context.make_mesh(experiment), experiment.data.open(pixels=True)
  options = experiment.evaluation
  pictures.check_source(source)
  folder = run_dir.open_for_output(workdir) / 'statistics'
  networks = []
  if options.inception or not (options.networks or options.cmmd):
    networks.append(scorers.open_inception(options.inception))
  if options.encoder:
    side = source.pixel_shape[0]
    networks.append(
      scorers.open_encoder(options.encoder, options.encoder_weights, experiment.source, side)
    )
  networks += panel.open_networks(options).values()
  for network in networks:
    cached_statistics.cached_statistics(source, network, mesh, options.batch_size, folder)
  return [folder / cached_statistics.file_name(source, network) for network in networks]
