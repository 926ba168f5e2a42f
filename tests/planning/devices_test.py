"""Names and descriptions of accelerators; their compilers need not be here."""

import importlib.util

from helpers import planned_runs
import jax
import pytest

from diversedit_jax import types
from diversedit_jax.planning import devices


def test_names_of_devices():
  for name, parsed, platform, gpus in (
    ('h200', ('h200', ''), 'gpu', 1),
    ('a100-40:16', ('a100-40', '16'), 'gpu', 16),
    ('v5e:2x2', ('v5e', '2x2'), 'tpu', None),
    ('v5p:2x2x1', ('v5p', '2x2x1'), 'tpu', None),
    ('v6e:4x4:2', ('v6e', '4x4:2'), 'tpu', None),
  ):
    found = devices.parse(name), devices.platform(name), devices.gpus(name)
    assert found == (parsed, platform, gpus)
  assert devices.platform('') == ''


@pytest.mark.parametrize(
  ('name', 'words'),
  [
    ('h20', "unknown plan.compile_for device 'h20'; did you mean 'h200'"),
    ('v5litepod:2x2', "^unknown plan.compile_for device 'v5litepod'; known: a100-40, .* v5p, v6e$"),
    ('h200:', "'h200:' does not give a number of GPUs; write 'h200' or 'h200:8'"),
    ('h200:2x2', "'h200:2x2' does not give a number of GPUs"),
    ('h200:0', "'h200:0' does not give a number of GPUs"),
    ('v5e:4', "'v5e:4' does not name a slice of TPUs; add its topology"),
    ('v5e:2x2:0', "'v5e:2x2:0' does not name a slice of TPUs; .* 'v6e:4x4:2'"),
    ('h200:12', "'h200:12' does not fill nodes of 8 GPUs; write 'h200:8' or 'h200:16'"),
  ],
)
def test_wrong_names_are_refused_with_what_is_right(name, words):
  with pytest.raises(types.UserError, match=words):
    devices.find(name)


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


def test_descriptions_of_gpus_agree_with_data_sheets():
  """The sheets give float32 units, memory in GB and bandwidth in TB/s."""
  for name, lanes, gigabytes, terabytes in (
    ('a100-40', 6912, 40, 1.555),
    ('a100-80', 6912, 80, 2.039),
    ('h100', 16896, 80, 3.35),
    ('h200', 16896, 141, 4.8),
    ('rtx4090', 16384, 24, 1.008),
  ):
    gpu = devices.GPUS[name]
    assert gpu.multiprocessors * gpu.lanes == lanes
    # A GB in a name is 10^9 or 2^30 bytes, and the driver keeps some.
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
