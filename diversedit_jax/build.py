"""From a config to checked, typed parts; the only reader of configs.

Each section is splatted into a dataclass, so an unknown key is an error that names the nearest one,
and everything is checked here, before anything compiles.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any, TypeVar

from flax import nnx
import jax
import ml_collections
import optax

from diversedit_jax import interpolants, sharding, trees, types
from diversedit_jax.analysis import blocks
from diversedit_jax.data import sources
from diversedit_jax.losses import diversity_config
from diversedit_jax.methods import base, diverse, flow
from diversedit_jax.models import attention, sit, sizes, stack
from diversedit_jax.sampling import generate, trajectory
from diversedit_jax.training import loop, optim, plan

T = TypeVar('T')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
  """source: see `data.sources.open_source`. prefetch: batches kept ready.

  num_classes: of labels; None is what the source has.
  """

  source: str
  num_classes: int | None
  prefetch: int

  def __post_init__(self):
    _at_least('data', 'prefetch', self.prefetch, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
  """Length and statistics of training; see `configs.common.base`."""

  steps: int
  batch_size: int
  accumulate: int
  label_dropout: float
  ema_decay: float

  def __post_init__(self):
    for name in ('steps', 'batch_size', 'accumulate'):
      _at_least('train', name, getattr(self, name), 1)
    if not 0 <= self.ema_decay < 1:
      raise types.UserError(f'train.ema_decay must lie in [0, 1), got {self.ema_decay}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshOptions:
  """Devices per mesh axis; one may be -1. 'fsdp' splits the state, 'tensor' the matrices."""

  data: int
  fsdp: int
  tensor: int

  def __post_init__(self):
    for name in ('data', 'fsdp', 'tensor'):
      if getattr(self, name) < 1 and getattr(self, name) != -1:
        raise types.UserError(f'mesh.{name} must be positive or -1, got {getattr(self, name)}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogOptions:
  """Intervals in steps; telemetry_every = 0 is off."""

  every: int
  telemetry_every: int
  telemetry_examples: int
  tensorboard: bool

  def __post_init__(self):
    _at_least('log', 'every', self.every, 1)
    _at_least('log', 'telemetry_every', self.telemetry_every, 0)
    _at_least('log', 'telemetry_examples', self.telemetry_examples, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
  """every: steps. keep: how many of the newest. keep_every: these stay for ever; 0 is off."""

  every: int
  keep: int
  keep_every: int

  def __post_init__(self):
    _at_least('checkpoint', 'every', self.every, 1)
    _at_least('checkpoint', 'keep', self.keep, 1)
    _at_least('checkpoint', 'keep_every', self.keep_every, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewOptions:
  """every: steps; 0 is off. rows: one class each. columns: samples of each class."""

  every: int
  rows: int
  columns: int

  def __post_init__(self):
    _at_least('preview', 'every', self.every, 0)
    _at_least('preview', 'rows', self.rows, 1)
    _at_least('preview', 'columns', self.columns, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
  """Which weights make how many samples of which labels, from which seed."""

  seed: int
  batch_size: int
  weights: str
  number: int
  labels: str

  def __post_init__(self):
    _known('sample', 'weights', self.weights, ('ema', 'params'))
    _at_least('sample', 'seed', self.seed, 0)
    _at_least('sample', 'batch_size', self.batch_size, 1)
    _at_least('sample', 'number', self.number, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions:
  """name: of the reference, which also names the result file. number: of samples."""

  name: str
  number: int

  def __post_init__(self):
    _known('eval', 'name', self.name, ('digits',))
    _at_least('eval', 'number', self.number, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Everything that a config says, checked; no arrays yet."""

  config: ml_collections.ConfigDict
  seed: int
  data: DataOptions
  source: sources.Source
  model: sit.SiTConfig
  path: interpolants.Path
  objective: base.Objective
  train: TrainOptions
  optimizer: optim.OptimizerConfig
  mesh: MeshOptions
  log: LogOptions
  checkpoint: CheckpointOptions
  preview: PreviewOptions
  sampler: trajectory.SamplerConfig
  sample: SampleOptions
  evaluation: EvalOptions
  analysis: blocks.AnalysisConfig
  plan: plan.PlanConfig

  def network(self, rngs: nnx.Rngs) -> base.Network:
    """The network to train, freshly initialised."""
    return base.Network(self.model, self.objective.terms, rngs=rngs)

  def schedule(self) -> optax.Schedule:
    """Learning rate by step."""
    return optim.schedule(self.optimizer, self.train.steps)

  def transformation(self) -> optax.GradientTransformation:
    """The optimizer."""
    return optim.make(self.optimizer, self.train.steps)

  def loop(self) -> loop.LoopConfig:
    """Lengths and intervals of the loop."""
    return loop.LoopConfig(
      steps=self.train.steps, batch_size=self.train.batch_size, log_every=self.log.every,
      checkpoint_every=self.checkpoint.every,
    )  # fmt: skip


