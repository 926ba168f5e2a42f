"""Plans: arithmetic on the cost, and what they refuse."""

import dataclasses

from helpers import networks
import numpy as np
import pytest

from diversedit_jax import interpolants, sharding, types
from diversedit_jax.methods import flow
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import cost, sizes
from diversedit_jax.planning import devices
from diversedit_jax.planning import plan as plan_lib

SMALL = networks.parts(
  input_size=(8, 8), channels=3, num_classes=5, depth=8, width=64, heads=2, patch_size=2
)


def objective():
  """Plain flow matching."""
  uniform = interpolants.TIME_LAWS['uniform']()
  made = flow.StochasticInterpolant(path=interpolants.linear(), time_law=uniform, null_label=10)
  return objective_lib.Objective(flow=made)


@pytest.fixture
def hardware():
  return plan_lib.PlanConfig(devices=8, peak_tflops=100.0, mfu=0.5, compile_for='')


def test_plan_is_arithmetic_on_the_cost(hardware):
  counted = cost.cost(*SMALL)
  numbers = plan_lib.plan(
    *SMALL,
    hardware,
    sharding.planned_mesh(-1, 1, 1, 8),
    objective=objective(),
    steps=1000,
    batch_size=64,
    accumulate=2,
    parameters=678,
    trained=226,
    shard_bytes=12345,
    averages=3,
  )
  images_per_second = 8 * 100e12 * 0.5 / counted.training
  expected = {
    'devices': 8,
    'parameters': 678,
    'trained': 226,
    'tokens': 16,
    'method': {},
    'optimizer': 0.0,
    'forward_gflops_per_image': counted.forward / 1e9,
    'training_gflops_per_image': 3 * counted.forward / 1e9,
    'state_gib_per_device': (4 + 3 / 3) * 12345 / 2**30,  # A third has gradients and moments.
    'frozen_gib_per_device': 0,
    'data_gib_per_device': 0,
    'activations_of': 'CPU, attention xla, blocks in a loop',
    'activation_gib_per_device': 64 / 8 / 2 * counted.activation_bytes / 2**30,
    'images_per_second': images_per_second,
    'steps_per_second': images_per_second / 64,
    'seconds': 1000 * 64 / images_per_second,
    'later': {},
  }
  assert numbers.keys() == expected.keys()
  for name, value in expected.items():
    if name in ('method', 'activations_of', 'later'):
      assert numbers[name] == value
    else:
      np.testing.assert_allclose(numbers[name], value, rtol=1e-12, err_msg=name)


def test_gpus_that_add_gradients_hold_them_twice():
  more = dict(objective=objective(), steps=10, batch_size=64, accumulate=1, parameters=3)
  architecture, execution = SMALL
  execution = dataclasses.replace(execution, platform='gpu')
  config = plan_lib.PlanConfig(devices=8, peak_tflops=1.0, mfu=0.5, compile_for='')
  state = {
    count: plan_lib.plan(
      architecture,
      execution,
      config,
      sharding.planned_mesh(-1, 1, 1, count),
      shard_bytes=2**30,
      **more,
    )['state_gib_per_device']
    for count in (1, 8)
  }
  assert state == {1: 5.0, 8: 6.0}


def test_devices_of_a_plan_are_those_of_its_target():
  of = lambda count: devices.Target(
    name='h200:4', platform='gpu', devices=tuple(range(count)), memory=1.0
  )
  made = lambda devices: plan_lib.PlanConfig(
    devices=devices, peak_tflops=1.0, mfu=0.4, compile_for=''
  )
  assert made(None).count(None) == 8 and made(3).count(None) == 3
  assert made(None).count(of(4)) == made(4).count(of(4)) == 4
  with pytest.raises(types.UserError, match="plan.devices=3, but plan.compile_for='h200:4' has 4"):
    made(3).count(of(4))
  with pytest.raises(
    types.UserError, match="unknown plan.compile_for device 'h2000'; did you mean 'h200'"
  ):
    plan_lib.PlanConfig(devices=None, peak_tflops=1.0, mfu=0.4, compile_for='h2000')


def test_plan_in_words(hardware):
  numbers = plan_lib.plan(
    sizes.architecture('XL/2', input_size=(32, 32)),
    config_lib.Execution(),
    hardware,
    sharding.planned_mesh(-1, 1, 1, 8),
    objective=objective(),
    steps=400_000,
    batch_size=256,
    accumulate=1,
    parameters=674_816_272,
    shard_bytes=1,
  )
  text = plan_lib.table(numbers, hardware, 400_000)
  assert '674,816,272 trained' in text and '237.2' in text and '400,000 steps' in text
  # 256 * 400,000 images at 237.2 * 3 GFLOP and 400 TFLOP/s: 182 thousand seconds, 2.1 days.
  np.testing.assert_allclose(numbers['seconds'], 182.2e3, rtol=1e-3)


# GiB that a device needs by the compiler for eight H100s or H200s, with long skips and diversity
# loss in bfloat16 at batch 256 (benchmarks/results/sizing.json).
GIB = {('B/2', 256): 6.44, ('XL/2', 256): 27.2, ('XL/2', 512): 72.5}


@pytest.mark.parametrize(('size', 'pixels'), GIB)
def test_memory_of_eight_gpus_is_the_compilers(hardware, size, pixels):
  """At 512 pixels most while the products for gradients wait, otherwise where gradients are."""
  architecture = sizes.architecture(
    size, input_size=(pixels // 8,) * 2, skip=config_lib.Skip(enabled=True)
  )
  execution = config_lib.Execution(dtype='bfloat16', platform='gpu')
  parameters = cost.cost(architecture, execution).parameters
  numbers = plan_lib.plan(
    architecture,
    execution,
    hardware,
    sharding.planned_mesh(-1, 1, 1, 8),
    objective=objective(),
    steps=1,
    batch_size=256,
    accumulate=1,
    parameters=parameters,
    shard_bytes=4 * parameters,
  )
  np.testing.assert_allclose(plan_lib.memory_gib(numbers), GIB[size, pixels], rtol=0.05)


def test_devices_that_share_products_have_more_examples_each(hardware):
  """Four groups of two, each of which has its examples once."""
  more = dict(steps=10, batch_size=64, accumulate=1, parameters=1, shard_bytes=1)
  plan = lambda *sizes: plan_lib.plan(
    *SMALL, hardware, sharding.planned_mesh(*sizes, 8), objective=objective(), **more
  )
  alone, shared = plan(8, 1, 1), plan(4, 1, 2)
  whole, part = (cost.activation_bytes(*SMALL, tensor) for tensor in (1, 2))
  assert whole / 2 < part < whole
  ratio = shared['activation_gib_per_device'] / alone['activation_gib_per_device']
  np.testing.assert_allclose(ratio, 2 * part / whole, rtol=1e-12)
  assert shared['images_per_second'] == alone['images_per_second']
