"""What several modes need: mesh, shapes of the state, weights to look at, samples, grids."""

from collections.abc import Mapping
import contextlib
import dataclasses
import functools
import pathlib
from typing import Any

from absl import logging
from flax import nnx
import jax
from jax.experimental import multihost_utils
import numpy as np

from diversedit_jax import checkpoint, rng, sharding, trees, types
from diversedit_jax.data import images, sources
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import learned, run_dir
from diversedit_jax.modes import null_label, origins
from diversedit_jax.sampling import generate, trajectory
from diversedit_jax.training import average, initial, state, step
from diversedit_jax.weights import misfits

_NAME = 20  # Letters of a class's name beside a row.
_TINY = 16  # Pixels; squares this few are hard to read as a picture.


@dataclasses.dataclass(frozen=True)
class Weights:
  """Parameters to look at, and where they come from.

  step: training steps behind them; None for a file.
  origin: checkpoint or file, without folders; of a file of the hub its place.
  kind: one of `card.WEIGHTS`.
  label_dropout: share of labels that was dropped in their training, or in that of the weights that
    it started from; for a file that of the config; None if it is not known.
  label_names: names of the classes that they were trained on; () if they are not known.
  remarks: sentences that make their samples doubtful.
  """

  graphdef: nnx.GraphDef
  params: Mapping[str, Any]
  mesh: jax.sharding.Mesh
  step: int | None
  origin: str
  kind: str
  label_dropout: float | None = None
  label_names: tuple[str, ...] = ()
  remarks: tuple[str, ...] = ()

  @property
  def label(self) -> str:
    """The step, or the file's name, for names of results."""
    file = pathlib.PurePath(self.origin.partition('#')[0])
    return file.name if self.step is None else str(self.step)

  @functools.cached_property
  def fingerprint(self) -> str:
    """Digest of the parameters, see `trees.fingerprint`; made once for all settings of a sweep."""
    return trees.fingerprint(self.params)


def make_mesh(experiment):
  """The mesh of a run, over all devices."""
  mesh = experiment.mesh
  return sharding.make_mesh(mesh.data, mesh.fsdp, mesh.tensor)


def make_trainable(experiment, mesh, *, heads=True):
  """Shapes and shardings of the state of a run (UserError if the mesh does not fit the model).

  heads: whether the network has what its terms bring, which no sample needs.
  """
  trainable = state.Trainable(
    functools.partial(experiment.network, heads=heads),
    experiment.transformation(),
    mesh,
    shard_over_data=experiment.optimizer.shard_over_data,
    freeze=experiment.optimizer.freeze if heads else '',
  )
  sharding.check_split(
    trainable.params, trainable.param_shardings, mesh, experiment.architecture.width
  )
  return trainable


def make_step(experiment, trainable):
  """The training step of the run, not compiled yet."""
  return step.make_step(
    experiment.objective,
    trainable.graphdef,
    experiment.transformation(),
    key=rng.stream(jax.random.key(experiment.seed), 'train'),
    ema_decay=experiment.train.ema_decay,
    ema_warmup=experiment.train.ema_warmup,
    learning_rate=experiment.schedule(),
    accumulate=experiment.train.accumulate,
    fixed=trainable.fixed,
  )


