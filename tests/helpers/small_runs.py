"""The shrunken digits run that the tests of `modes` share."""

import contextlib
import sys

import numpy as np
import pytest

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import options

STEPS, WIDTH, DEPTH = 30, 16, 2
SMALL = {
  'model.depth': DEPTH,
  'model.width': WIDTH,
  'model.heads': 2,
  'interpolant.time_law': 'logit_normal',
  'train.steps': STEPS,
  'train.batch_size': 32,
  'train.ema_decay': 0.9,
  # High, so that labels and guidance come to matter in a few steps.
  'optimizer.learning_rate': 1e-2,
  'optimizer.warmup_steps': 5,
  'log.every': 10,
  'log.telemetry_every': 15,
  'checkpoint.every': 15,
  'preview.every': 15,
  'preview.rows': 10,
  'preview.columns': 2,
  'sampler.steps': 4,
  'sample.number': 20,
  'sample.batch_size': 8,
  'eval.number': 40,
  'analysis.examples': 33,
}


def make_config(**changes):
  """The small config, with values by key, 'model__depth' for model.depth."""
  config = digits.get_config()
  flat = {key.replace('__', '.'): value for key, value in changes.items()}
  for key, value in {**SMALL, **flat}.items():
    section, _, last = key.rpartition('.')
    (config[section] if section else config)[last] = value
  return config


def make(**changes):
  return experiment_lib.build(make_config(**changes))


# Where every field of a dataclass is looked at, and none is used.
_NOT_USING = {'__post_init__', '__eq__', '__hash__', '__repr__', 'replace', '_asdict_inner'}


@contextlib.contextmanager
def keys_read():
  """The set of config keys that are read within, as 'section.key'; checks do not count."""
  seen = set()

  def read(self, name):
    if sys._getframe(1).f_code.co_name not in _NOT_USING:
      seen.add(f'{type(self).section}.{name}')
    return object.__getattribute__(self, name)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(options.Section, '__getattribute__', read, raising=False)
    yield seen


def arrays(path):
  with np.load(path) as file:
    return dict(file)
