"""Samples without a class, as guidance and `labels=null` need them: what to do, what to refuse."""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib
from typing import Any

from absl import logging

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import types
from diversedit_jax.experiment import flat_config, run_dir
from diversedit_jax.modes import origins
from diversedit_jax.sampling import generate, trajectory


def dropped(share: float, beginning: Mapping[str, Any]) -> float | None:
  """Share of labels that a run drops or, if it is 0, that was dropped before; None if not known.

  share: the run's own. beginning: its init.json, {} without one.
  """
  return share or (beginning.get('label_dropout') if beginning else 0.0)


def dropped_by(run: pathlib.Path) -> float | None:
  """`dropped` of the run in a directory."""
  return dropped(flat_config.stored(run)['train.label_dropout'], run_dir.beginning(run))


def dropped_for(origin: origins.Origin) -> float | None:
  """`dropped` of weights from elsewhere; None for a file, which does not say."""
  if origin.about is not None:
    return origin.about.label_dropout
  return None if origin.run is None else dropped_by(origin.run)


def sampler_for(experiment: experiment_lib.Experiment, labels: str) -> trajectory.SamplerConfig:
  """The experiment's sampler for the labels of a key, 'sample.labels' or 'eval.labels'.

  Without a class the two velocities of guidance are one and the same, so nothing is guided.
  """
  sampler = experiment.sampler
  if not sampler.needs_null or not _without_class(experiment, labels):
    return sampler
  logging.info(
    '%s: samples without a class are not guided; sampler.guidance_scale=%g is taken as 1',
    *(labels, sampler.guidance_scale),
  )
  return dataclasses.replace(sampler, guidance_scale=1.0, class_token_scale=None)


def check_trained(
  experiment: experiment_lib.Experiment,
  label_dropout: float | None,
  samplers: Sequence[trajectory.SamplerConfig],
  labels: str | None = None,
  *,
  scale: str = 'sampler.guidance_scale',
) -> None:
  """Refuses samples without a class of a model that never saw a dropped label.

  Args:
    experiment: how samples are made.
    label_dropout: share of labels that was dropped in the model's training; None if not known.
    samplers: by which samples are made.
    labels: key that says of which labels, 'sample.labels' or 'eval.labels'; None has classes.
    scale: key of the guidance scales of the samplers.

  Raises:
    UserError: with the settings that need no such samples.
  """
  if label_dropout != 0 or not experiment.architecture.num_classes:
    return
  instead = {}
  if any(sampler.needs_null for sampler in samplers):
    if any(sampler.guidance_scale != 1 for sampler in samplers):
      instead[scale] = "'(1.0,)'" if scale.endswith('scales') else '1'
    if any(sampler.class_token_scale is not None for sampler in samplers):
      instead['sampler.class_token_scale'] = '1'
  if labels and _without_class(experiment, labels):
    instead[labels] = 'balanced'
  if not instead:
    return
  section, _, name = next(iter(instead)).partition('.')
  raise types.UserError(
    f'{section}.{name}={experiment.config[section][name]} needs samples without a class, and with '
    'train.label_dropout=0 the model never learns to make them. Give '
    f'{" ".join(f"--config.{key}={value}" for key, value in instead.items())}; only a model that '
    'is trained with train.label_dropout above 0 can be guided or sample without a class'
  )


def check_changes(
  experiment: experiment_lib.Experiment, labels: str, samplers: Sequence[trajectory.SamplerConfig]
) -> None:
  """Refuses a sweep over guidance of samples without a class, which are the same under any scale.

  Raises:
    UserError: with the scale that is left.
  """
  if _without_class(experiment, labels) and any(sampler.needs_null for sampler in samplers):
    raise types.UserError(
      f'sweep.guidance_scales={experiment.sweep.guidance_scales} with {labels}=null: guidance does '
      "not change samples without a class. Give --config.sweep.guidance_scales='(1.0,)', or other "
      'labels'
    )


def _without_class(experiment, labels):
  section, _, name = labels.partition('.')
  return generate.is_null(experiment.config[section][name], experiment.architecture.num_classes)
