"""`--mode=sample`, `analyze` and `plan`: what a config or its weights are worth."""

import pathlib

from absl import logging
import jax
import numpy as np

from diversedit_jax import build, rng, sharding, trees
from diversedit_jax.analysis import blocks, figures, similarity
from diversedit_jax.data import files, sources
from diversedit_jax.evaluation import card
from diversedit_jax.methods import rules
from diversedit_jax.modes import decoding, shared
from diversedit_jax.sampling import generate
from diversedit_jax.training import ahead, step, targets
from diversedit_jax.training import plan as plan_lib


def sample(experiment: build.Experiment, workdir: str, origin: str | None) -> list[pathlib.Path]:
  """Writes samples.npz with its card, and a grid of the pictures if there are some; the paths.

  Latents become pictures, uint8, where `vae.weights` is given.
  """
  decoder = decoding.open_decoder(experiment, shared.make_mesh(experiment))
  path, weights = shared.open_weights(experiment, workdir, origin)
  options = experiment.sample
  labels = generate.make_labels(
    options.labels, np.arange(options.number), experiment.model.num_classes, options.seed
  )
  made, facts = shared.generate_samples(experiment, weights, labels)
  arrays = {sources.KEYS[experiment.source.space]: made, 'labels': labels}
  if decoder is not None:
    with shared.sampling(experiment, weights.mesh):
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
    shared.save_grid(grid, pictures, labels[order], columns, title=shared.caption(facts))
    written.append(grid)
  return written


def analyze(experiment: build.Experiment, workdir: str, origin: str | None) -> list[pathlib.Path]:
  """CKA between the outputs of all blocks; writes `analysis/cka.npz` and `analysis/cka.png`."""
  path, weights = shared.open_weights(experiment, workdir, origin)
  options = experiment.analysis
  wanted = rules.needs(rules.parse(experiment.config.method), 'encoder')
  source = experiment.data.open_test(experiment.source, pixels=wanted)
  objective = experiment.objective.flow_only()
  frozen = jax.device_put(objective.frozen(), sharding.replicated(weights.mesh))
  with jax.set_mesh(weights.mesh):
    features = blocks.block_features(
      weights.graphdef,
      weights.params,
      source,
      options,
      objective=objective,
      frozen=frozen,
      key=rng.stream(jax.random.key(experiment.seed), 'analysis'),
      mesh=weights.mesh,
    )
  if jax.process_index() != 0:
    return []
  matrices = blocks.cka_matrices(features, options.times, options.bandwidth)
  target, picture = path / 'analysis' / 'cka.npz', path / 'analysis' / 'cka.png'
  with files.atomic(target) as temporary:
    named = {f'{kernel}/{estimator}/t={t:g}': m for (kernel, estimator, t), m in matrices.items()}
    np.savez(
      temporary, weights=weights.origin, view=options.view, examples=features.shape[2], **named
    )
  titles = {
    f'{kernel}, {estimator}, t = {t:g}': m for (kernel, estimator, t), m in matrices.items()
  }
  figures.similarity_heatmaps(picture, titles, columns=len(options.times))
  for title, matrix in titles.items():
    logging.info('%s: diversity score %.3f', title, similarity.diversity_score(matrix))
  return [target, picture]


def plan(experiment: build.Experiment) -> str:
  """The cost of the config, in words; with `plan.compile_for`, the compiler's word beside it."""
  options, mesh = experiment.plan, experiment.mesh
  target = targets.find(options.compile_for) if options.compile_for else None
  devices = options.count(target)
  planned = sharding.planned_mesh(mesh.data, mesh.fsdp, mesh.tensor, devices)
  trainable = shared.make_trainable(experiment, planned)
  numbers = plan_lib.plan(
    experiment.model,
    options,
    devices,
    objective=experiment.objective,
    steps=experiment.train.steps,
    batch_size=experiment.train.batch_size,
    accumulate=experiment.train.accumulate,
    parameters=trees.count(trainable.params),
    shard_bytes=sharding.shard_bytes(trainable.params, trainable.param_shardings),
    average_bytes=sharding.shard_bytes(trainable.params, trainable.ema_shardings),
    data_bytes=_resident_bytes(experiment),
  )
  table = plan_lib.table(numbers, options, experiment.train.steps)
  if target is None:
    return table
  return f'{table}\n\n{_compiled(experiment, target, plan_lib.memory_gib(numbers))}'


def _compiled(experiment, target, estimate):
  """The report of the run's step, compiled for a target. estimate: GiB that the plan expects."""
  axes, batch_size = experiment.mesh, experiment.train.batch_size
  mesh = sharding.make_mesh(axes.data, axes.fsdp, axes.tensor, devices=target.devices)
  build.check_devices(experiment, mesh)
  trainable = shared.make_trainable(experiment, mesh)
  step_fn = step.compile_step(shared.make_step(experiment, trainable), trainable.shardings, mesh)
  one = experiment.source.gather(np.arange(1))
  batch = {n: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for n, x in one.items()}
  frozen = {encoder.name: encoder.params for encoder in experiment.objective.encoders}
  state = jax.eval_shape(trainable.init, jax.random.key(experiment.seed))
  # Its devices cannot run anything, which JAX would let them do with small things under `set_mesh`.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = step_fn.lower(state, batch, frozen)
  report = ahead.compile_for(target, lowered, beside=_resident_bytes(experiment))
  found = report.needed / targets.GIB
  rows = [
    *ahead.rows(report),
    ('estimate above', f"{estimate:.2f} GiB, {estimate / found:.0%} of the compiler's"),
    ('attention', _attention(experiment.model)),
  ]
  return plan_lib.aligned(rows)


def _attention(model):
  kernel = model.kernel()
  if model.attention != 'auto':
    return f'{kernel}, as the config or its method wants it'
  return f'{kernel}, the first that may run there: a run times all that do, which needs the device'


def _resident_bytes(experiment):
  """Of the examples that every device would hold."""
  source, options = experiment.source, experiment.data
  if options.resident != 'device':
    return 0
  one = source.gather(np.arange(1))
  if options.flip and source.space == 'latents':
    one |= {f'twin {name}': x for name, x in source.twins(np.arange(1)).items()}
  return len(source) * sum(x.nbytes for name, x in one.items() if name != 'labels')
