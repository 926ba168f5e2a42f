"""Training steps to time: the project's own step on synthetic latents, without data or configs.

The parts are put together as `build` does it, but `build` reads data through Grain and ArrayRecord,
which a machine with an accelerator may lack; `no_input_libraries` says whether that was kept to.
"""

from collections.abc import Mapping
import dataclasses
import math
import statistics
import sys
import time
from typing import Any

from flax import nnx
import jax
import numpy as np
import optax
import timing

from diversedit_jax import interpolants, rng, sharding
from diversedit_jax.methods import base, diverse, flow
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import config as config_lib
from diversedit_jax.models import cost, sizes
from diversedit_jax.planning import compile_report
from diversedit_jax.training import optim, state, step

VARIANTS = ('plain', 'skips', 'skips+loss')
UNROLL = {'loop': 1, 'unrolled': 1000}  # More than any network has blocks.
CLASSES, CHANNELS = 1000, 4
EMA_DECAY = 0.9999
_STEPS = 400_000  # The schedule's length; it is constant.
_NOT_WANTED = ('grain', 'tensorflow', 'array_record')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
  """What decides the cost of a step.

  size: of `models.sizes`. variant: of `VARIANTS`. batch: examples. resolution: of the pixels, 256
  or 512. block, qk_norm: see `models.config.Architecture`. head: depth, width and attention heads
  of a wide head; none if empty. dtype, attention, unroll, remat: see
  `models.config.Execution`. on_nonfinite: 'stop' or 'skip', as `train.on_nonfinite`.
  """

  size: str
  variant: str
  batch: int
  resolution: int = 256
  block: str = 'sit'
  qk_norm: bool = False
  head: tuple[int, ...] = ()
  dtype: str = 'float32'
  attention: str = 'auto'
  unroll: int = 0
  remat: str = 'none'
  on_nonfinite: str = 'stop'

  def architecture(self, **changes: Any) -> config_lib.Architecture:
    """What the network is. changes: other values of its fields, as another depth."""
    side = self.resolution // 8
    made = sizes.architecture(
      self.size,
      input_size=(side, side),
      channels=CHANNELS,
      num_classes=CLASSES,
      skip=config_lib.Skip(enabled=self.variant != 'plain'),
      block=self.block,
      qk_norm=self.qk_norm,
      head=config_lib.Head(**dict(zip(('depth', 'width', 'heads'), self.head, strict=False))),
    )
    return dataclasses.replace(made, **changes)

  def execution(self, platform: str = '') -> config_lib.Execution:
    """How it is run. platform: of a machine that is not here."""
    return config_lib.Execution(
      dtype=self.dtype,
      attention=self.attention,
      unroll=self.unroll,
      remat=self.remat,
      platform=platform,
    )


def objective(variant: str, diversity: diverse.Diverse | None = None) -> objective_lib.Objective:
  """Flow matching on the linear path, with the diversity loss of all blocks if the variant has it.

  diversity: another choice of blocks, for any variant.
  """
  if diversity is None and variant == 'skips+loss':
    diversity = diverse.Diverse()
  terms = () if diversity is None else (diversity,)
  return objective_lib.Objective(flow=interpolant(), terms=terms)


def interpolant() -> flow.StochasticInterpolant:
  """SiT's flow as the papers train it."""
  return flow.StochasticInterpolant(
    path=interpolants.linear(), time_law=interpolants.TIME_LAWS['uniform'](), null_label=CLASSES
  )


def transformation() -> optax.GradientTransformation:
  """AdamW with clipping, the published recipe."""
  return optim.make(optim.OptimizerConfig(), _STEPS)


def trainable(
  architecture: config_lib.Architecture,
  execution: config_lib.Execution,
  objective: objective_lib.Objective,
  mesh: jax.sharding.Mesh,
  *,
  shard_over_data: bool = False,
) -> state.Trainable:
  """What is trained, its state spread over a mesh."""
  make_network = lambda rngs: base.Network(architecture, execution, objective.terms, rngs=rngs)
  return state.Trainable(make_network, transformation(), mesh, shard_over_data=shard_over_data)


def lower(
  of: state.Trainable,
  input_size: tuple[int, int],
  objective: objective_lib.Objective,
  batch: int,
  *,
  skip: bool = False,
) -> jax.stages.Lowered:
  """The step on so many examples, traced for the mesh and not compiled; see `trainable`.

  skip: see `training.step.make_step`.
  """
  made = step.make_step(
    objective,
    of.graphdef,
    transformation(),
    key=rng.stream(jax.random.key(0), 'train'),
    ema_decay=EMA_DECAY,
    learning_rate=optim.schedule(optim.OptimizerConfig(), _STEPS),
    fixed=of.fixed,
    skip=skip,
  )
  shapes = jax.eval_shape(of.init, jax.random.key(0))
  arrays = jax.eval_shape(lambda: latents(batch, input_size))
  with jax.sharding.use_abstract_mesh(of.mesh.abstract_mesh):
    return step.compile_step(made, of.shardings, of.mesh).lower(shapes, arrays, {})


