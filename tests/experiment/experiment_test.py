"""What a config says becomes the parts of an experiment, which agree with each other."""

import dataclasses

from helpers import config_changes
import jax
import numpy as np
import pytest

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import interpolants, types
from diversedit_jax.data import latents, sources

compiler_out_of_reach = config_changes.compiler_out_of_reach
changed, refusal = config_changes.changed, config_changes.refusal


@pytest.mark.parametrize(
  ('method', 'terms'),
  [('flow', []), ('diverse', ['diverse']), ('flow+diverse', ['diverse'])],
)
def test_methods(method, terms):
  objective = experiment_lib.build(changed({'method': method})).objective
  assert [term.name for term in objective.terms] == terms


def test_size_agrees_with_equal_or_absent_numbers():
  by_name = {'model.size': 'S/2', 'model.depth': 0, 'model.width': 0, 'model.heads': 0}
  model = experiment_lib.build(changed(by_name)).model
  assert (model.depth, model.width, model.heads, model.patch_size) == (12, 384, 6, 2)
  assert experiment_lib.build(changed({**by_name, 'model.depth': 12})).model == model


def test_blocks_may_be_listed():
  (term,) = experiment_lib.build(changed({'diversity.layers': '0,2,5'})).objective.terms
  assert term.config.layers == (0, 2, 5)
  np.testing.assert_array_equal(term.config.select(6).selected_L, [1, 0, 1, 0, 0, 1])


def test_time_law_has_the_mean_the_deviation_and_the_path_of_the_config():
  law = experiment_lib.build(
    changed(
      {
        'interpolant.time_law': 'lognormal',
        'interpolant.path': 'cosine',
        'interpolant.time_mean': -0.4,
        'interpolant.time_std': 0.5,
      }
    )
  ).objective.flow.time_law
  expected = interpolants.TIME_LAWS['lognormal'](path='cosine', mean=-0.4, std=0.5, epsilon=0.0)
  assert law == expected


def test_everything_follows_the_path():
  """Training times keep its distance from the ends, and the sampler integrates the same path."""
  experiment = experiment_lib.build(changed({'interpolant.path': 'vp'}))
  assert experiment.path is interpolants.PATHS['vp']
  assert experiment.objective.flow.path is experiment.path
  assert experiment.objective.flow.time_law.epsilon == experiment.path.epsilon > 0
  assert experiment.sampler.path == 'vp'


def test_model_takes_its_shape_and_classes_from_the_data(tmp_path):
  np.savez(
    tmp_path / 'x.npz', latents=np.zeros((4, 6, 8, 3), np.float32), labels=np.array([0, 1, 4, 2])
  )
  source = f'arrays:{tmp_path}/x.npz'
  experiment = experiment_lib.build(changed({'data.source': source, 'train.batch_size': 4}))
  model = experiment.model
  assert (model.input_size, model.channels, model.num_classes) == ((6, 8), 3, 5)
  assert experiment.objective.flow.null_label == 5
  message = refusal(changed({'data.source': source, 'train.batch_size': 4, 'sample.labels': '5'}))
  assert 'class below 5' in message


def test_guidance_needs_classes(monkeypatch):
  """No file describes a source without classes yet, so one is made here."""
  whole = sources.open_source('digits')
  none = dataclasses.replace(whole, num_classes=0, labels=np.zeros_like(whole.labels))
  monkeypatch.setattr(sources, 'open_source', lambda *_, **__: none)
  message = refusal(changed({'sampler.guidance_scale': 1.5}))
  assert 'guidance_scale=1.5' in message and 'needs a network with classes' in message
  experiment = experiment_lib.build(changed({'sampler.guidance_scale': 1.0}))
  assert experiment.model.null_label is None and experiment.objective.flow.null_label is None


def test_devices_and_microbatches_divide_the_batch():
  mesh = jax.make_mesh((1, 1, 1), ('data', 'fsdp', 'tensor'))
  experiment = experiment_lib.build(changed({'train.batch_size': 64, 'train.accumulate': 4}))
  experiment_lib.check_devices(experiment, mesh)
  three = jax.sharding.AbstractMesh((3, 1, 1), ('data', 'fsdp', 'tensor'))
  with pytest.raises(types.UserError, match=r'batch_size=64 .* 3 devices .*accumulate=4'):
    experiment_lib.check_devices(experiment, three)


@pytest.mark.parametrize('scale', [0.5, (0.5, 2.0)], ids=['one', 'for each channel'])
def test_scale_of_latents_is_that_of_the_data_if_they_have_one(monkeypatch, scale):
  scaling = latents.Scaling(scale=scale, shift=0.25)
  source = config_changes.moments(scaling)
  monkeypatch.setattr(sources, 'open_source', lambda *_, **__: source)
  for stated in ({}, {'vae.shift': 0.25}):
    experiment = experiment_lib.build(changed({'vae.weights': 'x', **stated}))
    assert (experiment.vae.scale, experiment.vae.shift) == (scale, 0.25)
    assert experiment.objective.scaling == scaling


def test_scale_of_latents_is_the_configs_where_the_data_have_none():
  synthetic = {'data.source': 'synthetic:8x8x4:10', 'vae.weights': 'vae.npz'}
  options = experiment_lib.build(changed({**synthetic, 'vae.scale': 0.5, 'vae.shift': 1.5})).vae
  assert (options.scale, options.shift) == (0.5, 1.5)
  options = experiment_lib.build(changed(synthetic)).vae
  assert (options.scale, options.shift) == (None, None)  # What the file says.
