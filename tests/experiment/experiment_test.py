"""What a config says becomes the parts of an experiment, which agree or are refused by name.

What a single option may be is tested in options_test and declarations_test.
"""

import dataclasses

from helpers import config_changes
import jax
import numpy as np
import pytest

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import interpolants, options, types
from diversedit_jax.data import latents, sources
from diversedit_jax.experiment import declarations
from diversedit_jax.methods import base, registry
from diversedit_jax.models import config as model_config

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
  model = experiment_lib.build(changed(by_name)).architecture
  assert (model.depth, model.width, model.heads, model.patch_size) == (12, 384, 6, 2)
  assert experiment_lib.build(changed({**by_name, 'model.depth': 12})).architecture == model


def test_time_law_has_the_mean_the_deviation_and_the_path_of_the_config():
  law = experiment_lib.build(
    changed(
      {
        'interpolant.time_law': 'lognormal',
        'interpolant.path': 'cosine',
        'interpolant.time_mean': -0.4,
        'interpolant.time_std': 0.5,
        'interpolant.time_latest': 0.9,
      }
    )
  ).objective.flow.time_law
  expected = interpolants.TIME_LAWS['lognormal'](path='cosine', mean=-0.4, std=0.5, latest=0.9)
  assert law == expected


def test_everything_follows_the_path():
  """Training times keep its distance from the ends, and the sampler integrates the same path."""
  experiment = experiment_lib.build(changed({'interpolant.path': 'vp'}))
  assert experiment.path is interpolants.PATHS['vp']
  assert experiment.objective.flow.path is experiment.path
  assert experiment.objective.flow.time_law.epsilon == experiment.path.epsilon > 0
  assert experiment.sampler.path == 'vp'


@pytest.mark.parametrize(
  ('changes', 'of_training', 'of_sampler'),
  [
    ({}, 1.0, None),
    ({'interpolant.shift': 'auto'}, 0.125, 0.125),  # sqrt(8 * 8 * 1 / 4096).
    ({'interpolant.shift': 3.0}, 3.0, 3.0),
    ({'interpolant.shift': 3.0, 'sampler.shift': 1.0}, 3.0, 1.0),
    ({'sampler.shift': 2.0}, 1.0, 2.0),
    (
      {
        'interpolant.shift': 3.0,
        'sampler.kind': 'euler',
        'sampler.steps': 1,
        'sampler.times': (1.0, 0.0),
      },
      3.0,
      None,
    ),
  ],
)
def test_the_sampler_is_shifted_as_training_unless_it_says_otherwise(
  changes, of_training, of_sampler
):
  experiment = experiment_lib.build(changed(changes))
  assert experiment.objective.flow.time_law.shift == of_training
  assert experiment.sampler.shift == of_sampler


def test_model_takes_its_shape_and_classes_from_the_data(tmp_path):
  np.savez(
    tmp_path / 'x.npz', latents=np.zeros((4, 6, 8, 3), np.float32), labels=np.array([0, 1, 4, 2])
  )
  source = f'arrays:{tmp_path}/x.npz'
  experiment = experiment_lib.build(changed({'data.source': source, 'train.batch_size': 4}))
  model = experiment.architecture
  assert (model.input_size, model.channels, model.num_classes) == ((6, 8), 3, 5)
  assert experiment.objective.flow.null_label == 5
  message = refusal(changed({'data.source': source, 'train.batch_size': 4, 'sample.labels': '6'}))
  assert 'class from 0 to 4' in message