class Step:
  """One compiled training step; `run` updates its state.

  compile_seconds: of tracing and compiling. peak_bytes: see `compile_report.peak_bytes`.
  """

  def __init__(
    self,
    architecture: config_lib.Architecture,
    execution: config_lib.Execution,
    objective: objective_lib.Objective,
    batch: int,
    *,
    allocate: bool = True,
    states: dict[Any, state.TrainState] | None = None,
    mesh: jax.sharding.Mesh | None = None,
    options: Mapping[str, Any] | None = None,
    skip: bool = False,
  ):
    """Compiles, and makes the state.

    Args:
      architecture, execution, objective, batch: what to train, and on how many examples.
      allocate: False compiles only, so that a model that does not fit can be compiled too.
      states: where steps keep their states that take turns; those of like shapes share one, so that
        memory holds fewer of them.
      mesh: None is of all devices. Of devices that are not here (`targets.find`), nothing can be
        allocated.
      options: of the compiler.
      skip: see `training.step.make_step`.
    """
    mesh = sharding.make_mesh() if mesh is None else mesh
    self.trainable = trainable(architecture, execution, objective, mesh)
    self.flops = batch * cost.cost(architecture, execution).training
    started = time.perf_counter()
    lowered = lower(self.trainable, architecture.input_size, objective, batch, skip=skip)
    self.program = lowered.compile(options)
    self.compile_seconds = time.perf_counter() - started
    self.peak_bytes = compile_report.peak_bytes(self.program)
    self._states = {} if states is None else states
    self._key = str(jax.tree.map(lambda x: x.shape, self.trainable.params))
    if allocate:
      if self._key not in self._states:
        self._states[self._key] = self.trainable.init(jax.random.key(0))
      self.batch = sharding.put_batch(latents(batch, architecture.input_size), mesh, batch)

  def run(self) -> Mapping[str, jax.Array]:
    """Starts a step; its metrics."""
    state, self.metrics = self.program(self._states[self._key], self.batch, {})
    self._states[self._key] = state
    return self.metrics

  def check(self) -> float:
    """The last loss; refuses one that is not finite: a time would mean nothing."""
    loss = float(self.metrics['loss'])
    if not math.isfinite(loss):
      raise FloatingPointError(f'the loss is {loss}')
    return loss

  def dispatch_ms(self, rounds: int, calls: int = 5) -> timing.Spread:
    """Milliseconds until a call returns that nothing waits for, the mean of a round's calls.

    On a CPU they are those in which the calling thread worked: there the step itself, and whatever
    else runs, may take the core away before the call returns.
    """
    clock = time.thread_time if timing.main_clock() == 'cpu' else time.perf_counter
    times = []
    for _ in range(rounds * calls):
      jax.block_until_ready(self._states)
      started = clock()
      self.run()
      times.append(1000 * (clock() - started))
    jax.block_until_ready(self._states)
    return timing.spread(
      statistics.fmean(times[i : i + calls]) for i in range(0, len(times), calls)
    )


def make(
  case: Case, states: dict[Any, state.TrainState] | None = None, *, allocate: bool = True
) -> Step:
  """The step of a case. states, allocate: see `Step`."""
  return Step(
    case.architecture(),
    case.execution(),
    objective(case.variant),
    case.batch,
    states=states,
    allocate=allocate,
    skip={'stop': False, 'skip': True}[case.on_nonfinite],
  )


def latents(batch: int, input_size: tuple[int, int]) -> dict[str, np.ndarray]:
  """Normal latents and labels, the same at every call."""
  x_NHWC = np.random.default_rng(0).standard_normal((batch, *input_size, CHANNELS), np.float32)
  return {'latents': x_NHWC, 'labels': (np.arange(batch) % CLASSES).astype(np.int32)}


def perturbed(network: nnx.Module, scale: float = 0.02) -> nnx.Module:
  """The network with noise in every parameter: a fresh one predicts exactly zero."""
  graphdef, params = nnx.split(network)
  leaves, treedef = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [
    x + scale * jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=True)
  ]
  return nnx.merge(graphdef, jax.tree.unflatten(treedef, noisy))


def one_device() -> None:
  """Stops a benchmark that would spread its work over several GPUs: its numbers are of one."""
  if jax.default_backend() != 'cpu' and jax.device_count() != 1:
    raise SystemExit(
      f'{jax.device_count()} devices, expected one: set CUDA_VISIBLE_DEVICES to the number of a GPU'
    )


def no_input_libraries() -> None:
  """Raises RuntimeError if a library for reading data was imported."""
  found = [name for name in _NOT_WANTED if name in sys.modules]
  if found:
    raise RuntimeError(f'{", ".join(found)} imported: steps must be timed without them')
