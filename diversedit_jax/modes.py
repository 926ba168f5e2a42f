"""What `--mode` does, one function each, given a checked experiment and a directory."""

from collections.abc import Mapping, Sequence
import contextlib
import dataclasses
import pathlib
import time
from typing import Any

from absl import logging
from flax import nnx
import jax
import numpy as np

from diversedit_jax import build, checkpoint, convert, rng, sharding, trees, types
from diversedit_jax.analysis import blocks, figures, similarity
from diversedit_jax.data import files, images, pipeline, sources
from diversedit_jax.evaluation import card, digits
from diversedit_jax.sampling import generate
from diversedit_jax.training import loop, run_dir, state, step, telemetry, writers
from diversedit_jax.training import plan as plan_lib

_TINY = 16  # Pixels; squares this few are hard to read as a picture.


@dataclasses.dataclass(frozen=True)
class Weights:
  """Parameters to look at, and where they come from."""

  graphdef: nnx.GraphDef
  params: Mapping[str, Any]
  mesh: jax.sharding.Mesh
  step: int | None
  origin: str


def train(experiment: build.Experiment, workdir: str) -> None:
  """Trains, or continues the run that the workdir holds."""
  mesh = _mesh(experiment)
  build.check_devices(experiment, mesh)
  first = jax.process_index() == 0
  trainable = _trainable(experiment, mesh)
  path = _first_then_all(
    lambda: run_dir.open_for_training(workdir, experiment.config, card.versions(), write=first)
  )
  key = jax.random.key(experiment.seed)
  step_fn = step.make_step(
    experiment.objective, trainable.graphdef, experiment.transformation(),
    key=rng.stream(key, 'train'), ema_decay=experiment.train.ema_decay,
    learning_rate=experiment.schedule(), accumulate=experiment.train.accumulate,
  )  # fmt: skip
  logging.info(
    '%s, %s: %s parameters, mesh %s, batch %d', experiment.config.method, experiment.source.name,
    f'{trees.count(trainable.params):,}', dict(mesh.shape), experiment.train.batch_size,
  )  # fmt: skip
  rows = sharding.process_rows(mesh, experiment.train.batch_size)
  with jax.set_mesh(mesh), contextlib.closing(_checkpoints(path, experiment)) as checkpoints:
    loop.train(
      experiment.loop(),
      trainable=trainable,
      step_fn=step.compile_step(step_fn, trainable.shardings, mesh),
      init_key=rng.stream(key, 'init'),
      open_batches=lambda start: pipeline.batches(
        experiment.source, seed=experiment.seed, batch_size=experiment.train.batch_size,
        start_step=start, rows=rows, prefetch=experiment.data.prefetch,
      ),
      checkpoints=checkpoints,
      open_writer=lambda start: writers.Writer(
        path, start_step=start, tensorboard=experiment.log.tensorboard, active=first
      ),
      hooks=lambda writer: _hooks(experiment, trainable, path, writer, key, first),
    )  # fmt: skip


def sample(experiment: build.Experiment, workdir: str, origin: str | None) -> list[pathlib.Path]:
  """Writes samples.npz with its card, and a grid if the model makes pixels; returns the paths."""
  path, weights = _open(experiment, workdir, origin)
  options = experiment.sample
  labels = generate.make_labels(
    options.labels, np.arange(options.number), experiment.model.num_classes, options.seed
  )
  made, facts = _generate(experiment, weights, labels)
  if jax.process_index() != 0:
    return []
  key = sources.KEYS[experiment.source.space]
  with files.atomic(path / 'samples' / 'samples.npz') as temporary:
    np.savez(temporary, **{key: made, 'labels': labels})
  written = [path / 'samples' / 'samples.npz', path / 'samples' / 'samples.json']
  card.write_json(written[1], facts)
  if experiment.source.space == 'pixels':
    order = np.argsort(labels, kind='stable')
    columns = int(np.bincount(labels).max())
    grid = path / 'samples' / 'grid.png'
    _save_grid(grid, made[order], labels[order], columns, title=_caption(facts))
    written.append(grid)
  return written