SECTIONS = (
  'seed', 'method', 'data', 'model', 'interpolant', 'diversity', 'train', 'optimizer', 'mesh',
  'log', 'checkpoint', 'preview', 'sampler', 'sample', 'eval', 'analysis', 'plan',
)  # fmt: skip


def build(config: ml_collections.ConfigDict) -> Experiment:
  """Reads a whole config.

  Raises:
    UserError: for an unknown, missing or impossible entry, naming it.
  """
  _check_keys('config', config, SECTIONS, SECTIONS)
  _at_least('config', 'seed', config.seed, 0)
  data = splat(DataOptions, config.data, 'data')
  source = sources.open_source(data.source, num_classes=data.num_classes)
  model = make_model(config.model, source)
  path = make_path(config.interpolant)
  train = splat(TrainOptions, config.train, 'train')
  optimizer = splat(optim.OptimizerConfig, config.optimizer, 'optimizer')
  optim.schedule(optimizer, train.steps)  # Refuses a warm-up longer than the run.
  if train.batch_size > len(source):
    raise types.UserError(
      f'train.batch_size={train.batch_size} is more than {source.name} has examples: {len(source)}'
    )
  experiment = Experiment(
    config=config,
    seed=config.seed,
    data=data,
    source=source,
    model=model,
    path=path,
    objective=make_objective(config, model, path, train),
    train=train,
    optimizer=optimizer,
    mesh=splat(MeshOptions, config.mesh, 'mesh'),
    log=splat(LogOptions, config.log, 'log'),
    checkpoint=splat(CheckpointOptions, config.checkpoint, 'checkpoint'),
    preview=splat(PreviewOptions, config.preview, 'preview'),
    sampler=splat(trajectory.SamplerConfig, config.sampler, 'sampler', path=path.name),
    sample=splat(SampleOptions, config.sample, 'sample'),
    evaluation=splat(EvalOptions, config.eval, 'eval'),
    analysis=splat(blocks.AnalysisConfig, config.analysis, 'analysis'),
    plan=splat(plan.PlanConfig, config.plan, 'plan'),
  )
  generate.make_labels(experiment.sample.labels, [0], model.num_classes, experiment.sample.seed)
  trajectory.check_guidance(experiment.sampler, model.null_label)
  guided = experiment.sampler.guidance_channels
  if guided is not None and guided > model.channels:
    raise types.UserError(
      f'sampler.guidance_channels={guided}, but {source.name} has {model.channels} channels'
    )
  return experiment


def splat(cls: type[T], section: Mapping[str, Any], name: str, **extra: Any) -> T:
  """An instance of a dataclass from a config section; `extra` fields do not come from the config.

  Raises:
    UserError: naming unknown keys (and the nearest) and missing ones.
  """
  fields = [f for f in dataclasses.fields(cls) if f.name not in extra]
  required = [f.name for f in fields if f.default is dataclasses.MISSING]
  _check_keys(f'config.{name}', section, [f.name for f in fields], required)
  return cls(**dict(section), **extra)


def make_model(section: ml_collections.ConfigDict, source: sources.Source) -> sit.SiTConfig:
  """The model's config: a published size or four numbers, shaped for the data."""
  names = [f.name for f in dataclasses.fields(sit.SiTConfig)]
  from_data = ('input_size', 'channels', 'num_classes')
  known = ['size', *(n for n in names if n not in from_data)]
  shape = [f.name for f in dataclasses.fields(sizes.Size)]
  _check_keys('config.model', section, known, ['size', 'skip', *shape])
  fields = dict(section)
  skip = dict(fields.pop('skip'))
  _check_keys('config.model.skip', skip, ['enabled', 'placement'], ['enabled', 'placement'])
  name = fields.pop('size')
  if name:
    numbers = dataclasses.asdict(sizes.size(name))
    given = {k: fields[k] for k in numbers if fields[k] not in (0, numbers[k])}
    if given:
      raise types.UserError(
        f'config.model.size={name!r} and {given} contradict each other; set size to ""'
      )
    fields |= numbers
  rows, cols, channels = source.shape
  model = sit.SiTConfig(
    **fields, input_size=(rows, cols), channels=channels, num_classes=source.num_classes,
    skip=stack.Skip(placement=skip['placement']) if skip['enabled'] else None,
  )  # fmt: skip
  # Probe now, so that a kernel that cannot run is known before the model is traced.
  attention.choose(
    model.attention, model.tokens, model.heads, model.width // model.heads, model.dtype
  )
  return model


