"""What a training run will cost, computed from shapes; nothing is compiled."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

import jax

from diversedit_jax import options, progress, sharding, trees, types
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import attention, tuning
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import cost as cost_lib
from diversedit_jax.planning import devices as devices_lib

_DEVICES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlanConfig(options.Section, section='plan', may_change=True):
  """What `--mode=plan` supposes."""

  devices: int | None = options.option(
    None, at_least=1, doc='Number of devices; None is that of compile_for, or 8.'
  )
  peak_tflops: float = options.option(
    989.0,
    above=0,
    doc='Peak of a device, dense, in the compute dtype (H100 and H200, bfloat16, data sheet).',
  )
  mfu: float = options.option(
    0.2,
    above=0,
    at_most=1,
    doc='Share of the peak that training is assumed to reach; published DiT and SiT code: 0.06 to '
    '0.25.',
  )
  compile_for: str = options.option(
    '',
    doc='Also compiles the step for what is not here, which tells whether it fits: a100-40, '
    "a100-80, h100, h200, rtx4090, a number of them as 'h200:8', or TPUs as 'v5e:2x2', two slices "
    "of them as 'v5e:2x2:2'; see docs/memory.md.",
  )

  def __post_init__(self):
    super().__post_init__()
    if self.compile_for:
      self._check(self.compile_for, devices_lib.gpus(self.compile_for))

  def count(self, target: devices_lib.Target | None) -> int:
    """Number of devices: those that the step is compiled for, if it is compiled.

    Raises:
      UserError: if the two contradict each other.
    """
    if target is None:
      return _DEVICES if self.devices is None else self.devices
    self._check(target.name, len(target.devices))
    return len(target.devices)

  def _check(self, name, found):
    """Refuses another number than `found`, which is None where the name does not tell."""
    if found is not None and self.devices not in (None, found):
      raise types.UserError(
        f'plan.devices={self.devices}, but plan.compile_for={name!r} has {found}; set '
        'plan.devices=None, which takes that number'
      )


def method_flops(
  objective: objective_lib.Objective, architecture: config_lib.Architecture, examples: int
) -> dict[str, float]:
  """FLOPs per example that each part of the method adds to a step of plain flow matching.

  Args:
    objective: the method.
    architecture: the network, with what the method adds to it.
    examples: number of examples in a microbatch.

  Returns:
    FLOPs by part: 'forward passes' (MeanFlow's further ones, Self-Flow's further conditioning),
    'class token' (REG's longer sequence), terms by name, 'encoder NAME'; parts that add nothing are
    left out. A multiply-add counts as 2.
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
  """Returns the architecture of a plain step, without what a method adds."""
  return dataclasses.replace(architecture, class_token=0, interval=False, base=0)


def plan(
  architecture: config_lib.Architecture,
  execution: config_lib.Execution,
  config: PlanConfig,
  mesh: jax.sharding.AbstractMesh,
  *,
  objective: objective_lib.Objective,
  steps: int,
  batch_size: int,
  accumulate: int,
  parameters: int,
  shard_bytes: int,
  average_bytes: int | None = None,
  moment_bytes: int | None = None,
  trained: int | None = None,
  data_bytes: int = 0,
  averages: int = 1,
  update_flops: float = 0.0,
) -> dict[str, Any]:
  """Computes the numbers of the plan; memory is per device.

  Activations are an estimate, with XLA's attention unless `execution` names its machine. Where
  terms end within the run, the numbers are those of its beginning, 'later' has those after each end
  by step, and 'seconds' are those of the whole.

  Args:
    architecture, execution: the network.
    config: assumptions about the hardware.
    mesh: the devices, from `sharding.planned_mesh`, among which the batch is to be divisible.
    objective: the method.
    steps, batch_size, accumulate: length and batch of the run.
    parameters: number of parameters, heads included.
    shard_bytes: bytes of one copy of the parameters on a device.
    average_bytes: bytes of their average on a device; None is `shard_bytes`.
    moment_bytes: bytes of the optimizer's state on a device; None is two moments like the average.
    trained: how many of them are trained, and have gradients and moments; None is all.
    data_bytes: bytes of the examples that every device holds.
    averages: how many are kept.
    update_flops: FLOPs of an update in matrix products on each device.
  """
  devices = mesh.size
  average_bytes = shard_bytes if average_bytes is None else average_bytes
  trained = parameters if trained is None else trained
  gradients = shard_bytes * trained // parameters
  if moment_bytes is None:
    moment_bytes = 2 * average_bytes * trained // parameters
  cost = cost_lib.cost(architecture, execution, tensor=mesh.shape['tensor'])
  per_device = batch_size // sharding.batch_divisor(mesh) // accumulate
  activations = per_device * cost.activation_bytes
  if execution.platform == 'gpu' and sharding.batch_divisor(mesh) > 1:
    gradients *= 2  # While they are added, those of a device and the sums are there.
    if _unrolled(architecture, execution):
      # Before there are any: what waits, and the parameters in the dtype of products.
      copy = 0 if execution.dtype == 'float32' else shard_bytes // 2
      activations = max(activations, per_device * cost.postponed_bytes + copy - gradients)
  plain = cost_lib.cost(plain_architecture(architecture), execution).training
  flops_per_second = devices * config.peak_tflops * 1e12 * config.mfu
  update = update_flops * devices / batch_size

  def phase(begun):
    added = method_flops(objective.running(begun), architecture, batch_size // accumulate)
    training = plain + sum(added.values()) + update
    return {
      'method': {name: flops / plain for name, flops in added.items()},
      'optimizer': update / plain,
      'training_gflops_per_image': training / 1e9,
      'images_per_second': flops_per_second / training,
      'steps_per_second': flops_per_second / training / batch_size,
    }

  begins = [0, *(end for end in objective.ends if end < steps)]
  phases = {begun: phase(begun) for begun in begins}
  spans = zip(begins, [*begins[1:], steps], strict=True)
  seconds = sum((end - begun) / phases[begun]['steps_per_second'] for begun, end in spans)
  return {
    'devices': devices,
    'parameters': parameters,
    'trained': trained,
    'tokens': architecture.sequence,
    'forward_gflops_per_image': cost.forward / 1e9,
    'state_gib_per_device': sum((shard_bytes, gradients, averages * average_bytes, moment_bytes))
    / 2**30,
    'frozen_gib_per_device': trees.num_bytes([e.params for e in objective.encoders]) / 2**30,
    'data_gib_per_device': data_bytes / 2**30,
    'activation_gib_per_device': activations / 2**30,
    'activations_of': _activations_of(architecture, execution),
    **phases.pop(0),
    'seconds': seconds,
    'later': phases,
  }


def _activations_of(architecture, execution):
  """For what the activations are estimated, in words."""
  platform = (execution.platform or jax.default_backend()).upper()
  chosen = attention.implementation(architecture, execution)
  loop = 'no loop over blocks' if _unrolled(architecture, execution) else 'blocks in a loop'
  return f'{platform}, attention {chosen}, {loop}'


def _unrolled(architecture, execution):
  return tuning.blocks_per_step(execution, architecture.depth) == architecture.depth


def table(numbers: Mapping[str, Any], config: PlanConfig, steps: int) -> str:
  """Writes the plan in words, for the console."""
  rows = [
    ('parameters', _parameters(numbers['parameters'], numbers['trained'])),
    ('tokens per image', f'{numbers["tokens"]}'),
    (
      'FLOPs per image',
      f'{numbers["forward_gflops_per_image"]:.2f} G forward, '
      f'{numbers["training_gflops_per_image"]:.2f} G training (a multiply-add is 2)',
    ),
    ('method', _added(numbers['method'])),
    *_optimizer(numbers),
    *((f'  after {step:,} steps', _later(phase)) for step, phase in numbers['later'].items()),
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


def _added(method):
  shares = ', '.join(f'{name} {share:+.1%}' for name, share in method.items())
  return shares or 'adds nothing to the matrix products of a plain step'


def _optimizer(numbers):
  if not numbers['optimizer']:
    return ()
  return (
    ('optimizer', f'Newton-Schulz +{numbers["optimizer"]:.1%}, its matrices shared by the devices'),
  )


def _later(phase):
  return f'{_added(phase["method"])}; {phase["steps_per_second"]:.3g} steps/s'


def _parameters(whole, trained):
  return f'{whole:,} trained' if trained == whole else f'{whole:,}, of which {trained:,} trained'


def memory_gib(numbers: Mapping[str, Any]) -> float:
  """Memory that the plan estimates for a device, all parts together."""
  return sum(
    numbers[f'{part}_gib_per_device'] for part in ('state', 'frozen', 'data', 'activation')
  )


def aligned(rows: Sequence[tuple[str, str]]) -> str:
  """Writes names and texts in two columns."""
  width = max(len(name) for name, _ in rows)
  return '\n'.join(f'{name:<{width}}  {text}' for name, text in rows)