def evaluate(experiment: build.Experiment, workdir: str, origin: str | None) -> list[pathlib.Path]:
  """Scores fresh samples against the held-out data; writes `eval/NAME.json` with its protocol."""
  if not experiment.source.name.startswith('digits'):
    raise types.UserError(
      f'eval.name=digits scores samples of data.source=digits, got {experiment.data.source}'
    )
  path, weights = _open(experiment, workdir, origin)
  labels = generate.make_labels(
    'balanced',
    np.arange(experiment.evaluation.number),
    experiment.model.num_classes,
    experiment.sample.seed,
  )
  made, facts = _generate(experiment, weights, labels, label_policy='balanced')
  if jax.process_index() != 0:
    return []
  result = digits.DigitsReference.build().evaluate(made, labels)
  logging.info(
    'class consistency %.1f%% (real test images %.1f%%), Frechet distance %.3f (floor %.3f)',
    100 * result['class_consistency'], 100 * result['classifier_test_accuracy'],
    result['frechet_distance'], result['frechet_floor'],
  )  # fmt: skip
  for warning in result['warnings']:
    logging.warning('%s', warning)
  target = path / 'eval' / f'{experiment.evaluation.name}.json'
  card.write_json(target, {**result, 'protocol': facts})
  return [target]


def analyze(experiment: build.Experiment, workdir: str, origin: str | None) -> list[pathlib.Path]:
  """CKA between the outputs of all blocks; writes `analysis/cka.npz` and `analysis/cka.png`."""
  path, weights = _open(experiment, workdir, origin)
  options = experiment.analysis
  source = sources.open_source(experiment.data.source, split='test')
  with jax.set_mesh(weights.mesh):
    features = blocks.block_features(
      weights.graphdef, weights.params, source, options, path=experiment.path,
      key=rng.stream(jax.random.key(experiment.seed), 'analysis'), mesh=weights.mesh,
    )  # fmt: skip
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
  """The cost of the config, in words."""
  options, mesh = experiment.plan, experiment.mesh
  planned = sharding.planned_mesh(mesh.data, mesh.fsdp, mesh.tensor, options.devices)
  trainable = _trainable(experiment, planned)
  numbers = plan_lib.plan(
    experiment.model, options, steps=experiment.train.steps, batch_size=experiment.train.batch_size,
    accumulate=experiment.train.accumulate,
    shard_bytes=sharding.shard_bytes(trainable.params, trainable.param_shardings),
  )  # fmt: skip
  return plan_lib.table(numbers, options, experiment.train.steps)


def _mesh(experiment):
  mesh = experiment.mesh
  return sharding.make_mesh(mesh.data, mesh.fsdp, mesh.tensor)


def _trainable(experiment, mesh):
  trainable = state.Trainable(experiment.network, experiment.transformation(), mesh)
  sharding.check_split(trainable.params, trainable.param_shardings, mesh, experiment.model.width)
  return trainable


def _first_then_all(action):
  """The result of an action on the run directory that the first process must do before the others.

  Raises:
    UserError: that of the first process; the others say that it refused.
  """
  first, refusal = jax.process_index() == 0, None
  try:
    result = action() if first else None
  except types.UserError as error:
    refusal = error
  agreed = checkpoint.all_processes(refusal is None)
  if refusal is not None:
    raise refusal
  if not agreed:
    raise types.UserError('the first process refused the workdir; its message says why')
  return result if first else action()


def _checkpoints(path, experiment):
  options = experiment.checkpoint
  return checkpoint.Checkpoints(
    str(path / 'checkpoints'), keep=options.keep, keep_every=options.keep_every or None
  )


def _open(experiment, workdir, origin):
  """The directory for results, and the weights: of its run, of another checkpoint, or of a file."""
  mesh = _mesh(experiment)
  trainable = _trainable(experiment, mesh)
  wanted = experiment.sample.weights
  if origin is None:
    path = run_dir.open_for_reading(workdir, experiment.config)
    folder, number = path / 'checkpoints', None
  else:
    path, folder = run_dir.open_for_output(workdir), pathlib.Path(origin).expanduser().absolute()
    if folder.is_file():
      params = _from_file(folder, trainable)
      return path, Weights(trainable.graphdef, params, mesh, None, folder.name)
    if not (folder.is_dir() and folder.name.isdigit()):
      raise types.UserError(
        f'checkpoint {folder} is neither a weights file nor a folder checkpoints/STEP of a run'
      )
    folder, number = folder.parent, int(folder.name)
    if (folder.parent / 'config.json').exists():
      run_dir.open_for_reading(str(folder.parent), experiment.config)  # Refuses another model.
  if not folder.is_dir():
    raise types.UserError(f'no checkpoint in {folder}; train first')
  with contextlib.closing(checkpoint.Checkpoints(str(folder))) as checkpoints:
    found, items, _ = checkpoints.restore(trainable.targets(wanted), number)
  logging.info('%s weights of step %d', wanted, found)
  return path, Weights(trainable.graphdef, items[wanted], mesh, found, f'checkpoints/{found}')


