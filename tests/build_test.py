"""Every mistake in a config is refused by name before anything compiles; no key is ignored."""

import dataclasses

import jax
import numpy as np
import pytest

from configs import common, digits
from diversedit_jax import build, interpolants, types
from diversedit_jax.data import sources


@pytest.fixture(autouse=True)
def compiler_out_of_reach(monkeypatch):
  """`build` may trace and compile nothing, whether it accepts or refuses."""

  def refuse(*unused, **unused_too):
    raise AssertionError('build calls jax.jit')

  monkeypatch.setattr(jax, 'jit', refuse)


def section_of(config, name):
  """The part of a config at 'model.skip'; '' is the whole."""
  for part in filter(None, name.split('.')):
    config = config[part]
  return config


def dotted(*names):
  return '.'.join(filter(None, names))


def changed(changes):
  """The config of the digits, with values by flat key."""
  config = digits.get_config()
  for key, value in changes.items():
    section, _, last = key.rpartition('.')
    section_of(config, section)[last] = value
  return config


def refusal(config):
  with pytest.raises(types.UserError) as error:
    build.build(config)
  return str(error.value)


def leaves(section, prefix=''):
  for key in section:
    value = section[key]
    if hasattr(value, 'keys'):
      yield from leaves(value, f'{prefix}{key}.')
    else:
      yield prefix + key


# section -> (misspelt key, the key that was meant)
MISSPELT = {
  'repa': ('pair', 'pairs'),
  'dispersive': ('preest', 'preset'),
  'sra': ('t_mx', 't_max'),
  'reg': ('class_wieght', 'class_weight'),
  'meanflow': ('kapa', 'kappa'),
  '': ('optimiser', 'optimizer'),
  'data': ('sorce', 'source'),
  'model': ('depht', 'depth'),
  'model.skip': ('enable', 'enabled'),
  'interpolant': ('time_low', 'time_law'),
  'diversity': ('group', 'groups'),
  'train': ('batchsize', 'batch_size'),
  'optimizer': ('learning_rat', 'learning_rate'),
  'mesh': ('tensors', 'tensor'),
  'log': ('tensorbord', 'tensorboard'),
  'checkpoint': ('keep_evry', 'keep_every'),
  'preview': ('colums', 'columns'),
  'sampler': ('guidance_scael', 'guidance_scale'),
  'sample': ('weight', 'weights'),
  'eval': ('numbr', 'number'),
  'analysis': ('bandwith', 'bandwidth'),
  'plan': ('device', 'devices'),
}


def test_every_section_is_misspelt_below():
  base = common.base()
  sections = {key for key in base if hasattr(base[key], 'keys')}
  assert set(MISSPELT) == sections | {'', 'model.skip'}


@pytest.mark.parametrize(('section', 'keys'), MISSPELT.items())
def test_unknown_key_is_refused_with_the_nearest(section, keys):
  wrong, meant = keys
  config = digits.get_config()
  with config.unlocked():
    section_of(config, section)[wrong] = 1
  where = dotted('config', section, wrong)
  assert refusal(config) == f'unknown key {where}; did you mean {meant!r}?'


# Sections whose dataclass has the published value for a missing key, and their other keys.
WITH_DEFAULTS = {
  'model': ('size', 'skip', 'depth', 'width', 'heads', 'patch_size'),
  'diversity': (),
  'optimizer': (),
  'sampler': (),
}


@pytest.mark.parametrize('section', MISSPELT)
def test_missing_key_is_refused(section):
  whole = section_of(digits.get_config(), section)
  for key in WITH_DEFAULTS.get(section, list(whole)):
    config = digits.get_config()
    with config.unlocked():
      del section_of(config, section)[key]
    assert refusal(config) == f'{dotted("config", section)} lacks {key}'


