"""Names of accelerators that are not here; most of it where their compilers are not here either."""

import importlib.util

from helpers import planned_runs
import jax
import pytest

from diversedit_jax import types
from diversedit_jax.planning import devices


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
  assert devices.parse(name) == parsed and devices.platform(name) == platform


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
    devices.find(name)


def test_the_number_of_gpus_is_in_their_name():
  found = [devices.gpus(name) for name in ('h200', 'h200:8', 'a100-40:16', 'v5e:2x2')]
  assert found == [1, 8, 16, None]


def test_no_name_has_no_platform():
  assert devices.platform('') == ''


@pytest.mark.skipif(importlib.util.find_spec('libtpu') is not None, reason='libtpu is here')
def test_a_missing_compiler_for_tpus_is_named():
  with pytest.raises(types.UserError, match='pip install libtpu'):
    devices.find('v5e:2x2')


@pytest.mark.skipif(importlib.util.find_spec('jax_plugins') is not None, reason='a plugin is here')
def test_a_missing_compiler_for_gpus_is_named():
  with pytest.raises(types.UserError) as told:
    devices.find('h200:8')
  assert f'pip install "jax[cuda13]=={jax.__version__}"' in str(told.value)
  assert f'or "jax[cuda12]=={jax.__version__}"' in str(told.value)
  assert 'JAX_PLATFORMS' not in str(told.value)


def test_what_libtpu_says_of_too_large_a_program():
  assert devices.out_of_memory(planned_runs.REFUSED) == (26.25 * 2**30, 15.75 * 2**30)
  huge = planned_runs.REFUSED.replace('26.25G', '2.00T').replace('15.75G', '512.50M')
  assert devices.out_of_memory(huge) == (2 * 2**40, 512.5 * 2**20)
  assert devices.out_of_memory('RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem') is None


def test_the_description_of_a_gpu_is_of_that_gpu():
  """Against data sheets: units, memory in GB, TB/s."""
  for name, lanes, gigabytes, terabytes in (
    ('a100-40', 6912, 40, 1.555),
    ('a100-80', 6912, 80, 2.039),
    ('h100', 16896, 80, 3.35),
    ('h200', 16896, 141, 4.8),
    ('rtx4090', 16384, 24, 1.008),
  ):
    gpu = devices.GPUS[name]
    assert gpu.multiprocessors * gpu.lanes == lanes
    # A name's GB are 10^9 or 2^30 bytes, and a driver keeps some.
    assert 0.95 * gigabytes * 2**30 < gpu.memory < gigabytes * 2**30 * 1.001
    assert gpu.bandwidth == pytest.approx(terabytes * 1e12, rel=2e-3)
    text = devices._description(gpu)
    assert f'core_count: {gpu.multiprocessors}\n' in text and f'"{gpu.kind}"' in text
    assert f'device_memory_size: {int(gpu.memory)}\n' in text
  assert 'feature_extension: ACCELERATED_FEATURES' in devices._description(devices.GPUS['h100'])
  assert 'major: 8 minor: 9' in devices._description(devices.GPUS['rtx4090'])


def test_the_cache_of_programs_is_off_for_what_is_not_here_alone():
  before = jax.config.jax_enable_compilation_cache
  with devices.uncached():
    assert not jax.config.jax_enable_compilation_cache
  assert jax.config.jax_enable_compilation_cache == before
