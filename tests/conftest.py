"""Settings of every test: the CPU, and no silent rank promotion."""

from importlib import metadata
import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The tests compile much and run little: LLVM's optimisation passes are half of their time. Child
# processes inherit this. Without any of them jaxlib 0.12 makes NaNs of finite float64 numbers.
_LEVEL = 1 if metadata.version('jaxlib').startswith('0.12') else 0
os.environ.setdefault('XLA_FLAGS', f'--xla_backend_optimization_level={_LEVEL}')

import jax
from jax.experimental.compilation_cache import compilation_cache
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


@pytest.fixture(scope='module')
def compilation_cached(tmp_path_factory):
  """What a module's tests compile more than once is compiled once."""
  if jax.config.jax_compilation_cache_dir:  # launch/test.sh keeps the programs of all modules.
    yield
    return
  options = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  before = {name: getattr(jax.config, name) for name in options}
  for name, value in zip(options, (str(tmp_path_factory.mktemp('xla')), 0.0), strict=True):
    jax.config.update(name, value)
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
