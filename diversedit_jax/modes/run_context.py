"""What several modes need: mesh, shapes of the state, facts of data, samples, grids."""

import contextlib
import dataclasses
import functools

import jax
from jax.experimental import multihost_utils
import numpy as np

from diversedit_jax import faults, meeting, rng, sharding, types
from diversedit_jax.data import bad_records, images, order, pipeline, sources
from diversedit_jax.evaluation import card
from diversedit_jax.models import attention
from diversedit_jax.sampling import generate, trajectory
from diversedit_jax.training import optim, phases, state, step

_NAME = 20  # Letters of a class's name beside a row.
_TINY = 16  # Pixels; squares this few are hard to read as a picture.


def make_mesh(experiment, devices=None):
  """The mesh of a run, over all devices or over some."""
  mesh = experiment.mesh
  return sharding.make_mesh(mesh.data, mesh.fsdp, mesh.tensor, devices=devices, slices=mesh.slices)


def with_attention(experiment, known):
  """The experiment with its attention decided, before a mesh is set or a model made.

  known: kernels that were used before, by platform, see `kernels.read`.
  """
  remembered = known.get(jax.default_backend(), '')
  execution = attention.chosen(experiment.architecture, experiment.execution, remembered)
  return dataclasses.replace(experiment, execution=execution)


def unprobed(experiment):
  """The experiment for those who look at shapes alone: no kernel is tried."""
  execution = dataclasses.replace(experiment.execution, attention='xla')
  return dataclasses.replace(experiment, execution=execution)


def make_trainable(experiment, mesh, *, heads=True):
  """Shapes and shardings of the state of a run (UserError if the mesh does not fit the model).

  heads: whether the network has what its terms bring, which no sample needs.
  """
  architecture = experiment.architecture
  for blocks, of in zip(architecture.stacks, ('', ' of model.head'), strict=False):
    sharding.check_tensor(mesh, blocks.heads, blocks.hidden, of)
  trainable = state.Trainable(
    functools.partial(experiment.network, heads=heads),
    experiment.transformation(),
    mesh,
    shard_over_data=experiment.optimizer.shard_over_data,
    freeze=experiment.optimizer.freeze if heads else '',
    averages=experiment.train.tracked(),
  )
  if heads:
    optim.check(experiment.optimizer, trainable.trained(trainable.params))
  sharding.check_split(trainable.params, trainable.param_shardings, mesh, architecture.width)
  return trainable


def make_steps(experiment, trainable):
  """The training step of the run by number, compiled over its mesh; see `phases`."""
  mesh, shardings = trainable.mesh, trainable.shardings
  made = lambda objective: step.compile_step(
    make_step(experiment, trainable, objective), shardings, mesh
  )
  return phases.of(experiment.objective, made)


def make_step(experiment, trainable, objective=None):
  """The training step of the run, not compiled yet.

  objective: what it minimises; None is that of the run, with all terms.
  """
  return step.make_step(
    objective or experiment.objective,
    trainable.graphdef,
    experiment.transformation(),
    key=rng.stream(jax.random.key(experiment.seed), 'train'),
    ema_decay=experiment.train.ema_decay,
    ema_warmup=experiment.train.ema_warmup,
    learning_rate=experiment.schedule(),
    accumulate=experiment.train.accumulate,
    fixed=trainable.fixed,
    averages=trainable.averages,
    skip=experiment.train.on_nonfinite == 'skip',
  )


def examples_of(experiment, step):
  """Indices of the examples in the batch of a step that is counted from 1, over all processes."""
  return order.batch_indices(
    experiment.seed, step - 1, experiment.train.batch_size, len(experiment.source)
  )


def data_facts(source):
  """What identifies the data of a run: name, number of examples, digest, and `space_facts`.

  Names of classes are among them, 'label_names', if there are some.

  Raises:
    UserError: processes have different data, for example because one local copy is old.
  """
  facts = {'name': source.name, 'examples': len(source), 'sha256': source.digest()}
  facts |= space_facts(source)
  if source.label_names:
    facts['label_names'] = list(source.label_names)
  check_same_everywhere(
    facts['sha256'], f'{source.name}, of {len(source)} examples on process {jax.process_index()},'
  )
  return facts


def check_same_everywhere(sha256, what):
  """Refuses what is not the same on all processes, an old local copy say (UserError).

  sha256: digest of this process, in hex.
  """
  mine = np.frombuffer(bytes.fromhex(sha256), np.uint8)
  others = np.reshape(multihost_utils.process_allgather(mine), (-1, len(mine)))
  if (others != mine).any():
    raise types.UserError(
      f'{what} is not the same on all processes: process {jax.process_index()} has SHA-256 '
      f'{sha256[:16]}..., and {int((others != mine).any(axis=1).sum())} of {len(others)} '
      'processes have another'
    )


def on_all_processes(action):
  """The result of an action of this process, unless one of the processes fails in theirs.

  None waits for one that has failed.

  Raises:
    UserError: another process failed, with its message.
  """
  failure = None
  try:
    result = action()
  except Exception as error:
    failure = error
  told = '' if failure is None else faults.told(failure) or f'{type(failure).__name__}: {failure}'
  others = meeting.texts(told)
  if failure is not None:
    raise failure
  for number, line in enumerate(others):
    if line:
      raise types.UserError(f'process {number}: {line}')
  return result


