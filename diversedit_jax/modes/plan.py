"""`--mode=plan`: what a run will cost, by arithmetic and by the compiler."""

from typing import Any

import jax
import numpy as np

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import sharding, trees
from diversedit_jax.models import attention
from diversedit_jax.modes import run_context
from diversedit_jax.planning import compile_report, devices
from diversedit_jax.planning import plan as plan_lib
from diversedit_jax.training import optim, step


def run(experiment: experiment_lib.Experiment) -> str:
  """The cost of the config, in words; with `plan.compile_for`, the compiler's word beside it."""
  options = experiment.plan
  target = devices.find(options.compile_for) if options.compile_for else None
  planned = numbers(experiment, options.count(target))
  table = plan_lib.table(planned, options, experiment.train.steps)
  if target is None:
    return table
  found, estimate = report(experiment, target), plan_lib.memory_gib(planned)
  share = estimate / found.needed * devices.GIB
  rows = [
    *compile_report.rows(found),
    ('estimate above', f"{estimate:.2f} GiB, {share:.0%} of the compiler's"),
    ('attention', _attention(experiment)),
  ]
  return f'{table}\n\n{plan_lib.aligned(rows)}'


def numbers(experiment: experiment_lib.Experiment, count: int) -> dict[str, Any]:
  """The numbers of the plan for so many devices.

  Raises:
    UserError: for a mesh that a run would not take.
  """
  mesh = experiment.mesh
  planned = sharding.planned_mesh(mesh.data, mesh.fsdp, mesh.tensor, count, slices=mesh.slices)
  experiment_lib.check_devices(experiment, planned)
  trainable = run_context.make_trainable(experiment, planned)
  trained = trainable.trained(trainable.params)
  return plan_lib.plan(
    experiment.architecture,
    experiment.execution,
    experiment.plan,
    planned,
    objective=experiment.objective,
    steps=experiment.train.steps,
    batch_size=experiment.train.batch_size,
    accumulate=experiment.train.accumulate,
    parameters=trees.count(trainable.params),
    trained=trees.count(trained),
    shard_bytes=sharding.shard_bytes(trainable.params, trainable.param_shardings),
    average_bytes=sharding.shard_bytes(trainable.params, trainable.ema_shardings),
    moment_bytes=trainable.moment_bytes(),
    data_bytes=_resident_bytes(experiment),
    averages=1 + len(trainable.averages),
    update_flops=optim.flops(experiment.optimizer, trained, planned.size),
  )


def report(experiment: experiment_lib.Experiment, target: devices.Target) -> compile_report.Report:
  """What the compiler says of the run's step on a target."""
  batch_size = experiment.train.batch_size
  mesh = run_context.make_mesh(experiment, target.devices)
  trainable = run_context.make_trainable(experiment, mesh)
  step_fn = step.compile_step(
    run_context.make_step(experiment, trainable), trainable.shardings, mesh
  )
  one = experiment.source.gather(np.arange(1))
  batch = {n: jax.ShapeDtypeStruct((batch_size, *x.shape[1:]), x.dtype) for n, x in one.items()}
  frozen = {encoder.name: encoder.params for encoder in experiment.objective.encoders}
  state = jax.eval_shape(trainable.init, jax.random.key(experiment.seed))
  # Its devices cannot run anything, which JAX would let them do with small things under `set_mesh`.
  with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
    lowered = step_fn.lower(state, batch, frozen)
  return compile_report.compile_for(target, lowered, beside=_resident_bytes(experiment))


def _attention(experiment):
  chosen = attention.implementation(experiment.architecture, experiment.execution)
  if experiment.execution.attention != 'auto':
    return f'{chosen}, as the config or its method wants it'
  return f'{chosen}, the first that may run there: a run times all that do, which needs the device'


def _resident_bytes(experiment):
  """Bytes of the examples that every device would hold."""
  source, options = experiment.source, experiment.data
  if options.resident != 'device':
    return 0
  one = source.gather(np.arange(1))
  if options.flip:
    one |= {f'mirrored {name}': x for name, x in source.mirrored_latents(np.arange(1)).items()}
  return len(source) * sum(x.nbytes for name, x in one.items() if name != 'labels')