def open_weights(experiment, workdir, origin):
  """The directory for results, and the weights to look at.

  Args:
    experiment: whose model the weights must fit.
    workdir: directory of the run, or for results if there is an origin.
    origin: a folder checkpoints/STEP, or a file of weights, here or on the hub; None takes the
      run's newest checkpoint.

  Raises:
    UserError: no such weights, weights of another model, or `sample.weights=params` of a file.
  """
  mesh = make_mesh(experiment)
  wanted = experiment.sample.weights
  dropout = experiment.train.label_dropout or (None if experiment.init_from else 0.0)
  names = tuple(experiment.source.label_names)
  if origin is None:
    path = run_dir.open_for_reading(workdir, experiment.config, space_facts(experiment.source))
    run_dir.check_results(path)
    folder, number = path / 'checkpoints', None
    dropout = null_label.dropped_by(path)
    names = learned.label_names(path, experiment.source.digest, names)
  else:
    found = origins.find(origin)
    path = run_dir.open_for_output(workdir)
    if found.step is None:
      kind, step = 'file', None
      if found.about is not None:
        found.about.check(experiment.config, space_facts(experiment.source))
        kind, step = (found.about.weights[fact] for fact in ('kind', 'step'))
        dropout = found.about.label_dropout
        names = tuple(found.about.data['label_names'])
      held = 'params' if kind == 'params' else 'ema'
      if wanted != held:
        raise types.UserError(
          f'sample.weights={wanted} chooses among those of a checkpoint, but {found.name} is '
          f'a file, which holds one set: give sample.weights={held}'
        )
      trainable = make_trainable(experiment, mesh, heads=False)
      params, has_null = _from_file(found, trainable)
      dropout = dropout if has_null else 0.0
      return path, Weights(trainable.graphdef, params, mesh, step, found.name, kind, dropout, names)
    folder, number = found.path.parent, found.step
    if found.run is not None:
      # Refuses another model, and one of other latents.
      run_dir.open_for_reading(str(found.run), experiment.config, space_facts(experiment.source))
      dropout = null_label.dropped_by(found.run)
      names = learned.label_names(found.run, experiment.source.digest, names)
  if not folder.is_dir():
    raise types.UserError(f'no checkpoint in {folder}; train first')
  trainable = make_trainable(experiment, mesh)
  with contextlib.closing(checkpoint.Checkpoints(str(folder), read_only=True)) as checkpoints:
    found, items, _ = checkpoints.restore(trainable.targets(wanted), number)
  logging.info('%s weights of step %d', wanted, found)
  return path, Weights(
    trainable.graphdef,
    items[wanted],
    mesh,
    found,
    f'checkpoints/{found}',
    wanted,
    dropout,
    names,
    _remarks(folder.parent, found, wanted),
  )


def _remarks(path, number, kind):
  """What is doubtful about weights of a step of the run in a directory, if there is one."""
  if kind != 'ema' or not (path / 'config.json').exists():
    return ()
  decay, warmup = (run_dir.stored_value(path, f'train.ema_{key}') for key in ('decay', 'warmup'))
  return tuple(filter(None, [average.remark(decay, warmup, number)]))


def _from_file(origin, trainable):
  """Weights that `python -m diversedit_jax.convert` wrote, and whether they have a null label.

  A row of zeros stands for the null label of a model that never learned one.
  """
  flat = origin.arrays('ema')
  wanted = trees.named_leaves(trainable.params)
  if problems := faults(flat, wanted):
    raise types.UserError(f'{origin.path} does not fit the config: {"; ".join(problems)}')
  leaves = [flat[name].astype(x.dtype) for name, x in wanted.items()]
  params = jax.tree.unflatten(jax.tree.structure(trainable.params), leaves)
  params = jax.tree.map(jax.device_put, params, trainable.shardings.params)
  return params, bool(flat[initial.TABLE][-1].any())


def faults(flat, wanted, *, finite=False):
  """How arrays by name do not fit the leaves of a model; heads are left out: they only train it."""
  shapes = {name: x.shape for name, x in wanted.items()}
  is_head = lambda name: name.startswith('heads/')
  return misfits.find(flat, shapes, unused=is_head, finite=finite)


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


def on_all_processes(action, refusal):
  """The result of an action of this process, unless one of the processes fails in theirs.

  None waits for one that has failed. refusal: what those say that have not.

  Raises:
    UserError: another process failed.
  """
  failure = None
  try:
    result = action()
  except Exception as error:
    failure = error
  agreed = checkpoint.all_processes(failure is None)
  if failure is not None:
    raise failure
  if not agreed:
    raise types.UserError(f'{refusal}; its message says why')
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


def make_generator(experiment, graphdef, mesh, count, sampler=None):
  """Makes samples by the experiment's sampler or another one; `count`: number of samples."""
  options = experiment.sample
  return generate.Generator(
    graphdef,
    experiment.objective.flow.sample,
    sampler or experiment.sampler,
    mesh=mesh,
    seed=options.seed,
    batch_size=min(options.batch_size, count),
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
    num_samples=len(labels),
  )
  if weights.label_names:
    facts['label_names'] = card.label_names(labels, weights.label_names)
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
  return (
    f'{origin}, {facts["sampler"]}, NFE {facts["nfe"]}, guidance {facts["guidance"]["scale"]:g}'
  )