def space_facts(source):
  """What samples of a run mean: their space, and the encoder and scale of latents if known."""
  latents = source.latent_facts()
  return {'space': source.space} | ({} if latents is None else {'latents': latents})


def resident(experiment, mesh):
  """The source to train on: as it is, or in the memory that `data.resident` names."""
  source, where = experiment.source, experiment.data.resident
  if where == 'none':
    return source
  held = sources.in_memory(source, flip=experiment.data.flip)
  if where == 'host':
    return held
  whole, batch = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  return sources.DeviceSource(held, whole=whole, batch=batch)


@contextlib.contextmanager
def open_batches(experiment, mesh, start, bad=None):
  """Batches of a run on the devices, from that after so many steps on.

  bad: counts bad records, a `bad_records.Count`; None does not.
  """
  source = resident(experiment, mesh)
  options, batch_size = experiment.data, experiment.train.batch_size
  steps = pipeline.Steps(
    source=source,
    seed=experiment.seed,
    batch_size=batch_size,
    rows=sharding.process_rows(mesh, batch_size),
    flip=options.flip,
    max_bad=options.max_bad,
  )
  with pipeline.batches(
    steps,
    start_step=start,
    put=lambda batch: (
      batch.pop(bad_records.KEY, None),
      sharding.put_batch(batch, mesh, batch_size),
    ),
    prefetch=options.prefetch,
    threads=options.threads,
    workers=options.workers,
  ) as batches:
    # Here and not in the background: all processes start programs in the same order.
    alone = bad.counted(batches, start) if bad else (batch for _, batch in batches)
    yield map(source.look_up, alone) if options.resident == 'device' else alone


def make_generator(experiment, graphdef, mesh, count, sampler=None, guide=None):
  """Makes samples by the experiment's sampler or another one.

  count: number of samples. guide: of `restoring.Weights`.
  """
  options = experiment.sample
  return generate.Generator(
    graphdef,
    experiment.objective.sample,
    sampler or experiment.sampler,
    mesh=mesh,
    seed=options.seed,
    batch_size=min(options.batch_size, count),
    guide=guide,
  )


@contextlib.contextmanager
def sampling(experiment, mesh):
  """Context for tracing and running samplers and decoders: mesh and precision of products."""
  with jax.set_mesh(mesh), jax.default_matmul_precision(experiment.sample.matmul_precision):
    yield


def sampler_facts(experiment, sampler=None):
  """Facts of the sampler for a protocol card."""
  sampler = sampler or experiment.sampler
  return {
    'seed': experiment.sample.seed,
    'sampler': sampler.kind,
    'steps': sampler.steps,
    'nfe': trajectory.evaluations(sampler).per_sample,
    'guidance_scale': sampler.guidance_scale,
    'guidance_interval': (sampler.guidance_low, sampler.guidance_high),
    'guidance_channels': sampler.guidance_channels,
    'path': sampler.path,
    **sampler.facts(),
    **experiment.objective.sampling_facts(),
    'precision': {
      'model': experiment.execution.dtype,
      'residual': experiment.execution.residual_dtype,
      'float32_products': experiment.sample.matmul_precision,
    },
  }


def protocol(experiment, weights, labels, *, sampler=None, **extra):
  """The protocol card of the samples that some `Weights` made of labels."""
  facts = sampler_facts(experiment, sampler)
  facts = card.protocol_card(
    **{'quantiser': None, **facts, **extra},
    weights=weights.kind,
    step=weights.step,
    checkpoint=weights.origin,
    attention=weights.attention,
    num_samples=len(labels),
  )
  if weights.made_of:
    facts['average'] = dict(weights.made_of)
  if weights.label_names:
    facts['label_names'] = card.label_names(labels, weights.label_names)
  if trajectory.GUIDE in (sampler or experiment.sampler).velocities:
    facts['guidance'] |= {'formula': card.AUTOGUIDANCE, 'by': dict(weights.guided_by)}
  if experiment.architecture.class_token:
    facts['guidance']['class_token_scale'] = (sampler or experiment.sampler).class_token_scale
  return facts


def save_grid(path, made, labels, columns, *, title, names=()):
  """Saves a grid, with labels and their names at the left if every row has one class.

  Tiny images are smoothed.
  """
  rows = [labels[i : i + columns] for i in range(0, len(labels), columns)]
  uniform = all((row == row[0]).all() for row in rows)
  row_labels = [_row_label(int(row[0]), names) for row in rows] if uniform else None
  smooth = min(made.shape[1:3]) < _TINY
  title += ' (enlarged bicubically)' if smooth else ''
  images.save_grid(path, made, columns, row_labels=row_labels, title=title, smooth=smooth)


def _row_label(label, names):
  if not names:
    return str(label)
  name = names[label] if label < len(names) else 'no class'
  if name == str(label):
    return name
  return f'{label} {name if len(name) <= _NAME else name[: _NAME - 1] + "…"}'


def caption(facts):
  """Title of a grid, from its protocol card."""
  origin = facts['checkpoint'] if facts['step'] is None else f'step {facts["step"]}'
  return f'{origin}, {facts["sampler"]}, NFE {facts["nfe"]}, guidance {card.guidance(facts)}'