# changes -> what the message must hold: the name, what was found, what was expected
REFUSED = [
  ({'seed': -1}, ['config.seed', 'at least 0', '-1']),
  ({'method': 'divers'}, ['method', "'divers'", "did you mean 'diverse'"]),
  ({'method': 'flow+flow'}, ["method 'flow+flow'", 'names a part twice']),
  ({'method': 'flow+diverse+diverse'}, ["method 'flow+diverse+diverse'", 'names a part twice']),
  ({'method': ''}, ['method', "''", 'known: dispersive, diverse, flow']),
  ({'method': 'reg+meanflow'}, ['reg and meanflow each make the forward pass', 'name one']),
  ({'method': 'flow+meanflow'}, ['flow and meanflow each make the forward pass']),
  ({'method': 'reg+repa'}, ['reg does not go with repa', 'class token too']),
  ({'method': 'meanflow+sra'}, ['meanflow does not go with sra', 'two times']),
  (
    {'method': 'sra', 'train.ema_decay': 0.0},
    ['ema_decay=0', "'sra'", 'teacher would be the student'],
  ),
  ({'method': 'repa', 'repa.weight': 0.0}, ['repa.weight=0', 'leave repa out']),
  ({'method': 'repa', 'repa.pairs': 'pca@7'}, ['repa.pairs', 'block 7', '1 to 6']),
  ({'method': 'repa', 'repa.pairs': 'pca'}, ["'pca' needs a block for depth 6: pca@BLOCK"]),
  ({'method': 'repa', 'repa.pairs': 'pca@²'}, ["'pca@²'", 'ENCODER@BLOCK']),
  ({'method': 'repa', 'repa.pairs': 'pca@x'}, ["'pca@x'", "'dinov2-vit-b@8'"]),
  ({'method': 'repa', 'repa.pairs': 'pca@3,pca@3'}, ["'pca@3,pca@3'", 'twice']),
  ({'method': 'repa', 'repa.pairs': 'pac@3'}, ["no encoder 'pac'", "did you mean 'pca'"]),
  ({'method': 'repa', 'repa.pairs': 'dinov2-vit-b@3'}, ['dinov2-vit-b', '8']),
  ({'method': 'reg', 'repa.pairs': 'pca@3,pca@4'}, ['class token is of one encoder']),
  (
    {'method': 'repa', 'data.source': 'synthetic:8x8x4:10'},
    ["method='repa' shows pixels", 'synthetic/8x8x4', 'none beside its latents'],
  ),
  ({'repa.weight': -1.0}, ['repa.weight', 'at least 0', '-1.0']),
  ({'repa.hidden': 0}, ['repa.hidden', 'at least 1', 'got 0']),
  ({'repa.dtype': 'float16'}, ['repa.dtype', "'float16'", "did you mean 'bfloat16'"]),
  ({'method': 'dispersive', 'dispersive.preset': 'papre'}, ["'papre'", "did you mean 'paper'"]),
  (
    {'method': 'dispersive', 'dispersive.kind': 'hing'},
    ['dispersive.kind', "'hing'", "did you mean 'hinge'"],
  ),
  (
    {'method': 'dispersive', 'dispersive.temperature': 0.0},
    ['dispersive.temperature must be positive', '0.0'],
  ),
  ({'dispersive.weight': -1.0}, ['dispersive.weight must be positive', '-1.0']),
  ({'dispersive.preset': 'papre'}, ['dispersive.preset', "did you mean 'paper'"]),
  (
    {'dispersive.kind': 'hinge', 'dispersive.temperature': 0.5},
    ['dispersive.temperature=0.5', 'infonce_l2 and infonce_cosine', "'hinge'"],
  ),
  ({'dispersive.margin': 0.5}, ['dispersive.margin=0.5', 'kind hinge', "'infonce_l2'"]),
  ({'method': 'dispersive', 'dispersive.block': 7}, ['dispersive.block', 'block 7', '1 to 6']),
  ({'method': 'dispersive', 'dispersive.groups': 5}, ['groups=5', '64 examples']),
  ({'method': 'dispersive', 'dispersive.groups': 64}, ['groups=64', 'one example', 'constant']),
  (
    {'method': 'dispersive', 'train.accumulate': 8},
    ["preset='paper' has groups of 16", '8 examples', 'set dispersive.groups'],
  ),
  ({'method': 'sra', 'sra.student_block': 5}, ['student_block=5', 'teacher_block=4', 'ahead']),
  ({'method': 'sra', 'sra.teacher_block': 9}, ['sra.teacher_block', 'block 9', '1 to 6']),
  (
    {'method': 'sra', 'sra.teacher_block': None},
    ['student_block and teacher_block for depth 6'],
  ),
  ({'method': 'sra', 'sra.kind': 'l3'}, ['sra.kind', "'l3'", 'smooth_l1']),
  ({'method': 'sra', 'sra.axis': 'tokens'}, ["sra.axis='tokens'", "kind='cosine'"]),
  ({'method': 'sra', 'sra.t_max': 1.5}, ['sra.t_max', '[0, 1]', '1.5']),
  ({'sra.weight': 0.0}, ['sra.weight must be positive', '0.0']),
  ({'sra.kind': 'l1', 'sra.beta': 0.1}, ['sra.beta=0.1', "kind='smooth_l1'", "'l1'"]),
  ({'reg.class_weight': -1.0}, ['reg.class_weight', 'at least 0', '-1.0']),
  ({'method': 'meanflow', 'meanflow.kappa': 1.0}, ['meanflow.kappa=1.0', '[0, 1)']),
  ({'method': 'meanflow', 'meanflow.omega': 0.0}, ['meanflow.omega=0.0', 'positive']),
  ({'method': 'meanflow', 'meanflow.start': 0.9, 'meanflow.end': 0.1}, ['interval [0.9, 0.1]']),
  (
    {'method': 'meanflow', 'model.attention': 'cudnn'},
    ["attention='cudnn'", 'forward-mode derivative', 'model.attention=xla'],
  ),
  (
    {'method': 'meanflow', 'sampler.guidance_scale': 2.0},
    ['guidance_scale=2.0', 'omega=1.0, kappa=0.5', 'guided in training'],
  ),
  ({'method': 'meanflow', 'meanflow.variant': 'imporved'}, ["did you mean 'improved'"]),
  ({'method': 'meanflow', 'meanflow.masks': 'same'}, ["'same'", 'independent']),
  ({'method': 'meanflow', 'meanflow.equal_fraction': 1.5}, ['equal_fraction=1.5', '[0, 1]']),
  ({'method': 'meanflow', 'interpolant.path': 'cosine'}, ['path=linear', 'got cosine, velocity']),
  (
    {'method': 'meanflow', 'sampler.kind': 'average_velocity', 'sampler.guidance_scale': 2.0},
    ['guidance_scale=2.0', 'guided in training', 'guidance_scale=1'],
  ),
  (
    {'sampler.kind': 'average_velocity', 'sampler.guidance_scale': 1.0},
    ["kind='average_velocity'", 'predicts averages', 'method=meanflow'],
  ),
  ({'interpolant.prediction': 'speed'}, ["'speed'", 'noise, score, velocity']),
  ({'interpolant.prediction': 'noise'}, ["'noise' gives no velocity at t = 1", 'start=0.999']),
  ({'interpolant.weighting': 'likelihood'}, ["weighting='likelihood'", 'a velocity has weight 1']),
  (
    {'interpolant.prediction': 'noise', 'interpolant.weighting': 'min-snr'},
    ['interpolant.weighting', "'min-snr'", 'likelihood'],
  ),
  ({'method': 'reg', 'interpolant.prediction': 'noise', 'sampler.start': 0.999}, ['method=reg']),
  ({'model.time_input': 'ddpm'}, ["time_input='ddpm'", 'path=vp', "'linear'"]),
  ({'model.time_input': 'steps'}, ['model.time_input', "'steps'", 'ddpm']),
  ({'sampler.start': 0.3}, ['sampler.start=0.3', '(0.5, 1]']),
  ({'sampler.times': (1.0, 0.5, 0.7, 0.0)}, ['sampler.times', 'falling times from start=1.0']),
  ({'sampler.times': (1.0, 0.5, 0.0)}, ['has 2 steps', 'sampler.steps=20']),
  (
    {'sampler.kind': 'euler_maruyama', 'sampler.steps': 2, 'sampler.times': (1.0, 0.5, 0.0)},
    ['sampler.times', 'the SDE has its own grid'],
  ),
  ({'sampler.class_token_scale': -1.0}, ['class_token_scale=-1.0', '>= 0']),
  (
    {'method': 'reg', 'sampler.guidance_scale': 1.0, 'sampler.class_token_scale': 2.0},
    ['class_token_scale=2.0', 'guidance_scale=1.0'],
  ),
  ({'train.accumulate': 3}, ['train.batch_size=64', 'not divisible by train.accumulate=3']),
  ({'sampler.class_token_scale': 2.0}, ['class_token_scale=2.0', 'method=reg', "'flow+diverse'"]),
  ({'data.source': 'digit'}, ["'digit'", "did you mean 'digits'"]),
  ({'data.source': 'arrays:absent.npz'}, ['absent.npz', 'no such file', 'expected an .npz']),
  ({'data.prefetch': 0}, ['data.prefetch', 'at least 1', 'got 0']),
  ({'model.size': 'S/3'}, ["model size 'S/3'", "did you mean 'S/8'"]),
  (
    {'model.size': 'S/2'},
    ["size='S/2'", "{'depth': 6, 'width': 96, 'heads': 4}", 'contradict', 'set size to ""'],
  ),
  ({'model.depth': 0}, ['model.depth', 'at least 1', 'got 0']),
  ({'model.depth': 5}, ['long skips', 'even depth', 'got 5']),
  ({'model.heads': 7}, ['7 heads', 'width 96']),
  ({'model.width': 6, 'model.heads': 1}, ['divisible by 4', 'got 6']),
  ({'model.patch_size': 3}, ['input size 8x8', 'patch size 3']),
  ({'model.mlp_ratio': 0.0}, ['model.mlp_ratio', 'positive', '0.0']),
  ({'model.unroll': 0}, ['model.unroll', 'at least 1', 'got 0']),
  ({'model.dtype': 'bfloat'}, ['model.dtype', "'bfloat'", "did you mean 'bfloat16'"]),
  ({'model.residual_dtype': 'float'}, ['model.residual_dtype', "'float'", "'float32'"]),
  ({'model.attention': 'xlaa'}, ['attention', "'xlaa'", "did you mean 'xla'"]),
  ({'model.remat': 'ful'}, ['model.remat', "'ful'", "did you mean 'full'"]),
  ({'model.skip.placement': 'aftr'}, ['model.skip.placement', "'aftr'", "did you mean 'after'"]),
  ({'interpolant.path': 'liner'}, ['interpolant.path', "'liner'", "did you mean 'linear'"]),
  ({'interpolant.time_law': 'unifrom'}, ['time_law', "'unifrom'", "did you mean 'uniform'"]),
  ({'interpolant.time_mean': -0.4}, ["time_law='uniform'", 'no mean', '-0.4', 'time_mean=0.0']),
  ({'interpolant.time_std': 2.0}, ["time_law='uniform'", 'deviation', '2.0', 'time_std=1.0']),
  (
    {'interpolant.time_law': 'stratified', 'interpolant.time_mean': 1.0},
    ["time_law='stratified'", 'no mean'],
  ),
  (
    {'interpolant.time_law': 'lognormal', 'interpolant.time_std': 0.0},
    ['std', '0.0', 'positive standard deviation'],
  ),
  (
    {'interpolant.path': 'vp', 'interpolant.epsilon': 1e-7},
    ['interpolant.epsilon=1e-07', 'too small', "'vp' needs 1e-05"],
  ),
  ({'interpolant.epsilon': 0.5}, ['epsilon=0.5', '< 0.5']),
  ({'diversity.layers': 'some'}, ["layers is 'some'", "'all', 'random', 'authors'", "'0,2'"]),
  ({'diversity.layers': '2'}, ['layers are (2,)', 'at least two']),
  ({'diversity.layers': '0,6'}, ['(0, 6)', 'from 0 to 5']),
  ({'diversity.num_layers': 3}, ['num_layers=3', "layers='random'"]),
  (
    {'diversity.layers': 'random', 'diversity.num_layers': 7},
    ['7 random layers', 'from 2 to depth=6'],
  ),
  ({'diversity.encoder_depth': 3}, ['encoder_depth=3', "layers='authors'"]),
  ({'diversity.dispersion_layers': 'none'}, ["dispersion_layers='none'", "'selected', 'all'"]),
  ({'diversity.mi': 'sign'}, ["mi is 'sign'", "'signed', 'absolute'"]),
  ({'diversity.dispersion': 'papr'}, ["dispersion is 'papr'", "'paper', 'code'"]),
  ({'diversity.usage': 'sign'}, ["usage is 'sign'", "'absolute', 'signed'"]),
  ({'diversity.weights': (0.5, 0.5)}, ['weights are (0.5, 0.5)', 'three']),
  ({'diversity.groups': 3}, ['diversity.groups=3', '64 examples']),
  ({'diversity.groups': 4, 'train.accumulate': 32}, ['groups=4', '2 examples of a microbatch']),
  ({'diversity.lo': 0.5}, ['lo=0.5, hi=0.5', '0 <= lo < hi']),
  ({'model.depth': 1, 'model.skip.enabled': False}, ['depth of at least 2', 'got 1']),
  ({'train.steps': 0}, ['train.steps', 'at least 1', 'got 0']),
  ({'train.batch_size': 1443}, ['train.batch_size=1443', 'digits/train', '1442']),
  ({'train.accumulate': 0}, ['train.accumulate', 'at least 1', 'got 0']),
  ({'train.label_dropout': 1.0}, ['train.label_dropout', '[0, 1)', '1.0']),
  ({'train.ema_decay': 1.0}, ['train.ema_decay', '[0, 1)', '1.0']),
  ({'optimizer.learning_rate': -1.0}, ['optimizer.learning_rate', 'negative', '-1.0']),
  ({'optimizer.b2': 1.0}, ['optimizer.b2', '[0, 1)', '1.0']),
  ({'optimizer.schedule': 'cosin'}, ['optimizer.schedule', "'cosin'", "did you mean 'cosine'"]),
  ({'optimizer.warmup_steps': 1200}, ['warmup_steps=1200', 'train.steps=1200']),
  ({'mesh.fsdp': 0}, ['mesh.fsdp', 'positive or -1', 'got 0']),
  ({'log.every': 0}, ['log.every', 'at least 1', 'got 0']),
  ({'log.telemetry_every': -1}, ['log.telemetry_every', 'at least 0', '-1']),
  ({'log.telemetry_examples': 0}, ['log.telemetry_examples', 'at least 1', 'got 0']),
  ({'checkpoint.every': 0}, ['checkpoint.every', 'at least 1', 'got 0']),
  ({'checkpoint.keep': 0}, ['checkpoint.keep', 'at least 1', 'got 0']),
  ({'checkpoint.keep_every': -1}, ['checkpoint.keep_every', 'at least 0', '-1']),
  ({'preview.every': -1}, ['preview.every', 'at least 0', '-1']),
  ({'preview.rows': 0}, ['preview.rows', 'at least 1', 'got 0']),
  ({'preview.columns': 0}, ['preview.columns', 'at least 1', 'got 0']),
  ({'sampler.kind': 'hein'}, ['sampler.kind', "'hein'", "did you mean 'heun'"]),
  ({'sampler.steps': 0}, ['heun', 'steps=0', 'at least 1']),
  ({'sampler.diffusion': 'sigm'}, ['diffusion', "'sigm'", "did you mean 'sigma'"]),
  ({'sampler.last_step': 1.0}, ['last_step=1.0', 'between 0 and 1']),
  ({'sampler.guidance_scale': -1.0}, ['guidance scale', '-1.0', '>= 0']),
  ({'sampler.guidance_low': 0.8, 'sampler.guidance_high': 0.7}, ['[0.8, 0.7]', 'low <= high']),
  ({'sampler.guidance_channels': 3}, ['guidance_channels=3', 'digits/train', '1 channels']),
  ({'sample.seed': -1}, ['sample.seed', 'at least 0', '-1']),
  ({'sample.batch_size': 0}, ['sample.batch_size', 'at least 1', 'got 0']),
  ({'sample.weights': 'em'}, ['sample.weights', "'em'", "did you mean 'ema'"]),
  ({'sample.number': 0}, ['sample.number', 'at least 1', 'got 0']),
  ({'sample.labels': 'balance'}, ["sample.labels='balance'", "'balanced', 'random'"]),
  ({'sample.labels': '10'}, ["sample.labels='10'", 'class below 10']),
  ({'eval.name': 'digit'}, ['eval.name', "'digit'", "did you mean 'digits'"]),
  ({'eval.number': 1}, ['eval.number', 'at least 2', 'got 1']),
  ({'analysis.view': 'men'}, ['view', "'men'", "did you mean 'mean'"]),
  ({'analysis.examples': 3}, ['at least 4 examples', 'examples=3']),
  ({'analysis.times': (0.5, 1.5)}, ['times in [0, 1]', '(0.5, 1.5)']),
  ({'analysis.bandwidth': 0.0}, ['bandwidth', '> 0', '0.0']),
  ({'plan.devices': 0}, ['devices >= 1', 'devices=0']),
  ({'plan.mfu': 1.5}, ['mfu <= 1', 'mfu=1.5']),
]


