"""What becomes of a step that is not finite: the run stops, or goes on without its update.

A step is left out when its update is not applied: parameters, moments, their count and the average
stay as they were, and only the number of steps goes on, so that every other step has the batch and
the noise that it always had. `left_out.json` of the run lists these steps, and a run that goes on
passes them over: it is a function of its config and of this list.
"""

from collections.abc import Callable, Sequence
import pathlib

from absl import logging
import jax
import numpy as np

from diversedit_jax import checkpoint, types
from diversedit_jax.data import files
from diversedit_jax.training import state as state_lib

POLICIES = ('stop', 'skip', 'rollback')
FILE = 'left_out.json'

Examples = Callable[[int], Sequence[int]]
"""Step, counted from 1 -> indices of the examples of its batch, over all processes."""


class NonFiniteLoss(types.UserError):
  """A metric became NaN or infinite. step: counted from 1. because: which ones, in words."""

  def __init__(self, step: int, because: str, what: str):
    super().__init__(f'step {step}: {because}; {what}')
    self.step, self.because = step, because


class LeftOut:
  """The steps of a run that are left out, counted from 1; kept in a file as they are added.

  path: the file. most: how many a run may leave out. write: whether this process writes the file,
  as the first one does; all of them add the same steps. examples: for the record.
  """

  def __init__(self, path: pathlib.Path, *, most: int, write: bool, examples: Examples):
    self._path, self._most, self._write, self._examples = path, most, write, examples
    self._entries = files.read_json(path, list, may_lack=True)
    self._steps = {entry['step'] for entry in self._entries}

  def __contains__(self, step: int) -> bool:
    return step in self._steps

  def add(self, step: int, because: str) -> None:
    """Leaves a step out from now on.

    Raises:
      NonFiniteLoss: the run has left out as many as it may.
    """
    if len(self._steps) >= self._most:
      raise NonFiniteLoss(
        step,
        because,
        f'the run is stopped, since it has left out {len(self._steps)} steps already and '
        f'train.max_skipped={self._most}; {self._path} lists them',
      )
    self._steps.add(step)
    indices = [int(i) for i in self._examples(step)]
    self._entries.append({'step': step, 'because': because, 'examples': indices})
    logging.warning(
      'step %d: %s; it is left out, as %d of at most %d',
      step,
      because,
      len(self._steps),
      self._most,
    )
    if self._write:
      files.write_json(self._path, self._entries)


def with_rollback(
  attempt: Callable[[state_lib.Placed], state_lib.TrainState],
  placed: state_lib.Placed,
  *,
  active: bool,
  left_out: LeftOut,
  checkpoints: checkpoint.Checkpoints,
) -> state_lib.TrainState:
  """Trains; after a step that is not finite, goes back to the newest checkpoint, and leaves it out.

  Args:
    attempt: initial parameters that are not random -> the state at the end; it goes on from the
      newest checkpoint, and passes over what is left out.
    placed: those parameters. active: False trains once. left_out, checkpoints: of the run.

  Raises:
    NonFiniteLoss: from the attempt, or the run has left out as many steps as it may.
    UserError: there is no checkpoint, and weights from elsewhere have to be read again.
  """
  while True:
    try:
      return attempt(placed)
    except NonFiniteLoss as error:
      if not active:
        raise
      step, because = error.step, error.because
    # Out here nothing holds the state of before any more.
    left_out.add(step, because)
    if checkpoints.latest() is None and placed is not state_lib.AT_RANDOM:
      raise types.UserError(
        f'step {step}: {because}; there is no checkpoint yet. The same command starts again from '
        'the weights of init_from, without this step'
      )


def passed_over(state: state_lib.TrainState) -> state_lib.TrainState:
  """The state after a step that is left out."""
  return state.replace(step=jax.device_put(np.int32(state.step) + 1, state.step.sharding))


def forget_after(path: pathlib.Path, step: int) -> None:
  """Takes later steps off the list in a run's directory, which goes back to this one."""
  entries = files.read_json(path / FILE, list, may_lack=True)
  if entries:
    files.write_json(path / FILE, [entry for entry in entries if entry['step'] <= step])