def test_guidance_needs_classes(monkeypatch):
  """No file describes a source without classes yet, so one is made here."""
  whole = sources.open_source('digits')
  none = dataclasses.replace(whole, num_classes=0, labels=np.zeros_like(whole.labels))
  monkeypatch.setattr(sources, 'open_source', lambda *_, **__: none)
  message = refusal(changed({'sampler.guidance_scale': 1.5}))
  assert 'guidance_scale=1.5' in message and 'needs a network with classes' in message
  experiment = experiment_lib.build(changed({'sampler.guidance_scale': 1.0}))
  assert experiment.architecture.null_label is None and experiment.objective.flow.null_label is None


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
  vae = experiment_lib.build(changed({**synthetic, 'vae.scale': 0.5, 'vae.shift': 1.5})).vae
  assert (vae.scale, vae.shift) == (0.5, 1.5)
  vae = experiment_lib.build(changed(synthetic)).vae
  assert (vae.scale, vae.shift) == (None, None)  # What the file says.


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'vae.scale': 0.18215}, 'vae.scale=0.18215, but store/small was made for 0.5'),
    ({'vae.shift': 0.0}, 'vae.shift=0.0, but store/small was made for 0.25'),
  ],
)
def test_another_scale_than_that_of_the_data_is_refused(monkeypatch, changes, message):
  source = config_changes.moments(latents.Scaling(scale=0.5, shift=0.25))
  monkeypatch.setattr(sources, 'open_source', lambda *_, **__: source)
  assert refusal(changed(changes)) == message


def test_a_missing_key_means_its_default():
  config = changed({})
  with config.unlocked():
    del config.meanflow, config.train.ema_decay, config.model.skip.placement
  experiment = experiment_lib.build(config)
  assert experiment.train.ema_decay == 0.9999
  assert experiment.architecture.skip == model_config.Skip(enabled=True, placement='after')


def test_a_new_method_is_one_registered_class(monkeypatch):
  """Its keys, their checks and their help follow from the declaration; nothing else is edited."""
  monkeypatch.setattr(registry, 'METHODS', dict(registry.METHODS))

  @registry.register('variance', not_with={'diverse': 'both spread the features'})
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Variance(base.Term):
    """A hinge on the deviation over the batch."""

    margin: float = options.option(1.0, above=0, doc='Least deviation.')
    recipe = {'optimizer.b2': 0.95}

    def loss(self, features, context):
      raise NotImplementedError

  config = digits.get_config('method=variance,skips=False')
  assert config.variance.to_dict() == {'schedule': 'constant', 'margin': 1.0}
  assert config.optimizer.b2 == 0.95
  config.variance.margin = 2.0
  assert experiment_lib.build(config).objective.terms == (Variance(margin=2.0),)
  assert '- `variance.margin` = 1.0 (a number; above 0)' in declarations.document()
  config.variance.margin = 0.0
  assert refusal(config) == 'variance.margin must be positive, got 0.0'
  with pytest.raises(types.UserError, match='variance does not go with diverse: both spread'):
    digits.get_config('method=diverse+variance')


LATENTS = {'data.source': 'synthetic:8x8x4:10'}
WITH_REFERENCE = {'eval.reference': 'x.npz'}
MEANFLOW = {'method': 'meanflow', 'sampler.guidance_scale': 1.0}

