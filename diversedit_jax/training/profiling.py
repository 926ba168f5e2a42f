"""A trace of a few training steps, to look at in XProf or in TensorBoard's profile plugin.

Operations have the names of what they belong to, by `jax.named_scope` where that is computed: draw,
the encoder's, the flow's (model, in it embed, block, attention, mlp, fuse and final, and then the
loss), the term's, optimizer, ema.
"""

from collections.abc import Callable, Iterator
import contextlib
import pathlib
from typing import Any

from absl import logging
import jax

from diversedit_jax.data import files
from diversedit_jax.training import phases


@contextlib.contextmanager
def traced(
  step_fn: phases.Numbered, *, steps: tuple[int, int] | None, folder: pathlib.Path
) -> Iterator[Callable[..., Any]]:
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
  """A step some of whose calls are recorded."""

  def __init__(self, step_fn, first, last, folder):
    self._step_fn, self._wanted, self._folder = step_fn, range(first, last + 1), folder
    self._recorded: list[int] = []
    self._stack = contextlib.ExitStack()
    self._metrics, self._on, self._done = None, False, False

  def __call__(self, step, state, *inputs):
    if step not in self._wanted:
      self.stop()  # The last one may have been left out.
    if self._done or step not in self._wanted:
      return self._step_fn(step, state, *inputs)
    self._recorded.append(step)
    if not self._on:
      jax.block_until_ready(state)
      folder = self._stack.enter_context(files.local_folder(self._folder))
      options = jax.profiler.ProfileOptions()
      # Python's calls are left out: to follow them in all threads can crash CPython 3.11.
      options.python_tracer_level = 0
      jax.profiler.start_trace(folder, profiler_options=options)
      self._on = True
    with jax.profiler.StepTraceAnnotation('train', step_num=step):
      state, self._metrics = results = self._step_fn(step, state, *inputs)
    if step == self._wanted[-1]:
      self.stop()
    return results

  def stop(self):
    if not self._on:
      return
    self._on, self._done = False, True
    jax.block_until_ready(self._metrics)  # None, if the first of the steps has failed.
    jax.profiler.stop_trace()
    self._stack.close()
    self._metrics = None
    first, last = self._recorded[0], self._recorded[-1]
    logging.info('trace of steps %d to %d: %s', first, last, self._folder)