def make_path(section: ml_collections.ConfigDict) -> interpolants.Path:
  """The interpolant by name."""
  keys = ('path', 'time_law', 'time_mean', 'time_std', 'epsilon')
  _check_keys('config.interpolant', section, keys, keys)
  _known('interpolant', 'path', section.path, interpolants.PATHS)
  return interpolants.PATHS[section.path]


def make_time_law(section: ml_collections.ConfigDict, path: interpolants.Path) -> flow.TimeLaw:
  """The law of training times by name.

  Raises:
    UserError: for an unknown law, a mean or deviation that it does not have, or times nearer to the
      ends
      than the path allows.
  """
  _known('interpolant', 'time_law', section.time_law, interpolants.TIME_LAWS)
  law = interpolants.TIME_LAWS[section.time_law]
  epsilon = path.epsilon if section.epsilon is None else section.epsilon
  if epsilon < path.epsilon:
    raise types.UserError(
      f'interpolant.epsilon={epsilon} is too small: path {path.name!r} needs {path.epsilon}'
    )
  fields = {
    'epsilon': epsilon,
    'path': path.name,
    'mean': section.time_mean,
    'std': section.time_std,
  }
  names = [f.name for f in dataclasses.fields(law)]
  if 'mean' not in names and (section.time_mean, section.time_std) != (0.0, 1.0):
    raise types.UserError(
      f'interpolant.time_law={section.time_law!r} has no mean and deviation; leave time_mean=0.0, '
      f'time_std=1.0 (got {section.time_mean}, {section.time_std})'
    )
  return law(**{name: fields[name] for name in names})


def make_objective(
  config: ml_collections.ConfigDict,
  model: sit.SiTConfig,
  path: interpolants.Path,
  train: TrainOptions,
) -> base.Objective:
  """The flow and the terms that the method's name lists, as in 'flow+diverse'.

  Raises:
    UserError: for an unknown or repeated name, or a term that the batch or the model does not
      allow.
  """
  names = config.method.split('+')
  for name in names:
    _known('config', 'method', name, METHODS)
  if len(set(names)) < len(names) or 'flow' in names[1:]:
    raise types.UserError(f'method {config.method!r} must name each part once, the flow first')
  options = splat(diversity_config.DiversityConfig, config.diversity, 'diversity')
  terms = ()
  if 'diverse' in names:
    # Traced: even a key would be compiled.
    jax.eval_shape(lambda: options.select(model.depth, jax.random.key(0)))
    part = train.batch_size // train.accumulate
    if part % options.groups:
      raise types.UserError(
        f'diversity.groups={options.groups} does not divide the {part} examples of a microbatch'
      )
    terms = (diverse.Diverse(config=options),)
  return base.Objective(
    flow=flow.VelocityFlow(
      path=path, time_law=make_time_law(config.interpolant, path),
      label_dropout=train.label_dropout, null_label=model.null_label,
    ),
    terms=terms,
  )  # fmt: skip


def check_devices(experiment: Experiment, mesh) -> None:
  """Refuses a batch that the mesh cannot share (UserError)."""
  train, devices = experiment.train, sharding.batch_divisor(mesh)
  if train.batch_size % (devices * train.accumulate):
    raise types.UserError(
      f'train.batch_size={train.batch_size} is not divisible by {devices} devices times '
      f'train.accumulate={train.accumulate}'
    )


METHODS = ('flow', 'diverse')


def _check_keys(where: str, section: Mapping[str, Any], known, required=()) -> None:
  for key in section:
    if key not in known:
      raise types.UserError(f'unknown key {where}.{key}{trees.did_you_mean(key, known)}')
  missing = [key for key in required if key not in section]
  if missing:
    raise types.UserError(f'{where} lacks {", ".join(missing)}')


def _known(section: str, field: str, value: Any, options) -> None:
  if value not in options:
    raise types.UserError(
      f'unknown {section}.{field} {value!r}{trees.did_you_mean(str(value), options)}'
    )


def _at_least(section: str, field: str, value: float, low: float) -> None:
  if value < low:
    raise types.UserError(f'{section}.{field} must be at least {low}, got {value}')
