"""Another network beside the one that is looked at: of another run, a checkpoint, or a file."""

from collections.abc import Sequence
import dataclasses

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import types
from diversedit_jax.experiment import flat_config, published, run_dir
from diversedit_jax.modes import origins


def find(
  experiment: experiment_lib.Experiment, key: str, text: str, sections: Sequence[str]
) -> tuple[experiment_lib.Experiment, str, origins.Origin]:
  """What a key names, a run for its newest checkpoint: its experiment, place and origin.

  A file that does not say what network it holds is of the experiment's own.

  Args:
    experiment: beside which it is looked at. key, text: of the config.
    sections: those of the config that are the experiment's, beside its own network and method.

  Raises:
    UserError: nothing is there; or it is of examples of another shape, or in other classes.
  """
  origin = run_dir.newest_checkpoint(text) if origins.run_at(text) else text
  found = origins.find(origin)
  flat = flat_config.stored(found.run) if found.run else None
  if found.about is not None:
    flat = found.about.config
  other = experiment
  if flat is not None:
    config = published.nested(flat)
    for section in sections:
      config[section] = experiment.config[section]
    other = experiment_lib.build(config)
  if found.step is None:  # A file holds one set.
    kind = found.about.weights['kind'] if found.about else 'ema'
    held = dataclasses.replace(other.sample, weights='ema' if kind == 'file' else kind)
    other = dataclasses.replace(other, sample=held)
  ours, theirs = (
    (one.architecture.shape, one.architecture.num_classes) for one in (experiment, other)
  )
  if ours != theirs:
    raise types.UserError(
      f'{key}={text} takes examples of shape {theirs[0]} in {theirs[1]} classes, and '
      f'this network {ours[0]} in {ours[1]}: the same examples must go through both'
    )
  return other, origin, found


def name(found: origins.Origin) -> str:
  """What figures and cards call it."""
  return f'{found.run.name}, step {found.step}' if found.run else found.name
