"""What the studies share: seeds, fixed beforehand, and small runs that are scored on the way."""

from collections.abc import Mapping
from typing import Any

import ml_collections

from configs import cifar10, digits
from diversedit_jax import types
from diversedit_jax.experiment import study

SEEDS = (0, 1, 2, 3, 4)
STEPS = 600  # On digits: 27 epochs.


def study_of(
  title: str, variants: Mapping[str, ml_collections.ConfigDict], seeds: int
) -> ml_collections.ConfigDict:
  """The config of a study with the first so many seeds; the first variant is the baseline.

  Raises:
    UserError: there are not so many seeds.
  """
  if not 1 <= seeds <= len(SEEDS):
    raise types.UserError(f'seeds={seeds} must be from 1 to {len(SEEDS)}, the seeds {SEEDS}')
  return study.config(title, variants, SEEDS[:seeds])


def on_digits(
  method: str, *, steps: int, skips: bool = False, **changes: Any
) -> ml_collections.ConfigDict:
  """A run of `configs/digits.py` as the paper's comparisons are made.

  Narrower, and with three times the learning rate, so that a short run learns the classes. The rate
  is constant, so that a score on the way is that of a shorter run; no guidance.

  Args:
    method, skips, steps: see `configs/digits.py`.
    **changes: further keys of the config, with '__' for each dot.
  """
  config = digits.get_config(f'method={method},skips={skips},steps={steps}')
  config.model.width = 64
  config.optimizer.learning_rate, config.optimizer.schedule = 3e-3, 'constant'
  config.train.ema_warmup = True
  if config.sampler.kind == 'heun':  # MeanFlow samples in one step.
    config.sampler.guidance_scale, config.sampler.steps = 1.0, 8  # 15 evaluations.
  _watched(config, steps)
  config.eval.every_number = 400
  return _changed(config, changes)


def on_cifar10(
  method: str, *, steps: int, data: str, small: bool, skips: bool
) -> ml_collections.ConfigDict:
  """A run of `configs/cifar10.py`, of a size that a CPU trains if `small`; without guidance."""
  size = '' if small else 'S/2'
  config = cifar10.get_config(f'method={method},skips={skips},steps={steps},size={size}')
  config.data.source = data
  config.sampler.kind, config.sampler.steps = 'heun', 25  # 49 evaluations.
  config.eval.every_number = 5_000
  config.eval.labels = 'balanced'
  if small:
    config.model.depth, config.model.width, config.model.heads = 6, 96, 4
    config.model.patch_size, config.model.dtype, config.train.batch_size = 4, 'float32', 64
    config.optimizer.learning_rate = 1e-3
    config.sampler.steps, config.eval.every_number = 8, 500
  _watched(config, steps)
  return config


def _watched(config, steps):
  """Scores, telemetry and CKA three times in a run, losses thirty times, and no more."""
  every = max(steps // 3, 1)
  config.log.telemetry_every = config.eval.every = every
  config.log.every = max(every // 10, 1)
  config.log.tensorboard = False
  config.analysis.parts, config.analysis.times = ('steps',), (0.5,)
  config.preview.every = 0
  config.checkpoint.every, config.checkpoint.keep, config.checkpoint.keep_every = every, 1, every


def _changed(config, changes):
  flat = {key.replace('__', '.'): value for key, value in changes.items()}
  config.update_from_flattened_dict(flat)
  return config