# Settings that contradict each other, the data or the model: changes -> what the message holds.
REFUSED = [
  # Averages.
  ({'train.averages': ('0.99', '0.990')}, ['train.averages', 'has 0.99 twice: leave it out']),
  ({'train.averages': ('0.995',)}, ['has 0.995, which train.ema_decay makes: leave it out']),
  ({'train.averages': ('std=0.05', 'x')}, ["train.averages has 'x', expected a decay as '0.999'"]),
  ({'sample.weights': 'emma'}, ["unknown sample.weights 'emma'; did you mean 'ema'"]),
  ({'sample.weights': 'ema@1'}, ["sample.weights has '1', expected a decay"]),
  ({'sweep.weights': ('ema@0.9', 'ema@0.90')}, ['sweep.weights must hold different weights']),
  ({'init.weights': 'emma', 'init_from': 'x'}, ["unknown init.weights 'emma'"]),
  # Methods.
  ({'method': 'sra', 'train.ema_decay': 0.0}, ['ema_decay=0', 'teacher would be the student']),
  ({'method': 'repa', 'repa.weight': 0.0}, ['repa.weight=0', 'leave repa out']),
  ({'method': 'repa', 'repa.pairs': 'pca@7'}, ['repa.pairs', 'block 7', '1 to 6']),
  ({'method': 'repa', 'repa.pairs': 'pac@3'}, ["no encoder 'pac'"]),
  ({'method': 'repa', 'repa.pairs': 'dinov2-vit-b@3'}, ['dinov2-vit-b', '8']),
  ({'method': 'reg', 'repa.pairs': 'pca@3,pca@4'}, ['class token is of one encoder']),
  ({'method': 'repa', **LATENTS}, ["method='repa' shows pixels", 'none beside its latents']),
  (
    {'method': 'reg', 'interpolant.prediction': 'noise', 'sampler.start': 0.999},
    ['method=reg compares velocities', "got 'noise'"],
  ),
  ({'method': 'dispersive', 'dispersive.block': 7}, ['dispersive.block', 'block 7', '1 to 6']),
  ({'method': 'dispersive', 'dispersive.groups': 5}, ['groups=5', '64 examples']),
  (
    {'method': 'dispersive', 'train.accumulate': 8},
    ["preset='paper' has groups of 16", '8 examples', 'set dispersive.groups'],
  ),
  ({'method': 'sra', 'sra.student_block': 5}, ['student_block=5', 'teacher_block=4']),
  ({'method': 'sra', 'sra.teacher_block': None}, ['nothing is published for depth 6']),
  ({**MEANFLOW, 'model.attention': 'cudnn'}, ["attention='cudnn'", 'forward-mode derivative']),
  ({'method': 'meanflow'}, ['guidance_scale=2.0', 'guided in training', 'guidance_scale=1']),
  ({**MEANFLOW, 'interpolant.path': 'cosine'}, ['path=linear', 'got cosine, velocity']),
  ({'diversity.layers': '1,7'}, ['block 7 is not one of 1 to 6']),
  ({'diversity.groups': 4, 'train.accumulate': 32}, ['groups=4', '2 examples of a microbatch']),
  ({'model.depth': 1, 'model.skip.enabled': False}, ['depth of at least 2', 'got 1']),
  # Interpolant and sampler.
  ({'interpolant.weighting': 'likelihood'}, ["weighting='likelihood'", 'a velocity has weight 1']),
  ({'interpolant.prediction': 'data', 'interpolant.path': 'vp'}, ["path='vp'", 'infinite']),
  ({'interpolant.prediction': 'data', 'interpolant.weighting': 'velocity'}, ['scored as']),
  ({'interpolant.clamp': 0.1}, ["clamp=0.1 is for prediction='data'", "got 'velocity'"]),
  ({'sampler.clamp': 0.05}, ["interpolant.prediction='data'", "got 'velocity'"]),
  ({**MEANFLOW, 'interpolant.prediction': 'data'}, ['prediction=velocity', 'got linear, data']),
  ({'interpolant.shift': 'atuo'}, ["interpolant.shift='atuo'", "'auto'"]),
  ({'interpolant.time_mean': -0.4}, ["time_law='uniform'", 'no mean', '-0.4', 'time_mean=0.0']),
  (
    {'interpolant.path': 'vp', 'interpolant.epsilon': 1e-7},
    ['interpolant.epsilon=1e-07', 'too small', "'vp' needs 1e-05"],
  ),
  ({'interpolant.prediction': 'noise'}, ["'noise' gives no velocity at t = 1", 'start=0.999']),
  ({'model.time_input': 'ddpm'}, ["time_input='ddpm'", 'path=vp', "'linear'"]),
  (
    {'sampler.kind': 'average_velocity', 'sampler.guidance_scale': 1.0},
    ["kind='average_velocity'", 'predicts averages', 'method=meanflow'],
  ),
  ({'sampler.class_token_scale': 2.0}, ['class_token_scale=2.0', 'method=reg', "'flow+diverse'"]),
  ({'sampler.guidance_low': 0.8, 'sampler.guidance_high': 0.7}, ['[0.8, 0.7]', 'low <= high']),
  ({'sampler.guidance_channels': 3}, ['guidance_channels=3', 'digits/train', '1 channels']),
  # Data and model.
  ({'data.source': 'arrays:absent.npz'}, ['absent.npz', 'no such file']),
  ({'data.workers': 2, 'data.resident': 'host'}, ['data.workers=2', "resident='host'"]),
  ({'data.workers': 2, 'data.threads': 2}, ['data.threads=2', 'data.workers=2']),
  ({'data.workers': 2}, ['data.workers=2', 'digits/train is in memory']),
  ({'data.size': 32}, ['data.size=32', 'digits/train', '8x8']),
  ({'data.crop': 'center'}, ["data.crop='center'", 'digits/train']),
  ({'data.space': 'latents'}, ["data.space='latents'", 'digits/train are pixels']),
  ({'data.num_classes': 9}, ['10 classes', '9']),
  ({'data.flip': True, **LATENTS}, ['data.flip=True', 'synthetic/8x8x4', 'store with --twins']),
  ({'vae.weights': 'vae.npz'}, ["vae.weights='vae.npz'", 'digits/train are pixels']),
  ({'vae.scale': 0.5, **LATENTS}, ['vae.scale=0.5 has no use', 'nothing is decoded']),
  ({'vae.tile': 1}, ['vae.tile', 'tiles overlap']),
  ({'model.size': 'S/2'}, ["size='S/2'", "{'depth': 6, 'width': 96, 'heads': 4}", 'contradict']),
  ({'model.depth': 0}, ['model.depth is 0; set it, or model.size']),
  ({'model.depth': 5}, ['even depth', 'model.depth=5']),
  ({'model.heads': 7}, ['model.heads=7', 'model.width=96']),
  ({'model.width': 6, 'model.heads': 1}, ['model.width=6', 'divisible by 4']),
  ({'model.patch_size': 3}, ['input size 8x8', 'model.patch_size=3']),
  ({'model.residual_dtype': 'bfloat16'}, ['residual_dtype=bfloat16 needs model.dtype=bfloat16']),
  # Training.
  ({'train.accumulate': 3}, ['train.batch_size=64', 'not divisible by train.accumulate=3']),
  ({'train.batch_size': 1443}, ['train.batch_size=1443', 'digits/train', '1442']),
  ({'optimizer.warmup_steps': 1200}, ['warmup_steps=1200', 'train.steps=1200']),
  ({'mesh.fsdp': 0}, ['mesh.fsdp', 'positive or -1', 'got 0']),
  # Samples and scores.
  ({'sample.labels': 'balance'}, ["sample.labels='balance'"]),
  ({'sample.labels': '11'}, ["sample.labels='11'", 'class from 0 to 9']),
  ({'eval.labels': '11'}, ["eval.labels='11'", 'class from 0 to 9']),
  *(({'eval.name': name}, [f"eval.name='{name}'", 'names a file']) for name in ('a/b', '{steps}')),
  ({'eval.number': 1}, ['eval.number must be at least 2, got 1']),
  ({'eval.every_number': 3, **WITH_REFERENCE}, ['eval.every_number must be at least 4']),
  ({'sweep.number': 3, **WITH_REFERENCE}, ['sweep.number must be at least 4', 'got 3']),
  ({'eval.every': 5, 'eval.reference': ''}, ['eval.every=5', 'needs eval.reference']),
  ({'eval.encoder': 'pca'}, ["eval.encoder='pca'", 'needs eval.encoder_weights']),
  ({'eval.encoder_weights': 'x'}, ["eval.encoder_weights='x'", 'is for eval.encoder']),
  ({'sweep.guidance_scales': ()}, ['sweep.guidance_scales', 'different numbers', 'got ()']),
  ({'sweep.guidance_lows': (0.8,), 'sweep.guidance_highs': (0.7,)}, ['(0.8,)', 'all above']),
  ({'analysis.times': ()}, ['analysis.times is empty']),
  ({'plan.compile_for': 'h300'}, ["'h300'", 'h200']),
  ({'plan.compile_for': 'h200:8', 'plan.devices': 2}, ['plan.devices=2', "'h200:8' has 8"]),
]


@pytest.mark.parametrize(('changes', 'fragments'), REFUSED, ids=lambda x: str(x)[:60])
def test_what_contradicts_the_rest_is_refused(changes, fragments):
  message = refusal(changed(changes))
  missing = [fragment for fragment in fragments if fragment not in message]
  assert not missing, message


def test_the_refusals_start_from_a_config_that_builds():
  """So that each refusal is of what was changed."""
  experiment_lib.build(changed({}))
