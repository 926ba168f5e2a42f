"""A whole config as one checked object."""

import dataclasses

from absl import logging
from flax import nnx
import ml_collections
import optax

from diversedit_jax import interpolants, sharding, types
from diversedit_jax.analysis import blocks
from diversedit_jax.data import pipeline, sources
from diversedit_jax.experiment import eval_options, method, network, sections
from diversedit_jax.methods import base, rules
from diversedit_jax.models import config as config_lib
from diversedit_jax.planning import devices, plan
from diversedit_jax.sampling import generate, trajectory
from diversedit_jax.training import loop, optim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
  """Everything that a config says, checked; no arrays yet."""

  config: ml_collections.ConfigDict
  seed: int
  data: sections.DataOptions
  source: sources.Source
  vae: sections.VaeOptions
  architecture: config_lib.Architecture
  execution: config_lib.Execution
  path: interpolants.Path
  objective: base.Objective
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
  analysis: blocks.AnalysisConfig
  plan: plan.PlanConfig

  def network(self, rngs: nnx.Rngs) -> base.Network:
    """The network to train, freshly initialised."""
    return base.Network(self.architecture, self.execution, self.objective.terms, rngs=rngs)

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


SECTIONS = (
  'seed',
  'method',
  'data',
  'vae',
  'model',
  'interpolant',
  *method.OPTIONS,
  'train',
  'optimizer',
  'mesh',
  'log',
  'checkpoint',
  'preview',
  'sampler',
  'sample',
  'eval',
  'sweep',
  'analysis',
  'plan',
)


def build(config: ml_collections.ConfigDict, *, planned: bool = False) -> Experiment:
  """Reads a whole config.

  planned: nothing will run: the model is for the machine of `plan.compile_for`, or for a GPU.

  Raises:
    UserError: for an unknown, missing or impossible entry, naming it.
  """
  sections.check_keys('config', config, SECTIONS, SECTIONS)
  sections.at_least('config', 'seed', config.seed, 0)
  data = sections.splat(sections.DataOptions, config.data, 'data')
  names = rules.parse(config.method)
  source = data.open(pixels=rules.needs(names, 'encoder'))
  path = network.make_path(config.interpolant)
  train = sections.splat(sections.TrainOptions, config.train, 'train')
  optimizer = sections.splat(optim.OptimizerConfig, config.optimizer, 'optimizer')
  optim.schedule(optimizer, train.steps)  # Refuses a warm-up longer than the run.
  if train.batch_size > len(source):
    raise types.UserError(
      f'train.batch_size={train.batch_size} is more than {source.name} has examples: {len(source)}'
    )
  # Refuses a seed, and mirror images that there are none of.
  pipeline.Steps(source=source, seed=config.seed, batch_size=train.batch_size, flip=data.flip)
  if train.batch_size % train.accumulate:
    raise types.UserError(
      f'train.batch_size={train.batch_size} is not divisible by train.accumulate={train.accumulate}'
    )
  plan_options = sections.splat(plan.PlanConfig, config.plan, 'plan')
  platform = (devices.platform(plan_options.compile_for) or 'gpu') if planned else ''
  model, execution = network.make_model(config.model, source, platform)
  objective, model, execution = method.make_objective(
    method.Inputs(
      config=config,
      names=names,
      source=source,
      model=model,
      execution=execution,
      path=path,
      batch_size=train.batch_size,
      examples=train.batch_size // train.accumulate,
    )
  )
  experiment = Experiment(
    config=config,
    seed=config.seed,
    data=data,
    source=source,
    vae=make_vae_options(config, source),
    architecture=model,
    execution=execution,
    path=path,
    objective=objective,
    train=train,
    optimizer=optimizer,
    mesh=sections.splat(sections.MeshOptions, config.mesh, 'mesh'),
    log=sections.splat(sections.LogOptions, config.log, 'log'),
    checkpoint=sections.splat(sections.CheckpointOptions, config.checkpoint, 'checkpoint'),
    preview=sections.splat(sections.PreviewOptions, config.preview, 'preview'),
    sampler=sections.splat(trajectory.SamplerConfig, config.sampler, 'sampler', path=path.name),
    sample=sections.splat(sections.SampleOptions, config.sample, 'sample'),
    evaluation=sections.splat(eval_options.EvalOptions, config.eval, 'eval'),
    sweep=sections.splat(eval_options.SweepOptions, config.sweep, 'sweep'),
    analysis=sections.splat(blocks.AnalysisConfig, config.analysis, 'analysis'),
    plan=plan_options,
  )
  experiment.evaluation.check_number('sweep.number', experiment.sweep.number)
  generate.make_labels(experiment.sample.labels, [0], model.num_classes, experiment.sample.seed)
  scored = experiment.evaluation.labels
  if not scored.startswith(eval_options.LABELS_FILE):  # A file is read when it is needed.
    generate.make_labels(scored, [0], model.num_classes, 0, key='eval.labels')
  trajectory.check_guidance(experiment.sampler, model.null_label)
  objective.flow.check_sampler(experiment.sampler)
  if 'meanflow' in names and config.interpolant.time_law == 'uniform':
    logging.warning(
      'method=meanflow with uniform times: its published recipe (logit-normal times, b2, no '
      'clipping, one step) comes with the meta-argument --config=FILE.py:method=meanflow only'
    )
  if experiment.sampler.class_token_scale is not None and not model.class_token:
    raise types.UserError(
      f'sampler.class_token_scale={experiment.sampler.class_token_scale} is for method=reg; '
      f'{config.method!r} has no class token'
    )
  guided = experiment.sampler.guidance_channels
  if guided is not None and guided > model.channels:
    raise types.UserError(
      f'sampler.guidance_channels={guided}, but {source.name} has {model.channels} channels'
    )
  return experiment


def make_vae_options(
  config: ml_collections.ConfigDict, source: sources.Source
) -> sections.VaeOptions:
  """The section 'vae', with the scale of latents that the data have.

  Raises:
    UserError: for another scale than that of the data, or a VAE for pixels.
  """
  options = sections.splat(sections.VaeOptions, config.vae, 'vae')
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
      raise types.UserError(f'vae.{name}={value}, but {source.name} was made for {found}')
  return dataclasses.replace(options, scale=source.scaling.scale, shift=source.scaling.shift)


def check_devices(experiment: Experiment, mesh) -> None:
  """Refuses a batch that the mesh cannot share (UserError)."""
  train, devices = experiment.train, sharding.batch_divisor(mesh)
  if train.batch_size % (devices * train.accumulate):
    raise types.UserError(
      f'train.batch_size={train.batch_size} is not divisible by {devices} devices times '
      f'train.accumulate={train.accumulate}'
    )
