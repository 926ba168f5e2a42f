"""What a training run will cost, before anything compiles."""

from collections.abc import Mapping
import dataclasses
from typing import Any

from diversedit_jax import types
from diversedit_jax.models import cost as cost_lib
from diversedit_jax.models import sit
from diversedit_jax.training import progress


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
  """devices: how many. peak_tflops: of each, dense, in the compute dtype. mfu: share reached."""

  devices: int
  peak_tflops: float
  mfu: float

  def __post_init__(self):
    if self.devices < 1 or self.peak_tflops <= 0 or not 0 < self.mfu <= 1:
      raise types.UserError(
        f'a plan needs devices >= 1, peak_tflops > 0 and 0 < mfu <= 1; got devices={self.devices}, '
        f'peak_tflops={self.peak_tflops}, mfu={self.mfu}'
      )


def plan(
  model: sit.SiTConfig, config: PlanConfig, *, steps: int, batch_size: int, accumulate: int,
  shard_bytes: int,
) -> dict[str, Any]:  # fmt: skip
  """Numbers of the plan; memory is per device, activations are an estimate with XLA attention.

  Args:
    model: shapes and precision. config: hardware.
    steps, batch_size, accumulate: of the run.
    shard_bytes: of one copy of the parameters on a device.

  Raises:
    UserError: if the batch does not fit the devices.
  """
  if batch_size % (config.devices * accumulate):
    raise types.UserError(
      f'train.batch_size={batch_size} is not divisible by plan.devices={config.devices} times '
      f'train.accumulate={accumulate}'
    )
  cost = cost_lib.cost(model)
  per_device = batch_size // config.devices // accumulate
  images_per_second = config.devices * config.peak_tflops * 1e12 * config.mfu / cost.training
  return {
    'parameters': cost.parameters,
    'tokens': model.tokens,
    'forward_gflops_per_image': cost.forward / 1e9,
    'training_gflops_per_image': cost.training / 1e9,
    'state_gib_per_device': (cost_lib.STATE_COPIES + 1) * shard_bytes / 2**30,
    'activation_gib_per_device': per_device * cost.activation_bytes / 2**30,
    'images_per_second': images_per_second,
    'steps_per_second': images_per_second / batch_size,
    'seconds': steps * batch_size / images_per_second,
  }


def table(numbers: Mapping[str, Any], config: PlanConfig, steps: int) -> str:
  """The plan in words, for the console."""
  rows = [
    ('parameters', f'{numbers["parameters"]:,} trained'),
    ('tokens per image', f'{numbers["tokens"]}'),
    ('FLOPs per image', f'{numbers["forward_gflops_per_image"]:.2f} G forward, '
     f'{numbers["training_gflops_per_image"]:.2f} G training (a multiply-add is 2)'),
    ('memory per device', f'{numbers["state_gib_per_device"]:.2f} GiB state and gradients + about '
     f'{numbers["activation_gib_per_device"]:.2f} GiB activations'),
    ('hardware', f'{config.devices} devices of {config.peak_tflops:g} TFLOP/s, at an assumed '
     f'{config.mfu:.0%} of it (MFU)'),
    ('rate', f'{numbers["images_per_second"]:.4g} images/s, '
     f'{numbers["steps_per_second"]:.3g} steps/s'),
    ('time', f'{progress.duration(numbers["seconds"])} for {steps:,} steps'),
  ]  # fmt: skip
  width = max(len(name) for name, _ in rows)
  return '\n'.join(f'{name:<{width}}  {text}' for name, text in rows)