@pytest.mark.parametrize(('changes', 'fragments'), REFUSED, ids=lambda x: str(x)[:60])
def test_impossible_value_is_refused(changes, fragments):
  message = refusal(changed(changes))
  missing = [fragment for fragment in fragments if fragment not in message]
  assert not missing, message


def test_the_table_of_refusals_starts_from_a_config_that_builds():
  """So that each refusal is of what was changed."""
  build.build(digits.get_config())


@pytest.mark.parametrize(
  ('method', 'terms'),
  [('flow', []), ('diverse', ['diverse']), ('flow+diverse', ['diverse'])],
)
def test_methods(method, terms):
  objective = build.build(changed({'method': method})).objective
  assert [term.name for term in objective.terms] == terms


def test_size_agrees_with_equal_or_absent_numbers():
  by_name = {'model.size': 'S/2', 'model.depth': 0, 'model.width': 0, 'model.heads': 0}
  model = build.build(changed(by_name)).model
  assert (model.depth, model.width, model.heads, model.patch_size) == (12, 384, 6, 2)
  assert build.build(changed({**by_name, 'model.depth': 12})).model == model


def test_blocks_may_be_listed():
  (term,) = build.build(changed({'diversity.layers': '0,2,5'})).objective.terms
  assert term.config.layers == (0, 2, 5)
  np.testing.assert_array_equal(term.config.select(6).selected_L, [1, 0, 1, 0, 0, 1])