def _from_file(file, trainable):
  """Weights that `python -m diversedit_jax.convert` wrote."""
  flat = convert.load(str(file))
  wanted = trees.named_leaves(trainable.params)
  found = {name: array.shape for name, array in flat.items()}
  wrong = [
    f'{name}: found {found.get(name, "nothing")}, expected {x.shape}'
    for name, x in wanted.items()
    if found.get(name) != x.shape
  ]
  if wrong:
    raise types.UserError(f'{file} does not fit the config: {"; ".join(wrong)}')
  leaves = [flat[name].astype(x.dtype) for name, x in wanted.items()]
  params = jax.tree.unflatten(jax.tree.structure(trainable.params), leaves)
  return jax.tree.map(jax.device_put, params, trainable.shardings.params)


def _generate(experiment, weights, labels, *, label_policy=None):
  options, sampler = experiment.sample, experiment.sampler
  generator = generate.Generator(
    weights.graphdef, sampler, mesh=weights.mesh, seed=options.seed,
    batch_size=min(options.batch_size, len(labels)),
  )  # fmt: skip
  started = time.monotonic()
  with jax.set_mesh(weights.mesh):
    made = generator(weights.params, labels, progress=True)
  facts = card.protocol_card(
    seed=options.seed, sampler=sampler.kind, steps=sampler.steps,
    nfe=generator.evaluations.per_sample,
    guidance_scale=sampler.guidance_scale,
    guidance_interval=(sampler.guidance_low, sampler.guidance_high),
    guidance_channels=sampler.guidance_channels, label_policy=label_policy or options.labels,
    quantiser=None, weights=options.weights, step=weights.step, checkpoint=weights.origin,
    num_samples=len(labels), seconds=time.monotonic() - started, batch_size=generator.batch_size,
    path=sampler.path, diffusion=sampler.diffusion,
  )  # fmt: skip
  return made, facts


def _hooks(experiment, trainable, path, writer, key, first) -> Sequence[loop.Hook]:
  similar = telemetry.make_similarity(
    experiment.objective, trainable, key=key, examples=experiment.log.telemetry_examples
  )
  watch = telemetry.hook(
    experiment.log.telemetry_every, similar, path / 'telemetry', writer, active=first
  )
  return [watch, _preview(experiment, trainable, path, writer, first)]


def _preview(experiment, trainable, path, writer, first):
  """Grids of the averaged weights at intervals, always of the same labels and noise."""
  options = experiment.preview
  rows = min(options.rows, max(experiment.model.num_classes, 1))
  labels = np.repeat(np.arange(rows, dtype=np.int32), options.columns)
  generator = generate.Generator(
    trainable.graphdef, experiment.sampler, mesh=trainable.mesh, seed=experiment.sample.seed,
    batch_size=min(experiment.sample.batch_size, len(labels)),
  )  # fmt: skip

  def run(step, state, batch):
    del batch
    made = generator(state.ema, labels)
    if not first:
      return
    folder = path / 'samples'
    if experiment.source.space == 'pixels':
      title = f'step {step}, {generator.evaluations.per_sample} evaluations per sample'
      _save_grid(folder / f'preview-{step:08d}.png', made, labels, options.columns, title=title)
      writer.images(step, {'preview': images.to_uint8(made, 'round_half')})
    else:
      with files.atomic(folder / f'preview-{step:08d}.npz') as temporary:
        np.savez(temporary, latents=made, labels=labels)

  return loop.Hook(every=options.every, run=run)


def _save_grid(path, made, labels, columns, *, title):
  """One class per row where the rows fit, with its name at the left; tiny images are smoothed."""
  rows = [labels[i : i + columns] for i in range(0, len(labels), columns)]
  uniform = all((row == row[0]).all() for row in rows)
  row_labels = [str(row[0]) for row in rows] if uniform else None
  smooth = min(made.shape[1:3]) < _TINY
  title += ' (enlarged bicubically)' if smooth else ''
  images.save_grid(path, made, columns, row_labels=row_labels, title=title, smooth=smooth)


def _caption(facts):
  origin = facts['checkpoint'] if facts['step'] is None else f'step {facts["step"]}'
  return (
    f'{origin}, {facts["sampler"]}, NFE {facts["nfe"]}, guidance {facts["guidance"]["scale"]:g}'
  )
