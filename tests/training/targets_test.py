"""Names of accelerators that are not here; most of it where their compilers are not here either."""

import importlib.util

import jax
import pytest

from diversedit_jax import types
from diversedit_jax.training import targets

# As libtpu 0.0.52 wrote it, of a program for v5e.
REFUSED = (
  'RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total memory '
  'required for HLO temporaries (26.25G) exceeds available HBM (15.75G). HLO module: jit_step.\n'
  'See https://openxla.org/xla/errors/error_1000 for more details.'
)


@pytest.mark.parametrize(
  ('name', 'parsed', 'platform'),
  [
    ('h200', ('h200', ''), 'gpu'),
    ('h200:8', ('h200', '8'), 'gpu'),
    ('a100-40:16', ('a100-40', '16'), 'gpu'),
    ('rtx4090', ('rtx4090', ''), 'gpu'),
    ('v5e:2x2', ('v5e', '2x2'), 'tpu'),
    ('v5p:2x2x1', ('v5p', '2x2x1'), 'tpu'),
    ('v6e:16x16', ('v6e', '16x16'), 'tpu'),
  ],
)
def test_names(name, parsed, platform):
  assert targets.parse(name) == parsed and targets.platform(name) == platform


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('h20', "unknown device 'h20'; did you mean 'h200'"),
    ('v5', "unknown device 'v5'; did you mean 'v5[ep]'"),
    ('v5litepod:2x2', "^unknown device 'v5litepod'; known: a100-40, a100-80, .* v5p, v6e$"),
    ('h200:', 'is no number of GPUs'),
    ('h200:0', 'is no number of GPUs'),
    ('h200:2x2', 'is no number of GPUs'),
    ('h200:-1', 'is no number of GPUs'),
    ('v5e', 'name its topology'),
    ('v5e:4', 'name its topology'),
    ('v5e:2x', 'name its topology'),
    ('h200:12', '12 GPUs are no whole number of nodes of 8'),
  ],
)
def test_wrong_names_are_refused_with_what_is_right(name, words):
  with pytest.raises(types.UserError, match=words):
    targets.find(name)


def test_the_number_of_gpus_is_in_their_name():
  found = [targets.gpus(name) for name in ('h200', 'h200:8', 'a100-40:16', 'v5e:2x2')]
  assert found == [1, 8, 16, None]


def test_no_name_has_no_platform():
  assert targets.platform('') == ''


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is not None, reason='libtpu is here')
def test_a_missing_compiler_for_tpus_is_named():
  with pytest.raises(types.UserError, match='pip install libtpu'):
    targets.find('v5e:2x2')


@pytest.mark.skipif(importlib.util.find_spec('jax_plugins') is not None, reason='a plugin is here')
def test_a_missing_compiler_for_gpus_is_named():
  with pytest.raises(types.UserError) as told:
    targets.find('h200:8')
  assert f'pip install "jax[cuda13]=={jax.__version__}"' in str(told.value)
  assert f'or "jax[cuda12]=={jax.__version__}"' in str(told.value)
  assert 'JAX_PLATFORMS' not in str(told.value)


def test_what_libtpu_says_of_too_large_a_program():
  assert targets.out_of_memory(REFUSED) == (26.25 * 2**30, 15.75 * 2**30)
  huge = REFUSED.replace('26.25G', '2.00T').replace('15.75G', '512.50M')
  assert targets.out_of_memory(huge) == (2 * 2**40, 512.5 * 2**20)
  assert targets.out_of_memory('RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem') is None


def test_the_description_of_a_gpu_is_of_that_gpu():
  """Against data sheets: units, memory in GB, TB/s."""
  for name, lanes, gigabytes, terabytes in (
    ('a100-40', 6912, 40, 1.555),
    ('a100-80', 6912, 80, 2.039),
    ('h100', 16896, 80, 3.35),
    ('h200', 16896, 141, 4.8),
    ('rtx4090', 16384, 24, 1.008),
  ):
    gpu = targets.GPUS[name]
    assert gpu.multiprocessors * gpu.lanes == lanes
    # A name's GB are 10^9 or 2^30 bytes, and a driver keeps some.
    assert 0.95 * gigabytes * 2**30 < gpu.memory < gigabytes * 2**30 * 1.001
    assert gpu.bandwidth == pytest.approx(terabytes * 1e12, rel=2e-3)
    text = targets._description(gpu)
    assert f'core_count: {gpu.multiprocessors}\n' in text and f'"{gpu.kind}"' in text
    assert f'device_memory_size: {int(gpu.memory)}\n' in text
  assert 'feature_extension: ACCELERATED_FEATURES' in targets._description(targets.GPUS['h100'])
  assert 'major: 8 minor: 9' in targets._description(targets.GPUS['rtx4090'])


def test_the_cache_of_programs_is_off_for_what_is_not_here_alone():
  before = jax.config.jax_enable_compilation_cache
  with targets.uncached():
    assert not jax.config.jax_enable_compilation_cache
  assert jax.config.jax_enable_compilation_cache == before
