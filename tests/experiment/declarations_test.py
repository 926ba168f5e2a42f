"""Every key of a config: none is ignored, impossible numbers are refused, all are documented."""

import dataclasses
import hashlib
import math

from helpers import config_changes
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import options, types
from diversedit_jax.experiment import declarations
from diversedit_jax.models import config as model_config

compiler_out_of_reach = config_changes.compiler_out_of_reach
KEYS = declarations.keys()


# Numbers.


MODEL = dict(input_size=(8, 8), depth=2, width=8, heads=2, patch_size=2)


def makers():
  """The class that checks each key, by its whole name."""
  found = {}
  for classes in declarations.classes().values():
    for cls in classes:
      found |= dict.fromkeys(options.keys([cls]), cls)
  return found


def impossible(key):
  """Values of a numeric key that are no numbers, or lie just outside its bounds."""
  facts, whole = key.option, 'whole' in key.kind
  step = 1 if whole else 1e-9
  wrong = [math.nan, math.inf, -math.inf]
  for bound, outside in (
    (facts.at_least, -step),
    (facts.above, 0),
    (facts.at_most, step),
    (facts.below, 0),
  ):
    if bound is not None:
      wrong.append(bound + outside)
  return wrong


MAKERS, SECTIONS = makers(), [name for name in declarations.classes() if name]
NUMERIC = [name for name, key in KEYS.items() if 'number' in key.kind]


@pytest.mark.parametrize('name', NUMERIC)
def test_a_number_that_is_none_or_out_of_bounds_is_refused(name):
  key, cls, field = KEYS[name], MAKERS[name], name.rpartition('.')[2]
  others = MODEL if cls is model_config.Architecture else {}
  for value in impossible(key):
    # A tuple holds as many numbers as its default.
    given = (value,) * len(key.default or (1,)) if key.kind.endswith('numbers') else value
    with pytest.raises(types.UserError) as error:
      cls(**(others | {field: given}))
    assert str(error.value).startswith(f'{name} must be '), (value, str(error.value))


def test_these_numbers_are_among_them():
  """Infinite and undefined ones once passed."""
  once = ('meanflow.end', 'optimizer.clip_norm', 'optimizer.eps', 'optimizer.weight_decay')
  assert {*once, 'sra.t_max', 'train.steps', 'diversity.weights', 'vae.scale'} <= {*NUMERIC}


# None is ignored.


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """pictures/CLASS/N.jpg, four of 40x24, the second turned by a camera; and latents.npz."""
  root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
  for i, name in enumerate(('ant/0', 'ant/1', 'bee/2', 'bee/3')):
    (root / 'pictures' / name).parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    if i == 1:
      exif[274] = 6  # Of the tags the orientation: a quarter turn.
    image = Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8))
    image.save(root / 'pictures' / f'{name}.jpg', exif=exif)
  (root / 'classes.txt').write_text('ant\nbee\ncat\n')
  np.savez(root / 'latents.npz', latents=np.zeros((4, 8, 8, 4), 'f4'), labels=np.arange(4))
  return root


# Another value of every key; with it, where needed, the setting in which the key means something.
MEANFLOW = {'method': 'meanflow', 'sampler.guidance_scale': 1.0}  # It is guided in training.
# An encoder that has weights looks at colour pictures.
PRETRAINED = {
  'method': 'repa',
  'repa.pairs': 'dinov2-vit-s@2',
  'model.patch_size': 2,
  'data.source': 'synthetic:32x32x4+256x256x3:10',
}
PICTURES = {'data.source': 'folder:pictures', 'data.size': 8, 'train.batch_size': 4}
ENCODER = {'eval.encoder': 'dinov2-vit-l', 'eval.encoder_weights': 'folder'}
LATENTS = {'data.source': 'synthetic:8x8x4:10', 'vae.weights': 'vae.npz'}

