"""Settings of every test: the CPU, and no silent rank promotion."""

from importlib import metadata
import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# The tests compile much and run little. LLVM's optimisation passes, fusions by MLIR and programs
# that are cut up to be compiled in parallel are more than half of that time. Child processes
# inherit this. Without any of the passes jaxlib 0.12 makes NaNs of finite float64 numbers.
_FLAGS = ['--xla_backend_optimization_level=0']
if metadata.version('jaxlib').startswith('0.10.'):
  _FLAGS += ['--xla_cpu_use_fusion_emitters=false', '--xla_cpu_parallel_codegen_split_count=1']
elif metadata.version('jaxlib').startswith('0.12.'):
  _FLAGS = ['--xla_backend_optimization_level=1']
os.environ.setdefault('XLA_FLAGS', ' '.join(_FLAGS))

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
  """Escapes names of files that are not UTF-8 in logs, which pytest-xdist cannot send."""
  report = yield
  escaped = lambda text: text.encode('utf-8', 'backslashreplace').decode()
  report.sections = [(title, escaped(text)) for title, text in report.sections]
  return report
