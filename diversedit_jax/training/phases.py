"""The stretches of a run between the ends of its terms, each with a compiled step of its own.

A term whose weight stays 0 is left out of the step, and with it the encoders and the pass of the
averaged network that only it asked for. The state is the same throughout: heads without a term stay
as they are, without gradient.
"""

from collections.abc import Callable
import functools

from absl import logging

from diversedit_jax import types
from diversedit_jax.methods import base
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.training import state as state_lib
from diversedit_jax.training import step as step_lib

Numbered = Callable[
  [int, state_lib.TrainState, types.Batch, step_lib.Frozen],
  tuple[state_lib.TrainState, base.Metrics],
]
"""(number of the step from 1, state, batch, frozen) -> (state, metrics)."""


def of(
  objective: objective_lib.Objective, compiled: Callable[[objective_lib.Objective], step_lib.Step]
) -> Numbered:
  """The step of a run; which terms it has, its number says.

  Args:
    objective: with all terms. compiled: an objective -> its step, compiled when it is called.
  """

  @functools.cache
  def phase(begun):
    """The objective and the step from so many updates on."""
    running = objective.running(begun)
    if begun:
      logging.info('%s', told(objective, begun))
    return running, compiled(running)

  def step(number, state, batch, frozen):
    begun = max((end for end in objective.ends if end < number), default=0)
    running, compiled_step = phase(begun)
    return compiled_step(state, batch, {e.name: frozen[e.name] for e in running.encoders})

  return step


def told(objective: objective_lib.Objective, begun: int) -> str:
  """What is not computed any more after so many updates, in words."""
  running = objective.running(begun)
  names = lambda parts: ', '.join(part.name for part in parts)
  ended = [term for term in objective.terms if term not in running.terms]
  idle = [encoder for encoder in objective.encoders if encoder not in running.encoders]
  left = f'; not run any more: {names(idle)}' if idle else ''
  return f'after {begun} updates the weight of {names(ended)} stays 0{left}; the step compiles anew'
