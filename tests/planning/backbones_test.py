"""The memory that a plan expects of backbones other than SiT, beside the compiler's account."""

import dataclasses

import numpy as np
import pytest

from diversedit_jax import interpolants, sharding
from diversedit_jax.methods import flow
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import cost, sizes
from diversedit_jax.planning import plan as plan_lib

HARDWARE = plan_lib.PlanConfig(devices=8, peak_tflops=100.0, mfu=0.5, compile_for='')
NAMES = config_lib.Execution(dtype='bfloat16', platform='gpu', remat='names')
HEAD = config_lib.Head(depth=2, width=2048, heads=16)
BLOCKS = {
  'lightning': dict(block='lightning', channels=32),
  'ddt': dict(block='ddt', channels=768, head=HEAD),
}


def xl(block, **fields):
  return sizes.architecture('XL/1', input_size=(16, 16), **BLOCKS[block], **fields)


# GiB that a device needs by the compiler for eight H100s (`--mode=plan` with plan.compile_for).
GIB = {
  ('lightning', 1024): 46.89,  # configs/lightning_xl256.py, and with a quarter of its batch.
  ('lightning', 256): 23.87,
  ('ddt', 1024): 56.92,  # configs/ddt_xl256.py.
}


@pytest.mark.parametrize(('block', 'batch'), GIB)
def test_memory_of_eight_gpus_is_the_compilers(block, batch):
  uniform = interpolants.TIME_LAWS['uniform']()
  made = flow.StochasticInterpolant(path=interpolants.linear(), time_law=uniform, null_label=1000)
  architecture = xl(block)
  parameters = cost.cost(architecture, NAMES).parameters
  numbers = plan_lib.plan(
    architecture,
    NAMES,
    HARDWARE,
    sharding.planned_mesh(-1, 1, 1, 8),
    objective=objective_lib.Objective(flow=made),
    steps=1,
    batch_size=batch,
    accumulate=1,
    parameters=parameters,
    shard_bytes=4 * parameters,
  )
  np.testing.assert_allclose(plan_lib.memory_gib(numbers), GIB[block, batch], rtol=0.15)


# One more block of XL on one H200 at 64 examples of 256 tokens: GiB of temporaries with 6 blocks
# less those with 2, a fourth, less the block's gradients (compiled, not run).
BLOCK_GIB = {
  ('none', False): 0.661,
  ('none', True): 0.768,
  ('names', False): 0.354,
  ('dots', False): 0.388,
}


@pytest.mark.parametrize(('remat', 'qk_norm'), BLOCK_GIB)
def test_a_block_of_lightningdit_keeps_what_the_compiler_says(remat, qk_norm):
  execution = dataclasses.replace(NAMES, remat=remat)
  few, many = (
    cost.activation_bytes(dataclasses.replace(xl('lightning', qk_norm=qk_norm), depth=n), execution)
    for n in (2, 6)
  )
  found = 64 * (many - few) / 4 / 2**30
  np.testing.assert_allclose(found, BLOCK_GIB[remat, qk_norm], rtol=0.15)
