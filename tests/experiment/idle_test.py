"""Keys of a command line that have no effect are named, and no others."""

import pytest

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.analysis import registry
from diversedit_jax.analysis import section as analysis
from diversedit_jax.experiment import idle

IDLE = [
  # (mode, key, value, reason)
  ('eval', 'sample.labels', '3', 'reads eval.labels'),
  ('eval', 'sample.number', 7, 'reads eval.number'),
  ('sample', 'eval.labels', '3', 'reads sample.labels'),
  ('sweep', 'sampler.guidance_scale', 1.5, 'reads sweep.guidance_scales'),
  ('sweep', 'eval.number', 70, 'reads sweep.number'),
  ('train', 'repa.weight', 0.7, 'method=flow does not read it'),
  ('train', 'meanflow.omega', 0.7, 'method=flow does not read it'),
  ('sample', 'vae.tile', 32, 'without vae.weights'),
  ('eval', 'eval.inception', 'a.pth', 'digits needs no network'),
  ('train', 'log.profile', '9001:9002', 'the run ends at step '),
  ('train', 'model.context.time', 2, 'model.conditioning=adaln'),
  ('analyze', 'analysis.against', 'runs/a', 'it is for analysis.parts=compare'),
  ('analyze', 'analysis.time_grid', (0.2, 0.4), 'it is for analysis.parts=times,variance'),
]
READ = [
  ('sample', 'sample.labels', '3'),
  ('eval', 'eval.labels', '3'),
  ('eval', 'sampler.guidance_scale', 1.5),
  ('sweep', 'sweep.number', 70),
  ('train', 'eval.number', 70),
  ('train', 'train.label_dropout', 0.2),
  ('train', 'log.profile', '9:9002'),
  ('analyze', 'analysis.probe_examples', 64),  # A part of the sheet.
  ('analyze', 'analysis.view', 'flatten'),
  ('eval', 'sample.number', 64),  # The default, which a script may repeat.
]


def told(mode, key, value, others=()):
  config = digits.get_config('method=flow,skips=False')
  for whole, given in [(key, value), *others]:
    config.update_from_flattened_dict({whole: given})
  return idle.remarks(experiment_lib.build(config), mode, [key])


@pytest.mark.parametrize(('mode', 'key', 'value', 'reason'), IDLE)
def test_keys_without_effect_are_named(mode, key, value, reason):
  (line,) = told(mode, key, value)
  assert line.startswith(f'--config.{key} has no effect: ') and reason in line


@pytest.mark.parametrize(('mode', 'key', 'value'), READ)
def test_keys_that_act_are_not(mode, key, value):
  assert told(mode, key, value) == []


def test_a_convolution_has_no_hidden_layer():
  for preset, count in (('irepa', 1), ('repa', 0)):
    config = digits.get_config('method=repa,skips=False')
    config.repa.preset = preset
    assert len(idle.remarks(experiment_lib.build(config), 'train', ['repa.hidden'])) == count


@pytest.mark.parametrize(('weight', 'count'), [(0.0, 1), (0.5, 0)])
def test_options_of_an_alignment_of_no_weight_are_told(weight, count):
  config = digits.get_config('method=selfflow,skips=False')
  config.selfflow.alignment_weight, config.selfflow.kind = weight, 'l2'
  found = idle.remarks(experiment_lib.build(config), 'train', ['selfflow.kind'])
  assert found == count * ['--config.selfflow.kind has no effect: selfflow.alignment_weight=0']


def test_a_decoders_keys_act_with_its_weights():
  others = [('vae.weights', 'vae.safetensors'), ('data.source', 'synthetic:8x8x4:10')]
  assert told('sample', 'vae.tile', 32, others) == []


def test_a_sweep_over_weights_does_not_read_those_of_samples():
  several = [('sweep.weights', ('ema', 'params'))]
  (line,) = told('sweep', 'sample.weights', 'params', several)
  assert 'sweep.weights says which' in line
  assert not told('sweep', 'sample.weights', 'params')


def test_a_schedule_acts_where_it_changes_a_weight_within_the_run():
  def of_diversity(text):
    config = digits.get_config('method=diverse,steps=100')
    config.diversity.schedule = text
    return idle.remarks(experiment_lib.build(config), 'train', ['diversity.schedule'])

  assert not of_diversity('stop:99') and not of_diversity('warmup:200')
  (line,) = of_diversity('stop:100')
  assert 'the run ends at step 100, before it changes anything' in line


def test_keys_of_parts_act_where_these_are_made():
  for parts in (('compare',), ('all',)):
    assert not told('analyze', 'analysis.against', 'runs/a', [('analysis.parts', parts)])
  for key, parts in analysis.PARTS_OF.items():
    assert hasattr(analysis.AnalysisConfig(), key) and set(parts) <= set(registry.PARTS)
