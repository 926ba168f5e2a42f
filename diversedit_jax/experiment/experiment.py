"""A whole config as one checked object."""

import dataclasses
from typing import Any

from absl import logging
from flax import nnx
import jax
import ml_collections
import optax

from diversedit_jax import interpolants, sharding, types
from diversedit_jax.analysis import section as analysis
from diversedit_jax.data import pipeline, sources
from diversedit_jax.experiment import (
  data_options,
  declarations,
  eval_options,
  rae_options,
  sections,
)
from diversedit_jax.methods import base, construction, registry
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import attention, sizes
from diversedit_jax.models import config as model_config
from diversedit_jax.planning import devices, plan
from diversedit_jax.sampling import generate, trajectory
from diversedit_jax.training import initial, loop, optim
from diversedit_jax.weights import misfits


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Everything that a config says, checked; no arrays yet."""

  config: ml_collections.ConfigDict
  seed: int
  method: str
  init_from: str
  init: initial.Options
  data: data_options.DataOptions
  source: sources.Source
  vae: sections.VaeOptions
  rae: rae_options.RaeOptions
  architecture: model_config.Architecture
  execution: model_config.Execution
  path: interpolants.Path
  objective: objective_lib.Objective
  train: sections.TrainOptions
  optimizer: optim.OptimizerConfig
  mesh: sections.MeshOptions
  log: sections.LogOptions
  checkpoint: sections.CheckpointOptions
  preview: sections.PreviewOptions
  sampler: trajectory.SamplerConfig
  sample: sections.SampleOptions
  evaluation: eval_options.EvalOptions
  sweep: eval_options.SweepOptions
  analysis: analysis.AnalysisConfig
  plan: plan.PlanConfig

  def network(self, rngs: nnx.Rngs, *, heads: bool = True) -> base.Network:
    """The network to train, freshly initialised; without heads, the model that makes samples."""
    terms = self.objective.terms if heads else ()
    return base.Network(self.architecture, self.execution, terms, rngs=rngs)

  def schedule(self) -> optax.Schedule:
    """Learning rate by step."""
    return optim.schedule(self.optimizer, self.train.steps)

  def transformation(self) -> optax.GradientTransformation:
    """The optimizer."""
    return optim.make(self.optimizer, self.train.steps)

  def loop(self) -> loop.LoopConfig:
    """Lengths and intervals of the loop."""
    return loop.LoopConfig(
      steps=self.train.steps,
      batch_size=self.train.batch_size,
      log_every=self.log.every,
      checkpoint_every=self.checkpoint.every,
    )


def build(config: ml_collections.ConfigDict, *, planned: bool = False) -> Experiment:
  """Reads a whole config; a key that it lacks means its default.

  planned: nothing will run: the model is for the machine of `plan.compile_for`, or for a GPU.

  Raises:
    UserError: for an unknown, missing or impossible entry, naming it.
  """
  given, declared = declarations.values(config), declarations.classes()
  read = {name: cls(**given[name][0]) for name, (cls, *others) in declared.items() if not others}
  general, data, train = read[''], read['data'], read['train']
  rae = read['rae']
  pixels = registry.needs(general.method, 'needs_pixels') or bool(rae.encoder)
  source = rae.encoded(data.open(pixels=pixels))
  data.check_space(source)
  rae.check(source, read['vae'].weights)
  _check_init(general.init_from, read['init'])
  optim.schedule(read['optimizer'], train.steps)  # Refuses a warm-up longer than the run.
  _check_batch(train, data, source, general.seed)
  platform = ''
  if planned:
    platform = devices.platform(read['plan'].compile_for) or 'gpu'
  architecture, execution = make_model(given['model'], source, platform)
  interpolant = read['interpolant'].for_data(architecture.shape)
  objective, architecture, execution = construction.make_objective(
    base.Setup(
      method=general.method,
      parts={name: read.get(cls.section) or cls() for name, cls in registry.METHODS.items()},
      architecture=architecture,
      execution=execution,
      source=source,
      interpolant=interpolant,
      label_dropout=train.label_dropout,
      ema_decay=train.ema_decay,
      batch_size=train.batch_size,
      examples=train.batch_size // train.accumulate,
      mirrored=data.flip,
    )
  )
  attention.check(architecture, execution)
  path, sampler = interpolant.make_path(), read['sampler']
  if sampler.shift is None and not sampler.times:
    sampler = dataclasses.replace(sampler, shift=interpolant.shift)
  experiment = Experiment(
    config=declarations.complete(config),
    seed=general.seed,
    method=general.method,
    init_from=general.init_from,
    init=read['init'],
    data=data,
    source=source,
    vae=with_scale_of(read['vae'], source),
    rae=rae,
    architecture=architecture,
    execution=execution,
    path=path,
    objective=objective,
    train=train,
    optimizer=read['optimizer'],
    mesh=read['mesh'],
    log=read['log'],
    checkpoint=read['checkpoint'],
    preview=read['preview'],
    sampler=dataclasses.replace(sampler, path=path.name),
    sample=read['sample'],
    evaluation=read['eval'],
    sweep=read['sweep'],
    analysis=read['analysis'],
    plan=read['plan'],
  )
  _check_samples(experiment)
  return experiment


def make_model(
  read: list[dict[str, Any]], source: sources.Source, platform: str = ''
) -> tuple[model_config.Architecture, model_config.Execution]:
  """What the section 'model' says, shaped for the data.

  Args:
    read: see `declarations.values`. source: the data. platform: see `model_config.Execution`.

  Raises:
    UserError: for a size by name and other numbers beside it.
  """
  size, architecture, execution = read
  name = sections.ModelSize(**size).size
  if name:
    numbers = dataclasses.asdict(sizes.size(name))
    stated = {k: v for k, v in architecture.items() if k in numbers and v}
    contrary = {k: v for k, v in stated.items() if v != numbers[k]}
    if contrary:
      raise types.UserError(
        f'config.model.size={name!r} and {contrary} contradict each other; set size to ""'
      )
    architecture = architecture | numbers
  rows, cols, channels = source.shape
  return (
    model_config.Architecture(
      **architecture, input_size=(rows, cols), channels=channels, num_classes=source.num_classes
    ),
    model_config.Execution(**execution, platform=platform),
  )


def with_scale_of(options: sections.VaeOptions, source: sources.Source) -> sections.VaeOptions:
  """The section 'vae', with the scale of latents that the data have.

  Raises:
    UserError: for another scale than that of the data, or a VAE for pixels.
  """
  if source.space == 'pixels' and options.weights:
    raise types.UserError(f'vae.weights={options.weights!r}, but {source.name} are pixels')
  if source.scaling is None:
    for name in ('scale', 'shift'):
      if getattr(options, name) is not None and not options.weights:
        raise types.UserError(
          f'vae.{name}={getattr(options, name)} has no use: {source.name} is scaled already, and '
          'without vae.weights nothing is decoded'
        )
    return options
  stated = {'scale': options.scale, 'shift': options.shift}
  for name, value in stated.items():
    found = getattr(source.scaling, name)
    if value is not None and value != found:
      made = misfits.first_few([str(x) for x in jax.tree.leaves(found)])
      raise types.UserError(f'vae.{name}={value}, but {source.name} was made for {made}')
  return dataclasses.replace(options, scale=source.scaling.scale, shift=source.scaling.shift)


def check_devices(experiment: Experiment, mesh) -> None:
  """Refuses a batch that the mesh cannot share (UserError)."""
  train, divisor = experiment.train, sharding.batch_divisor(mesh)
  if train.batch_size % (divisor * train.accumulate):
    raise types.UserError(
      f'train.batch_size={train.batch_size} is not divisible by {divisor} devices (mesh.data times '
      f'mesh.fsdp) times train.accumulate={train.accumulate}'
    )


def _check_init(init_from, options):
  fields = [field.name for field in dataclasses.fields(options)]
  stated = [n for n in fields if getattr(options, n) != getattr(initial.Options(), n)]
  if stated and not init_from:
    raise types.UserError(
      f'init.{stated[0]}={getattr(options, stated[0])!r} is about the weights of init_from, which '
      'is not given'
    )


def _check_batch(train, data, source, seed):
  if train.batch_size > len(source):
    raise types.UserError(
      f'train.batch_size={train.batch_size} is more than {source.name} has examples: {len(source)}'
    )
  # Refuses mirror images that there are none of.
  pipeline.Steps(source=source, seed=seed, batch_size=train.batch_size, flip=data.flip)
  if train.batch_size % train.accumulate:
    raise types.UserError(
      f'train.batch_size={train.batch_size} is not divisible by train.accumulate={train.accumulate}'
    )


def _check_samples(experiment):
  """Refuses samples that the model or the method cannot make."""
  architecture, sampler = experiment.architecture, experiment.sampler
  experiment.evaluation.check_number('sweep.number', experiment.sweep.number)
  classes, seed = architecture.num_classes, experiment.sample.seed
  generate.make_labels(experiment.sample.labels, [0], classes, seed)
  scored = experiment.evaluation.labels
  if not scored.startswith(eval_options.LABELS_FILE):  # A file is read when it is needed.
    generate.make_labels(scored, [0], classes, 0, key='eval.labels')
  trajectory.check_guidance(sampler, architecture.null_label)
  experiment.objective.flow.check_sampler(sampler)
  prediction = experiment.config.interpolant.prediction
  if sampler.clamp and prediction != 'data':
    raise types.UserError(
      f"sampler.clamp={sampler.clamp} is for interpolant.prediction='data', got {prediction!r}; "
      'set sampler.clamp=0'
    )
  if sampler.class_token_scale is not None and not architecture.class_token:
    raise types.UserError(
      f'sampler.class_token_scale={sampler.class_token_scale} is for method=reg; '
      f'{experiment.method!r} has no class token'
    )
  guided = sampler.guidance_channels
  if guided is not None and guided > architecture.channels:
    raise types.UserError(
      f'sampler.guidance_channels={guided}, but {experiment.source.name} has '
      f'{architecture.channels} channels'
    )
  for line in sampler.without_effect():
    logging.warning('%s', line)
