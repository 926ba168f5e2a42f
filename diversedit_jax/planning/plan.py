"""What a training run will cost, by arithmetic: nothing compiles for it."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax

from diversedit_jax import trees, types
from diversedit_jax.methods import base
from diversedit_jax.models import attention, tuning
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import cost as cost_lib
from diversedit_jax.planning import devices
from diversedit_jax.training import progress

_DEVICES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig:
  """What a plan supposes.

  devices: how many; None is those of `compile_for`, or 8. peak_tflops: of each, dense, in the
  compute dtype. mfu: share reached. compile_for: name of what the step is compiled for, see
  `devices.find`; '' compiles nothing.
  """

  devices: int | None
  peak_tflops: float
  mfu: float
  compile_for: str

  def __post_init__(self):
    if self.compile_for:
      self._check(self.compile_for, devices.gpus(self.compile_for))
    if (
      (self.devices is not None and self.devices < 1)
      or self.peak_tflops <= 0
      or not 0 < self.mfu <= 1
    ):
      raise types.UserError(
        f'a plan needs devices >= 1, peak_tflops > 0 and 0 < mfu <= 1; got devices={self.devices}, '
        f'peak_tflops={self.peak_tflops}, mfu={self.mfu}'
      )

  def count(self, target: devices.Target | None) -> int:
    """Number of devices, with what is compiled for, if anything is.

    Raises:
      UserError: if the two contradict each other.
    """
    if target is None:
      return _DEVICES if self.devices is None else self.devices
    self._check(target.name, len(target.devices))
    return len(target.devices)

  def _check(self, name, found):
    """found: number of devices of what is compiled for; None if its name does not say."""
    if found is not None and self.devices not in (None, found):
      raise types.UserError(
        f'plan.devices={self.devices}, but plan.compile_for={name!r} has {found}; leave '
        'plan.devices out (None), which takes them'
      )


def method_flops(
  objective: base.Objective, architecture: config_lib.Architecture, examples: int
) -> dict[str, float]:
  """FLOPs per example that each part of the method adds to a step of plain flow matching.

  Args:
    objective: the method. architecture: as it needs it. examples: size of a microbatch.

  Returns:
    By part: 'forward passes' (MeanFlow's further ones), 'class token' (REG's longer sequence),
    terms by name, 'encoder NAME'; parts that add nothing are left out. A multiply-add is 2.
  """
  ours, plain = (
    cost_lib.forward_flops(a) for a in (architecture, plain_architecture(architecture))
  )
  parts = {
    'forward passes': objective.flow.extra_passes() * ours,
    'class token': 3 * (ours - plain) if architecture.class_token else 0.0,
    **{term.name: term.flops(architecture, examples) for term in objective.terms},
    **{f'encoder {encoder.name}': encoder.flops for encoder in objective.encoders},
  }
  return {name: flops for name, flops in parts.items() if flops}


def plain_architecture(architecture: config_lib.Architecture) -> config_lib.Architecture:
  """What a plain step would train: the network without what a method gave it."""
  return dataclasses.replace(architecture, class_token=0, interval=False)


def plan(
  architecture: config_lib.Architecture,
  execution: config_lib.Execution,
  config: PlanConfig,
  devices: int,
  *,
  objective: base.Objective,
  steps: int,
  batch_size: int,
  accumulate: int,
  parameters: int,
  shard_bytes: int,
  average_bytes: int | None = None,
  data_bytes: int = 0,
) -> dict[str, Any]:
  """Numbers of the plan; memory is per device, activations are an estimate,
  with XLA's attention unless `execution` says for which machine it is.

  Args:
    architecture, execution: the network. config, devices: hardware. objective: the method.
    steps, batch_size, accumulate: of the run.
    parameters: trained ones, heads included. shard_bytes: of one copy of them on a device.
    average_bytes: of their average, as of either moment, if that is split further.
    data_bytes: of examples that every device holds.

  Raises:
    UserError: if the batch does not fit the devices.
  """
  if batch_size % (devices * accumulate):
    raise types.UserError(
      f'train.batch_size={batch_size} is not divisible by plan.devices={devices} times '
      f'train.accumulate={accumulate}'
    )
  average_bytes = shard_bytes if average_bytes is None else average_bytes
  cost = cost_lib.cost(architecture, execution)
  per_device = batch_size // devices // accumulate
  added = method_flops(objective, architecture, batch_size // accumulate)
  plain = cost_lib.cost(plain_architecture(architecture), execution).training
  training = plain + sum(added.values())
  images_per_second = devices * config.peak_tflops * 1e12 * config.mfu / training
  return {
    'devices': devices,
    'parameters': parameters,
    'tokens': architecture.sequence,
    'method': {name: flops / plain for name, flops in added.items()},
    'forward_gflops_per_image': cost.forward / 1e9,
    'training_gflops_per_image': training / 1e9,
    'state_gib_per_device': (2 * shard_bytes + 3 * average_bytes) / 2**30,
    'frozen_gib_per_device': trees.num_bytes([e.params for e in objective.encoders]) / 2**30,
    'data_gib_per_device': data_bytes / 2**30,
    'activation_gib_per_device': per_device * cost.activation_bytes / 2**30,
    'activations_of': _activations_of(architecture, execution),
    'images_per_second': images_per_second,
    'steps_per_second': images_per_second / batch_size,
    'seconds': steps * batch_size / images_per_second,
  }


def _activations_of(architecture, execution):
  """For what the activations are estimated, in words."""
  platform = (execution.platform or jax.default_backend()).upper()
  chosen = attention.implementation(architecture, execution)
  unrolled = tuning.blocks_per_step(execution, architecture.depth) == architecture.depth
  loop = 'no loop over blocks' if unrolled else 'blocks in a loop'
  return f'{platform}, attention {chosen}, {loop}'


def table(numbers: Mapping[str, Any], config: PlanConfig, steps: int) -> str:
  """The plan in words, for the console."""
  rows = [
    ('parameters', f'{numbers["parameters"]:,} trained'),
    ('tokens per image', f'{numbers["tokens"]}'),
    (
      'FLOPs per image',
      f'{numbers["forward_gflops_per_image"]:.2f} G forward, '
      f'{numbers["training_gflops_per_image"]:.2f} G training (a multiply-add is 2)',
    ),
    (
      'method',
      ', '.join(f'{name} +{share:.1%}' for name, share in numbers['method'].items())
      or 'adds nothing to the matrix products of a plain step',
    ),
    (
      'memory per device',
      f'{numbers["state_gib_per_device"]:.2f} GiB state and gradients + '
      f'{numbers["frozen_gib_per_device"]:.2f} GiB encoders + '
      f'{numbers["data_gib_per_device"]:.2f} GiB resident data + about '
      f'{numbers["activation_gib_per_device"]:.2f} GiB activations of the model '
      f'({numbers["activations_of"]})',
    ),
    (
      'hardware',
      f'{numbers["devices"]} devices of {config.peak_tflops:g} TFLOP/s, at an assumed '
      f'{config.mfu:.0%} of it (MFU)',
    ),
    (
      'rate',
      f'{numbers["images_per_second"]:.4g} images/s, {numbers["steps_per_second"]:.3g} steps/s',
    ),
    ('time', f'{progress.duration(numbers["seconds"])} for {steps:,} steps'),
  ]
  return aligned(rows)


def memory_gib(numbers: Mapping[str, Any]) -> float:
  """Of a device, in all, by the plan's estimate."""
  return sum(
    numbers[f'{part}_gib_per_device'] for part in ('state', 'frozen', 'data', 'activation')
  )


def aligned(rows: Sequence[tuple[str, str]]) -> str:
  """Names and texts in two columns."""
  width = max(len(name) for name, _ in rows)
  return '\n'.join(f'{name:<{width}}  {text}' for name, text in rows)
