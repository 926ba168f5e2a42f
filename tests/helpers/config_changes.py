"""The config of the digits with values changed, and what `build` says of it; for these tests."""

import jax
import numpy as np
import pytest

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import types
from diversedit_jax.data import sources


@pytest.fixture(autouse=True)
def compiler_out_of_reach(monkeypatch):
  """`build` may trace and compile nothing, whether it accepts or refuses."""

  def refuse(*unused, **unused_too):
    raise AssertionError('build calls jax.jit')

  monkeypatch.setattr(jax, 'jit', refuse)


def section_of(config, name):
  """The part of a config at 'model.skip'; '' is the whole."""
  for part in filter(None, name.split('.')):
    config = config[part]
  return config


def leaves(section, prefix=''):
  """(whole key, value) of everything in a config."""
  for key in section:
    value = section[key]
    if hasattr(value, 'keys'):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value


def changed(changes):
  """The config of the digits, with values by flat key."""
  config = digits.get_config()
  for key, value in changes.items():
    section, _, last = key.rpartition('.')
    section_of(config, section)[last] = value
  return config


def refusal(config):
  with pytest.raises(types.UserError) as error:
    experiment_lib.build(config)
  return str(error.value)


def moments(scaling):
  """64 latents that are scaled when they are used, as those of a store are."""
  return sources.ArraySource(
    name='store/small',
    space='latents',
    num_classes=10,
    scaling=scaling,
    data=np.zeros((64, 8, 8, 2), np.float32),
    labels=np.arange(64, dtype=np.int32) % 10,
  )