def test_time_law_has_the_mean_the_deviation_and_the_path_of_the_config():
  law = build.build(
    changed(
      {'interpolant.time_law': 'lognormal', 'interpolant.path': 'cosine',
       'interpolant.time_mean': -0.4, 'interpolant.time_std': 0.5}
    )
  ).objective.flow.time_law  # fmt: skip
  expected = interpolants.TIME_LAWS['lognormal'](path='cosine', mean=-0.4, std=0.5, epsilon=0.0)
  assert law == expected


def test_everything_follows_the_path():
  """Training times keep its distance from the ends, and the sampler integrates the same path."""
  experiment = build.build(changed({'interpolant.path': 'vp'}))
  assert experiment.path is interpolants.PATHS['vp']
  assert experiment.objective.flow.path is experiment.path
  assert experiment.objective.flow.time_law.epsilon == experiment.path.epsilon > 0
  assert experiment.sampler.path == 'vp'


def test_model_takes_its_shape_and_classes_from_the_data(tmp_path):
  np.savez(
    tmp_path / 'x.npz', latents=np.zeros((4, 6, 8, 3), np.float32), labels=np.array([0, 1, 4, 2])
  )
  source = f'arrays:{tmp_path}/x.npz'
  experiment = build.build(changed({'data.source': source, 'train.batch_size': 4}))
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
  experiment = build.build(changed({'sampler.guidance_scale': 1.0}))
  assert experiment.model.null_label is None and experiment.objective.flow.null_label is None


