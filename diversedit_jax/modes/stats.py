"""`--mode=stats`: statistics of pictures, to score samples against."""

import pathlib

from diversedit_jax import experiment as experiment_lib
from diversedit_jax.evaluation import pictures
from diversedit_jax.experiment import run_dir
from diversedit_jax.modes import cached_statistics, run_context, scorers


def run(experiment: experiment_lib.Experiment, workdir: str) -> list[pathlib.Path]:
  """Statistics of the pictures of `data.source`, by Inception and `eval.encoder`.

  Raises:
    UserError: a source without square uint8 colour pictures, or no weights.
  """
  mesh, source = run_context.make_mesh(experiment), experiment.data.open(pixels=True)
  pictures.check_source(source)
  folder = run_dir.open_for_output(workdir) / 'statistics'
  seen = [scorers.open_inception(experiment.evaluation.inception)]
  if experiment.evaluation.encoder:
    seen.append(scorers.open_encoder(experiment, source.pixel_shape[0]))
  for view in seen:
    cached_statistics.kept(source, view, mesh, experiment.evaluation.batch_size, folder)
  return [folder / cached_statistics.file_name(source, view) for view in seen]
