"""The training objective of a method's name, from the parts' options and what they ask for."""

import dataclasses

from diversedit_jax import types
from diversedit_jax.frozen.encoders import base as encoders_lib
from diversedit_jax.methods import base, registry
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import config as model_config


def make_objective(
  setup: base.Setup,
) -> tuple[objective_lib.Objective, model_config.Architecture, model_config.Execution]:
  """The objective that the method's name lists, and the model as that objective needs it.

  Raises:
    UserError: for parts that do not go together, options that the model or the batch does not
      allow, an unknown encoder, or data without the pixels that it looks at.
  """
  flow, *terms = (setup.parts[name] for name in registry.parse(setup.method))
  if not setup.ema_decay and registry.needs(setup.method, 'needs_teacher'):
    raise types.UserError(
      f'method {setup.method!r} with train.ema_decay=0: the teacher would be the student'
    )
  flow = flow.prepare(setup)
  architecture, execution = flow.adapt(setup.architecture, setup.execution)
  setup = dataclasses.replace(setup, architecture=architecture, execution=execution)
  flow.check_model(architecture, execution)
  prepared = (*flow.terms(setup), *(term.prepare(setup) for term in terms))
  for term in prepared:
    architecture, execution = term.adapt(architecture, execution)
  for term in prepared:
    term.check(architecture, setup.examples)
  tokenizer = setup.source.tokenizer
  encoders = {} if tokenizer is None else {tokenizer.name: tokenizer}
  for encoder in (encoder for part in (flow, *prepared) for encoder in part.opened):
    other = encoders.get(encoder.name)
    encoders[encoder.name] = encoders_lib.joined(other, encoder) if other else encoder
  objective = objective_lib.Objective(
    flow=flow,
    terms=prepared,
    encoders=tuple(encoders.values()),
    scaling=setup.source.scaling,
  )
  return objective, architecture, execution