ALTERNATIVES = {
  'seed': 1,
  'method': 'flow',
  'data.source': 'synthetic:8x8x1:10',
  'data.num_classes': (9, {'data.source': 'arrays:latents.npz', 'train.batch_size': 4}),
  'data.size': (16, PICTURES),
  'data.crop': ('center', PICTURES),
  'data.orientation': ('stored', PICTURES),
  'data.flip': True,
  'data.resident': 'host',
  'data.prefetch': 3,
  'data.threads': 3,
  'data.workers': (3, PICTURES),
  'data.classes': ('classes.txt', PICTURES),
  'data.space': 'pixels',
  'vae.weights': ('another.npz', LATENTS),
  'vae.scale': (0.5, LATENTS),
  'vae.shift': (0.5, LATENTS),
  'vae.dtype': ('bfloat16', LATENTS),
  'vae.tile': (32, LATENTS),
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
  'model.unroll': 2,
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
  'diversity.layers': '1,2,3',
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
  'optimizer.shard_over_data': True,
  'mesh.data': 1,
  'mesh.fsdp': -1,
  'mesh.tensor': -1,
  'log.every': 7,
  'log.telemetry_every': 7,
  'log.telemetry_examples': 7,
  'log.tensorboard': False,
  'log.profile_at': 7,
  'log.profile_steps': 7,
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
  'sample.matmul_precision': 'high',
  'eval.name': 'fid',
  'eval.reference': 'folder:pictures',
  'eval.number': 7,
  'eval.labels': 'random',
  'eval.quantiser': 'round_half',
  'eval.inception': 'random:1',
  'eval.encoder': ('dinov2-vit-b', {'eval.encoder': 'dinov2-vit-s', **ENCODER}),
  'eval.encoder_weights': ('another', ENCODER),
  'eval.encoder_reference': ('statistics.npz', ENCODER),
  'eval.batch_size': 7,
  'eval.precision_recall': 'none',
  'eval.kid_subsets': 7,
  'eval.keep_samples': False,
  'eval.every': 7,
  'eval.every_number': 7,
  'eval.best': 'class_consistency',
  'sweep.guidance_scales': (1.0, 3.0),
  'sweep.guidance_lows': (0.0, 0.1),
  'sweep.guidance_highs': (0.9,),
  'sweep.number': 7,
  'sweep.score': 'class_consistency',
  'analysis.examples': 7,
  'analysis.times': (0.2, 0.4),
  'analysis.view': 'flatten',
  'analysis.bandwidth': 0.5,
  'plan.compile_for': 'h200',
  'plan.devices': 2,
  'plan.peak_tflops': 1.0,
  'plan.mfu': 0.5,
}


def test_every_key_has_an_alternative():
  assert set(KEYS) == set(ALTERNATIVES)


# These are used up when the source is opened, so the source alone must show them.
OPENED = dict.fromkeys(('source', 'num_classes', 'classes', 'size', 'crop', 'orientation'))


def built(changes):
  """All parts of the experiment but the config itself, as text; a source by its facts."""
  experiment = experiment_lib.build(config_changes.changed(changes))
  source = experiment.source
  facts = (source.name, source.space, source.shape, source.num_classes, len(source))
  fields = {f.name: getattr(experiment, f.name) for f in dataclasses.fields(experiment)}
  data = dataclasses.asdict(experiment.data) | OPENED
  facts = (*facts, digest(source.gather(np.arange(4))))
  return repr(fields | {'config': None, 'data': data, 'source': facts})


def digest(batch):
  """SHA-256 of the arrays of a batch and their names."""
  hashed = hashlib.sha256()
  for name, array in sorted(batch.items()):
    hashed.update(f'{name} {array.dtype} {array.shape}'.encode() + array.tobytes())
  return hashed.hexdigest()


@pytest.mark.parametrize('key', ALTERNATIVES)
def test_no_key_is_ignored(folder, monkeypatch, key):
  monkeypatch.chdir(folder)
  alternative = ALTERNATIVES[key]
  with_setting = isinstance(alternative, tuple) and isinstance(alternative[-1], dict)
  value, setting = alternative if with_setting else (alternative, {})
  before = built({} if key == 'model.size' else setting)  # Without a size, the numbers are needed.
  assert built({**setting, key: value}) != before


# The whole.


def test_the_config_has_every_key_at_its_default():
  flat = {}
  for name, value in config_changes.leaves(declarations.defaults()):
    flat[name] = value
  assert flat == {name: key.default for name, key in KEYS.items()}


def test_an_unknown_key_or_section_is_refused_wherever_it_stands():
  for name in ('optimiser', 'model.skip.enable', 'sra.t_mx', *(f'{s}.zzz' for s in SECTIONS)):
    config = declarations.defaults()
    section, _, last = name.rpartition('.')
    with config.unlocked():
      config_changes.section_of(config, section)[last] = 1
    with pytest.raises(types.UserError, match=f'unknown key config.{name};'):
      declarations.values(config)


def test_the_document_says_every_key_and_what_a_config_sets():
  whole = declarations.document()
  assert all(f'- `{name}` = {key.default!r} (' in whole for name, key in KEYS.items())
  one = declarations.document('sra', config_changes.changed({}))
  assert '- `sra.student_block` = None, here 2 (' in one and 'optimizer.b2' not in one
  assert '- `sra.t_max` = 0.2 (a number; in [0, 1])' in one
  assert declarations.document('diverse') == declarations.document('diversity')  # Part, section.
  assert declarations.document('sra.t_max') in declarations.document('sra')
  assert ', here' not in declarations.document('', {})  # A missing key is its default.
  with pytest.raises(
    types.UserError, match="unknown section or key 'optim'; did you mean 'optimizer'"
  ):
    declarations.document('optim')
