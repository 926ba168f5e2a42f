"""Settings of every test: the CPU, and no silent rank promotion."""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The tests compile much and run little: LLVM's optimisation passes are half of their time. Child
# processes inherit this.
os.environ.setdefault('XLA_FLAGS', '--xla_backend_optimization_level=0')

import jax
import numpy as np
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')

GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture(scope='session')
def golden():
  """Reference arrays by file name; see tests/golden/README.md."""
  loaded = {}

  def load(name):
    if name not in loaded:
      with np.load(GOLDEN / f'{name}.npz', allow_pickle=False) as file:
        loaded[name] = dict(file)
    return loaded[name]

  return load
