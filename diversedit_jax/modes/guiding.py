"""The network of `sampler.autoguidance`: opened, checked, and told on cards."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from flax import nnx

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import types
from diversedit_jax.models import tuning
from diversedit_jax.modes import null_label, others, restoring
from diversedit_jax.sampling import generate, trajectory
from diversedit_jax.training import average

_KEY = 'sampler.autoguidance'


def with_guide(
  experiment: experiment_lib.Experiment,
  workdir: str,
  weights: restoring.Weights,
  samplers: Sequence[trajectory.SamplerConfig],
  labels: str,
) -> restoring.Weights:
  """The weights with the network that guides their samples, if one of the samplers needs it.

  Args:
    experiment: how samples are made. workdir: directory of the run, or for results.
    weights: of the network that is guided. samplers: by which samples are made.
    labels: key that says of which labels, 'sample.labels' or 'eval.labels'.

  Raises:
    UserError: no such weights; or those of another space of samples, other classes or another path.
  """
  given = experiment.sampler.autoguidance
  if not any(trajectory.GUIDE in sampler.velocities for sampler in samplers):
    return weights
  average.chosen(experiment.sampler.autoguidance_weights, f'{_KEY}_weights')
  kept = ('data', 'vae', 'mesh', 'sample', 'eval')
  other, origin, found = others.find(experiment, _KEY, given, kept)
  _check(experiment, other, given)
  if found.step is not None:
    sample = dataclasses.replace(other.sample, weights=experiment.sampler.autoguidance_weights)
    other = dataclasses.replace(other, sample=sample)
  _, loaded = restoring.open_weights(other, workdir, origin)
  null_label.check_trained(other, loaded.label_dropout, (), labels)
  facts = {
    'name': others.name(found),
    'weights': loaded.kind,
    'step': loaded.step,
    'parameters': loaded.fingerprint,
    'depth': other.architecture.depth,
    'width': other.architecture.width,
  }
  if loaded.made_of:
    facts['average'] = dict(loaded.made_of)
  return dataclasses.replace(weights, guide=_guide(experiment, other, loaded), guided_by=facts)


def _guide(experiment, other, loaded) -> generate.Guide:
  clamp = experiment.sampler.clamp

  def velocity(params: Any):
    network = tuning.for_sampling(nnx.merge(loaded.graphdef, params))
    return other.objective.velocity(network, clamp)

  return generate.Guide(velocity, loaded.params)


def _check(experiment, other, given):
  """Refuses a network whose velocities mean something else at the same x and t."""
  ours, theirs = (
    {
      'interpolant.path': one.config.interpolant.path,
      'class token': one.architecture.class_token,
    }
    for one in (experiment, other)
  )
  for name, mine in ours.items():
    if theirs[name] != mine:
      raise types.UserError(
        f'{_KEY}={given} has {name} {theirs[name]}, and this network {mine}: its velocities are of '
        'other states; give a network of the same'
      )


def check_absent(experiment: experiment_lib.Experiment) -> None:
  """Refuses autoguidance of what training samples at intervals (UserError)."""
  if trajectory.GUIDE in experiment.sampler.velocities:
    raise types.UserError(
      f'{_KEY}={experiment.sampler.autoguidance} guides what --mode=sample, eval and sweep make, '
      'not the previews and scores of training: leave it out, or set preview.every=0 and '
      'eval.every=0'
    )
