"""The training loop: everything impure, top to bottom.

Order of one iteration (it decides what a checkpoint holds, so keep it):
  1. fetch batch k            a function of (seed, k)
  2. dispatch step k          asynchronous; one that is left out is only counted
  3. read metrics of step k-1 while step k computes; stop if they are not finite, unless the step
     itself has left its update out
  4. when something is due after step k, read its metrics too, then:
     report, save, hooks (telemetry, previews), stop if a signal asks for it
Resuming: restore the newest readable checkpoint, drop later metrics, run those hooks of its step
that had not come to their end, go on at its step.
`nonfinite.with_rollback` does the same within the process.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import math

from absl import logging
import jax

from diversedit_jax import checkpoint, faults, meeting, signals, types
from diversedit_jax.data import files
from diversedit_jax.methods import base
from diversedit_jax.training import average, goodput, nonfinite, progress, spikes, writers
from diversedit_jax.training import state as state_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoopConfig:
  """steps: updates in all. batch_size: global. Intervals in steps: log_every, checkpoint_every."""

  steps: int
  batch_size: int
  log_every: int
  checkpoint_every: int

  def __post_init__(self):
    for field in dataclasses.fields(self):
      if getattr(self, field.name) < 1:
        raise types.UserError(f'{field.name} must be at least 1, got {getattr(self, field.name)}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hook:
  """Something done every so many steps, and after the last, with the state and the last batch.

  made: whether it has been done at a step, before an interruption; the first process says.
  """

  every: int
  run: Callable[[int, state_lib.TrainState, types.Batch], None]
  made: Callable[[int], bool]

  def due(self, step: int, last: bool) -> bool:
    """Whether it is done after a step."""
    return bool(self.every) and (step % self.every == 0 or last)


def train(
  config: LoopConfig,
  *,
  trainable: state_lib.Trainable,
  step_fn: Callable[..., tuple[state_lib.TrainState, base.Metrics]],
  init_key: jax.Array,
  placed: state_lib.Placed = state_lib.AT_RANDOM,
  open_batches: Callable[[int], contextlib.AbstractContextManager[Iterator[types.Batch]]],
  checkpoints: checkpoint.Checkpoints,
  left_out: nonfinite.LeftOut,
  watched: spikes.Spikes,
  account: goodput.Account,
  open_writer: Callable[[int, Sequence[str]], writers.Writer],
  hooks: Callable[[writers.Writer], Sequence[Hook]],
) -> state_lib.TrainState:
  """Trains to `config.steps`, continuing whatever the checkpoints hold.

  Args:
    config: lengths and intervals.
    trainable: makes, places and restores the state.
    step_fn: (number of the step, state, batch) -> (state, metrics); compiled, donates the state.
    init_key: for the initial parameters. placed: those that are not random.
    open_batches: start step -> context manager of an iterator of batches on the devices.
    checkpoints: the run's checkpoints. left_out: steps without an update.
    watched: is shown every loss. account: of the seconds; its clock runs already.
    open_writer: start step, rows that only its checkpoint has -> where metrics go.
    hooks: writer -> what else is done at intervals.

  Returns:
    The state after the last step, or after the step at which a signal was noticed; it has been
    saved.

  Raises:
    NonFiniteLoss: naming the step, the terms and the last good checkpoint.
  """
  state, accumulator, begun, unsent = _start(trainable, init_key, placed, checkpoints)
  start = int(state.step)
  clock, pending, timed_from = account.clock, None, start

  def read(of_step):
    _absorb(of_step, accumulator, checkpoints, left_out, watched)

  with contextlib.ExitStack() as stack:
    writer = open_writer(start, unsent)
    stack.callback(writer.close)
    scheduled = hooks(writer)
    with clock.paused('hooks'):
      _catch_up(start, config.steps, state, scheduled, open_batches)
    if start >= config.steps:
      logging.info('nothing to do: the run is at step %d of %d', start, config.steps)
      return state
    stack.enter_context(account.opened(start, config.steps))
    stopped_by = stack.enter_context(signals.stop_requested())
    batches = stack.enter_context(open_batches(start))
    clock.reached('setup')
    for step in range(start + 1, config.steps + 1):
      account.at(step - 1)
      with clock.waiting(behind=pending is not None):
        batch = next(batches)
      if step in left_out:
        state, metrics = nonfinite.passed_over(state), None
      else:
        state, metrics = step_fn(step, state, batch)
      read(pending)
      pending = (step, metrics)
      last = step == config.steps
      stop = stopped_by() or ('SIGTERM' if checkpoints.preempted(step) else '')
      report = step % config.log_every == 0 or last
      if step == start + 1:
        jax.block_until_ready(metrics)
        clock.reached('compile')
        logging.info('first step after %.1f s, compilation included', clock.total())
        if not report:
          clock.lap()
          timed_from = step
      save = step % config.checkpoint_every == 0 or last or stop
      due = [hook for hook in scheduled if hook.due(step, last)]
      if not (report or save or due):
        continue
      with clock.one_step():
        read(pending)
      pending = None
      if report:
        account.note(step)
        _report(step, config, accumulator, writer, clock, step - timed_from)
        checkpoints.look()
        timed_from = step
      if save:
        with clock.paused('save'):
          unsent = writer.sync()
          meta = {'step': step, 'metrics': accumulator.state(), **begun}
          meta |= {'rows': unsent} if unsent else {}
          checkpoints.save(step, state.items(), meta)
      with clock.paused('hooks'):
        for hook in () if stop else due:  # Whoever sends a signal does not wait for pictures.
          _run(hook, step, state, batch)
      if stop or last:
        break
    with clock.paused('save'):
      checkpoints.wait()
    if not last:
      logging.info('%s: saved step %d to %s', stop, step, checkpoints.name(step))
    account.note(step, ended='finished' if last else stop)
  return state


def _start(trainable, init_key, placed, checkpoints):
  """The state, metrics since the last report, what is noted of further averages, unsent rows."""
  if checkpoints.latest() is None:
    begun = average.begun(trainable.averages, {}, 0)
    return trainable.init(init_key, placed), progress.Accumulator(), begun, []
  known = checkpoints.steps()
  step, items, meta = checkpoints.restore(trainable.targets())
  checkpoints.set_aside(s for s in known if s > step)
  logging.info('continuing at step %d from %s', step, checkpoints.name(step))
  begun = average.begun(trainable.averages, meta, step)
  for name in [n for n in trainable.averages if average.item(n) not in items]:
    logging.warning('the average %s begins at step %d, as a copy of the parameters', name, step)
  state, accumulator = trainable.assemble(step, items), progress.Accumulator(meta['metrics'])
  return state, accumulator, begun, meta.get('rows', [])


def _catch_up(step, steps, state, scheduled, open_batches):
  """Runs hooks of the restored step that a kill or a signal has kept from their end."""
  due = [hook for hook in scheduled if step and hook.due(step, step == steps)]
  first = jax.process_index() == 0
  due = [hook for hook in due if not meeting.all_agree(not first or hook.made(step))]
  if not due:
    return
  logging.info('step %d: what was left undone after it is done now', step)
  with open_batches(step - 1) as batches:
    batch = next(batches)
  for hook in due:
    _run(hook, step, state, batch)


def _run(hook, step, state, batch):
  try:
    hook.run(step, state, batch)
  except Exception as error:
    passes = isinstance(error, files.Unsent) or faults.no_space(error)
    if jax.process_count() > 1 or not passes:
      raise  # Several processes wait for each other in a hook.
    logging.error('not written after step %d: %s; training goes on', step, faults.told(error))


def _absorb(pending, accumulator, checkpoints, left_out, watched):
  if pending is None:
    return
  step, metrics = pending
  if metrics is None:  # Left out before it was computed.
    accumulator.leave_out()
    return
  values = {name: float(value) for name, value in jax.device_get(metrics).items()}
  skipped = values.pop('skipped', 0)
  bad = {name: value for name, value in values.items() if not math.isfinite(value)}
  if not bad:
    accumulator.add(values)
    watched.look(step, values['loss'])
    return
  listed = ', '.join(f'{name} is {value}' for name, value in bad.items())
  if skipped:
    left_out.add(step, listed)
    accumulator.leave_out()
    return
  checkpoints.settle()
  raise nonfinite.NonFiniteLoss(
    step,
    listed,
    'the run is stopped and nothing of this step is saved; '
    f'last good checkpoint: {checkpoints.name(checkpoints.latest())}',
  )


def _report(step, config, accumulator, writer, clock, steps_timed):
  rate = steps_timed / clock.lap()
  row = accumulator.pop() | {
    'steps_per_second': rate,
    'images_per_second': rate * config.batch_size,
    'seconds': clock.total(),
  }
  with clock.paused('hooks'):  # A tracker is opened here, and may be slow.
    writer.row(step, row)
  logging.info('%s', progress.line(step, config.steps, row))
