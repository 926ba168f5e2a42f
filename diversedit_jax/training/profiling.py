"""A trace of a few training steps, to look at in XProf or in TensorBoard's profile plugin.

Operations have the names of what they belong to, by `jax.named_scope` where that is computed: draw,
the encoder's, the flow's (model, in it embed, block, attention, mlp, fuse and final, and then the
loss), the term's, optimizer, ema.
"""

from collections.abc import Iterator
import contextlib
import pathlib

from absl import logging
import jax

from diversedit_jax.training import step as step_lib


@contextlib.contextmanager
def traced(
  step_fn: step_lib.Step, *, steps: tuple[int, int] | None, folder: pathlib.Path
) -> Iterator[step_lib.Step]:
  """Yields the step; once, it records a trace of some steps of the run.

  The devices are waited for before and after, so that the trace holds whole steps. If training ends
  within them, the trace ends there too. A run that continues after them records nothing.

  Args:
    step_fn: what a training step calls.
    steps: the first and the last to record, counted from 1 as everywhere; None records nothing.
    folder: holds `plugins/profile/TIME/` afterwards; it is what `tensorboard --logdir` is given.
  """
  if steps is None:
    yield step_fn
    return
  trace = _Trace(step_fn, *steps, folder)
  try:
    yield trace
  finally:
    trace.stop()


class _Trace:
  """A step that counts its calls and records some of them."""

  def __init__(self, step_fn, first, last, folder):
    self._step_fn, self._first, self._last, self._folder = step_fn, first, last, folder
    self._step = self._metrics = None

  def __call__(self, state, *inputs):
    # The state is asked once: later it would have to be waited for.
    self._step = int(state.step) + 1 if self._step is None else self._step + 1
    if not self._first <= self._step <= self._last:
      return self._step_fn(state, *inputs)
    if self._metrics is None:
      jax.block_until_ready(state)
      jax.profiler.start_trace(self._folder)
    with jax.profiler.StepTraceAnnotation('train', step_num=self._step):
      state, self._metrics = results = self._step_fn(state, *inputs)
    if self._step == self._last:
      self.stop()
    return results

  def stop(self):
    if self._metrics is None:
      return
    jax.block_until_ready(self._metrics)
    jax.profiler.stop_trace()
    self._metrics = None
    logging.info('trace of steps %d to %d: %s', self._first, self._step, self._folder)
