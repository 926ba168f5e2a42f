"""Options of evaluation and sweeps; what is refused is in experiment_test."""

from helpers import config_changes
import pytest

from diversedit_jax import experiment as experiment_lib
from diversedit_jax.evaluation import picture_metrics

compiler_out_of_reach = config_changes.compiler_out_of_reach


def sweep(**changes):
  changes = {f'sweep.{key}': value for key, value in changes.items()}
  return experiment_lib.build(config_changes.changed(changes)).sweep


def test_a_sweep_is_every_scale_with_every_interval():
  options = sweep(guidance_scales=(1.0, 2.0), guidance_lows=(0.0, 0.6), guidance_highs=(0.5, 0.7))
  # The unguided setting once; [0.6, 0.5] is no interval.
  assert options.points() == [(1.0, 0.0, 1.0), (2.0, 0.0, 0.5), (2.0, 0.0, 0.7), (2.0, 0.6, 0.7)]
  assert sweep(guidance_scales=(1.0,)).points() == [(1.0, 0.0, 1.0)]


def test_the_metrics_get_their_options():
  changes = {'eval.batch_size': 3, 'eval.precision_recall': 'none', 'eval.kid_subsets': 5}
  options = experiment_lib.build(config_changes.changed(changes)).evaluation.metrics()
  assert options == picture_metrics.MetricOptions(
    batch_size=3, precision_recall='none', kid_subsets=5
  )


@pytest.mark.parametrize(
  'changes', [{}, {'eval.reference': 'x.npz', 'eval.precision_recall': 'none'}]
)
def test_two_samples_are_enough_without_precision_and_recall(changes):
  few = dict.fromkeys(('eval.number', 'eval.every_number', 'sweep.number'), 2)
  assert experiment_lib.build(config_changes.changed(changes | few)).evaluation.number == 2


def test_a_file_of_labels_is_looked_at_later():
  options = experiment_lib.build(
    config_changes.changed({'eval.labels': 'file:absent.npy'})
  ).evaluation
  assert options.labels == 'file:absent.npy'
