"""What training does at intervals beside steps: telemetry, sample grids, the count of bad records.

Every process runs each hook; the first one records.
"""

import jax
import numpy as np

from diversedit_jax.data import files, images
from diversedit_jax.modes import restoring, run_context
from diversedit_jax.training import loop, telemetry


def telemetries(experiment, trainable, frozen, path, writer, key) -> list[loop.Hook]:
  """How similar the blocks are, and how large."""
  log, folder = experiment.log, path / 'telemetry'
  objective, active = experiment.objective.flow_only(), jax.process_index() == 0
  kinds = {'similarity': telemetry.make_similarity, 'blocks': telemetry.make_sizes}
  hooks = []
  for name, make in kinds.items():
    compute = make(objective, trainable, frozen, key=key, examples=log.telemetry_examples)
    every = log.telemetry_every
    hooks.append(telemetry.hook(name, every, compute, folder, writer, active=active))
  return hooks


def bad_records(experiment, bad, writer) -> loop.Hook:
  """How many distinct bad records all processes have met; written again, it is the same."""

  def run(step, state, batch):
    del state, batch
    bad.join()
    if jax.process_index() == 0:
      writer.row(step, {'data/bad_records': float(len(bad.met))})

  every = experiment.log.every if experiment.data.max_bad else 0
  return loop.Hook(every=every, run=run, made=lambda step: False)


def preview(experiment, trainable, decoder, path, writer) -> loop.Hook:
  """Grids of samples of `sample.weights`, always with the same labels and noise."""
  options, wanted = experiment.preview, restoring.kept(experiment)
  rows = min(options.rows, max(experiment.architecture.num_classes, 1))
  labels = np.repeat(np.arange(rows, dtype=np.int32), options.columns)
  generator = run_context.make_generator(
    experiment, trainable.graphdef, trainable.mesh, len(labels)
  )
  shown = decoder is not None or experiment.source.space == 'pixels'
  file = lambda step: path / 'samples' / f'preview-{step:08d}{".png" if shown else ".npz"}'

  def run(step, state, batch):
    del batch
    with run_context.sampling(experiment, trainable.mesh):  # As `--mode=sample` does.
      made = generator(state.weights(wanted), labels)
      pictures = made if decoder is None else decoder(made)
    if jax.process_index() != 0:
      return
    if not shown:
      with files.atomic(file(step)) as temporary:
        np.savez(temporary, latents=made, labels=labels)
      return
    title = f'step {step}, {generator.evaluations.per_sample} evaluations per sample'
    run_context.save_grid(
      file(step),
      pictures,
      labels,
      options.columns,
      title=title,
      names=experiment.source.label_names,
    )
    if pictures.dtype != np.uint8:
      pictures = images.to_uint8(pictures, 'round_half')
    writer.images(step, {'preview': pictures})

  return loop.Hook(every=options.every, run=run, made=lambda step: file(step).exists())