def test_devices_and_microbatches_divide_the_batch():
  mesh = jax.make_mesh((1, 1, 1), ('data', 'fsdp', 'tensor'))
  experiment = build.build(changed({'train.batch_size': 64, 'train.accumulate': 4}))
  build.check_devices(experiment, mesh)
  three = jax.sharding.AbstractMesh((3, 1, 1), ('data', 'fsdp', 'tensor'))
  with pytest.raises(types.UserError, match=r'batch_size=64 .* 3 devices .*accumulate=4'):
    build.check_devices(experiment, three)


# Another value of every key; with it, where needed, the setting in which the key means something.
MEANFLOW = {'method': 'meanflow', 'sampler.guidance_scale': 1.0}  # It is guided in training.
# An encoder that has weights looks at colour pictures.
PRETRAINED = {
  'method': 'repa', 'repa.pairs': 'dinov2-vit-s@2', 'model.patch_size': 2,
  'data.source': 'synthetic:32x32x4+256x256x3:10',
}  # fmt: skip

ALTERNATIVES = {
  'seed': 1,
  'method': 'flow',
  'data.source': 'synthetic:8x8x1:10',
  'data.prefetch': 3,
  'model.size': ('S/2', {f'model.{k}': 0 for k in ('depth', 'width', 'heads', 'patch_size')}),
  'model.depth': 4,
  'model.width': 64,
  'model.heads': 2,
  'model.patch_size': 4,
  'model.mlp_ratio': 2.0,
  'model.qk_norm': True,
  'model.skip.enabled': False,
  'model.skip.placement': 'before',
  'model.learn_sigma': True,
  'model.time_input': ('ddpm', {'interpolant.path': 'vp'}),
  'model.dtype': 'bfloat16',
  'model.residual_dtype': ('bfloat16', {'model.dtype': 'bfloat16'}),
  'model.attention': 'xla',
  'model.remat': 'full',
  'model.unroll': 1,
  'interpolant.path': 'cosine',
  'interpolant.prediction': ('noise', {'sampler.start': 0.999}),
  'interpolant.weighting': (
    'likelihood',
    {'interpolant.prediction': 'score', 'sampler.start': 0.999},
  ),
  'interpolant.time_law': 'stratified',
  'interpolant.time_mean': (0.5, {'interpolant.time_law': 'logit_normal'}),
  'interpolant.time_std': (0.5, {'interpolant.time_law': 'logit_normal'}),
  'interpolant.epsilon': 0.01,
  'diversity.layers': '0,1,2',
  'diversity.num_layers': (3, {'diversity.layers': 'random', 'model.depth': 10}),
  'diversity.encoder_depth': (8, {'diversity.layers': 'authors'}),
  'diversity.dispersion_layers': 'all',
  'diversity.mi': 'absolute',
  'diversity.dispersion': 'code',
  'diversity.usage': 'signed',
  'diversity.weights': (0.5, 0.25, 0.25),
  'diversity.groups': 2,
  'diversity.adaptive': False,
  'diversity.lo': 0.2,
  'diversity.hi': 0.7,
  'diversity.stop_gradient_weight': True,
  'repa.pairs': ('pca@2,pca@4', {'method': 'repa'}),
  'repa.weight': (0.25, {'method': 'repa'}),
  'repa.hidden': (64, {'method': 'repa'}),
  'repa.weights': ('folder', PRETRAINED),
  'repa.dtype': ('bfloat16', PRETRAINED),
  'dispersive.preset': ('release', {'method': 'dispersive'}),
  'dispersive.kind': ('hinge', {'method': 'dispersive'}),
  'dispersive.block': (5, {'method': 'dispersive'}),
  'dispersive.temperature': (0.7, {'method': 'dispersive'}),
  'dispersive.margin': (0.5, {'method': 'dispersive', 'dispersive.kind': 'hinge'}),
  'dispersive.weight': (0.7, {'method': 'dispersive'}),
  'dispersive.groups': (2, {'method': 'dispersive'}),
  'sra.student_block': (1, {'method': 'sra'}),
  'sra.teacher_block': (5, {'method': 'sra'}),
  'sra.kind': ('l1', {'method': 'sra'}),
  'sra.axis': ('tokens', {'method': 'sra', 'sra.kind': 'cosine'}),
  'sra.beta': (0.1, {'method': 'sra'}),
  'sra.t_max': (0.1, {'method': 'sra'}),
  'sra.weight': (0.1, {'method': 'sra'}),
  'sra.decay_after': (9.0, {'method': 'sra'}),
  'sra.decay_epochs': (0.0, {'method': 'sra'}),
  'reg.class_weight': (0.1, {'method': 'reg'}),
  'meanflow.variant': ('improved', MEANFLOW),
  'meanflow.equal_fraction': (0.25, MEANFLOW),
  'meanflow.omega': (2.0, MEANFLOW),
  'meanflow.kappa': (0.25, MEANFLOW),
  'meanflow.start': (0.25, MEANFLOW),
  'meanflow.end': (0.75, MEANFLOW),
  'meanflow.power': (0.5, MEANFLOW),
  'meanflow.constant': (0.1, MEANFLOW),
  'meanflow.masks': ('correlated', MEANFLOW),
  'train.steps': 999,
  'train.batch_size': 32,
  'train.accumulate': 2,
  'train.label_dropout': 0.2,
  'train.ema_decay': 0.9,
  'optimizer.learning_rate': 2e-3,
  'optimizer.b1': 0.8,
  'optimizer.b2': 0.95,
  'optimizer.eps': 1e-6,
  'optimizer.weight_decay': 0.1,
  'optimizer.clip_norm': 0.0,
  'optimizer.warmup_steps': 7,
  'optimizer.schedule': 'constant',
  'mesh.data': 1,
  'mesh.fsdp': -1,
  'mesh.tensor': -1,
  'data.num_classes': 10,
  'log.every': 7,
  'log.telemetry_every': 7,
  'log.telemetry_examples': 7,
  'log.tensorboard': False,
  'checkpoint.every': 7,
  'checkpoint.keep': 7,
  'checkpoint.keep_every': 7,
  'preview.every': 7,
  'preview.rows': 7,
  'preview.columns': 7,
  'sampler.kind': 'euler',
  'sampler.steps': 7,
  'sampler.times': ((1.0, 0.5, 0.0), {'sampler.steps': 2}),
  'sampler.start': 0.9,
  'sampler.class_token_scale': (3.0, {'method': 'reg'}),
  'sampler.diffusion': ('sigma', {'sampler.kind': 'euler_maruyama'}),
  'sampler.last_step': (0.1, {'sampler.kind': 'euler_maruyama'}),
  'sampler.guidance_scale': 3.0,
  'sampler.guidance_low': 0.1,
  'sampler.guidance_high': 0.9,
  'sampler.guidance_channels': 1,
  'sample.seed': 7,
  'sample.batch_size': 7,
  'sample.weights': 'params',
  'sample.number': 7,
  'sample.labels': 'random',
  'eval.name': None,  # 'digits' is the only one yet.
  'eval.number': 7,
  'analysis.examples': 7,
  'analysis.times': (0.2, 0.4),
  'analysis.view': 'flatten',
  'analysis.bandwidth': 0.5,
  'plan.devices': 2,
  'plan.peak_tflops': 1.0,
  'plan.mfu': 0.5,
}


def test_every_key_has_an_alternative():
  assert set(leaves(common.base())) == set(ALTERNATIVES)


def built(changes):
  """All parts of the experiment but the config itself, as text; a source by its facts."""
  experiment = build.build(changed(changes))
  source = experiment.source
  facts = (source.name, source.space, source.shape, source.num_classes, len(source))
  fields = {f.name: getattr(experiment, f.name) for f in dataclasses.fields(experiment)}
  return repr(fields | {'config': None, 'source': facts})


@pytest.mark.parametrize('key', [k for k, v in ALTERNATIVES.items() if v is not None])
def test_no_key_is_ignored(key):
  alternative = ALTERNATIVES[key]
  with_setting = isinstance(alternative, tuple) and isinstance(alternative[-1], dict)
  value, setting = alternative if with_setting else (alternative, {})
  before = built({} if key == 'model.size' else setting)  # Without a size, the numbers are needed.
  assert built({**setting, key: value}) != before
