"""Experiments of configs/ as built, and the papers' values that several tests hold them to."""

import importlib

from diversedit_jax import experiment as experiment_lib


def config_of(name, arg):
  return importlib.import_module(f'configs.{name}').get_config(arg)


def built(name, arg=''):
  return experiment_lib.build(config_of(name, arg))


# The papers' values, by attribute of a built experiment: DiverseDiT, Table A1, and what MeanFlow
# (2505.13447) has instead.
RECIPE = {
  'train.batch_size': 256,
  'train.label_dropout': 0.1,
  'train.ema_decay': 0.9999,
  'train.accumulate': 1,
  'optimizer.learning_rate': 1e-4,
  'optimizer.b1': 0.9,
  'optimizer.b2': 0.999,
  'optimizer.eps': 1e-8,
  'optimizer.weight_decay': 0.0,
  'optimizer.clip_norm': 1.0,
  'optimizer.warmup_steps': 0,
  'optimizer.schedule': 'constant',
  'architecture.mlp_ratio': 4.0,
  'architecture.qk_norm': False,
  'architecture.learn_sigma': False,
  'execution.dtype': 'bfloat16',
  'execution.residual_dtype': 'float32',
  'architecture.num_classes': 1000,
  'path.name': 'linear',
  'config.interpolant.prediction': 'velocity',
  'config.interpolant.time_law': 'uniform',
  'config.interpolant.weighting': 'none',
  'sampler.kind': 'euler_maruyama',
  'sampler.steps': 250,
  'sampler.diffusion': '2t',
  'sampler.last_step': 0.04,
  'sampler.guidance_scale': 1.0,
  'sample.weights': 'ema',
}
MEANFLOW = {
  'execution.dtype': 'float32',
  'optimizer.b2': 0.95,
  'optimizer.clip_norm': 0.0,
  'config.interpolant.time_law': 'logit_normal',
  'config.interpolant.time_mean': -0.4,
  'config.interpolant.time_std': 1.0,
  'sampler.kind': 'average_velocity',
  'sampler.steps': 1,
  'objective.flow.variant': 'original',
  'objective.flow.power': 1.0,
  'objective.flow.constant': 0.01,
}
SHAPES = {
  's': (12, 384, 6, 2),
  'b': (12, 768, 12, 2),
  'l': (24, 1024, 16, 2),
  'xl': (28, 1152, 16, 2),
}


def found(experiment, names):
  values = {}
  for name in names:
    value = experiment
    for part in name.split('.'):
      value = getattr(value, part)
    values[name] = value
  return values


def term(experiment, name):
  return next(t for t in experiment.objective.terms if t.name == name)
