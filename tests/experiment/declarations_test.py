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
from diversedit_jax.methods import registry
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
      for part in (field.default_factory for field in dataclasses.fields(cls)):
        if part is not dataclasses.MISSING and isinstance(part(), options.Section):
          found |= dict.fromkeys(options.keys([type(part())]), type(part()))
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
      exif[274] = 6  # The orientation tag: a quarter turn.
    image = Image.fromarray(rng.integers(0, 256, (24, 40, 3), np.uint8))
    image.save(root / 'pictures' / f'{name}.jpg', exif=exif)
  (root / 'classes.txt').write_text('ant\nbee\ncat\n')
  np.savez(root / 'latents.npz', latents=np.zeros((4, 8, 8, 4), 'f4'), labels=np.arange(4))
  return root


# Another value of keys; with it, where needed, the setting in which the key means something. The
# options of a section reach its object together, so one is enough where nothing else is done.
MEANFLOW = {'method': 'meanflow', 'sampler.guidance_scale': 1.0}  # It is guided in training.
PICTURES = {'data.source': 'folder:pictures', 'data.size': 8, 'train.batch_size': 4}
LATENTS = {'data.source': 'synthetic:8x8x4:10', 'vae.weights': 'vae.npz'}
TOKENS = {'rae.encoder': 'pca', 'rae.patch': 4, 'model.patch_size': 1}

ALTERNATIVES = {
  'seed': 1,
  'method': 'flow',
  'init_from': 'weights.safetensors',
  'init.new': ('final/*', {'init_from': 'weights.safetensors'}),
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
  'rae.encoder': ('pca', {'rae.patch': 4, 'model.patch_size': 1}),
  'rae.weights': ('encoders', TOKENS),
  'rae.statistics': ('stat.pt', TOKENS),
  'rae.patch': (2, TOKENS),
  'rae.decoder': ('model.pt', TOKENS),
  'rae.pixels': ('unit', {**TOKENS, 'rae.decoder': 'model.pt'}),
  'model.size': ('S/2', {f'model.{k}': 0 for k in ('depth', 'width', 'heads', 'patch_size')}),
  'model.depth': 4,
  'model.width': 64,
  'model.heads': 2,
  'model.patch_size': 4,
  'model.mlp_ratio': 2.0,
  'model.qk_norm': True,
  'model.block': 'lightning',
  'model.norm': 'rms',
  'model.mlp': 'swiglu',
  'model.rope': True,
  'model.shift': False,
  'model.skip.enabled': False,
  'model.skip.placement': 'before',
  'model.skip.residual': True,
  'model.learn_sigma': True,
  'model.time_input': ('ddpm', {'interpolant.path': 'vp'}),
  'model.dtype': 'bfloat16',
  'model.residual_dtype': ('bfloat16', {'model.dtype': 'bfloat16'}),
  'model.attention': 'xla',
  'model.remat': 'full',
  'model.unroll': 2,
  'interpolant.path': 'cosine',
  'interpolant.prediction': ('noise', {'sampler.start': 0.999}),
  'interpolant.clamp': (0.1, {'interpolant.prediction': 'data'}),
  'interpolant.weighting': (
    'likelihood',
    {'interpolant.prediction': 'score', 'sampler.start': 0.999},
  ),
  'interpolant.time_law': 'stratified',
  'interpolant.time_mean': (0.5, {'interpolant.time_law': 'logit_normal'}),
  'interpolant.time_std': (0.5, {'interpolant.time_law': 'logit_normal'}),
  'interpolant.time_latest': 0.999,
  'interpolant.shift': 'auto',
  'interpolant.epsilon': 0.01,
  'diversity.lo': 0.2,
  'repa.hidden': (64, {'method': 'repa'}),
  'dispersive.block': (5, {'method': 'dispersive'}),
  'sra.t_max': (0.1, {'method': 'sra'}),
  'reg.class_weight': (0.1, {'method': 'reg'}),
  'meanflow.omega': (2.0, MEANFLOW),
  'train.label_dropout': 0.2,
  'optimizer.b2': 0.95,
  'mesh.fsdp': -1,
  'log.every': 7,
  'checkpoint.keep': 7,
  'preview.rows': 7,
  'sampler.steps': 7,
  'sample.seed': 7,
  'eval.kid_subsets': 7,
  'sweep.number': 7,
  'analysis.view': 'flatten',
  'plan.mfu': 0.5,
}


def test_every_section_has_an_alternative():
  sections = lambda keys: {key.partition('.')[0] for key in keys}
  assert sections(ALTERNATIVES) <= sections(KEYS)
  methods = set(registry.sections())
  assert sections(KEYS) - methods == sections(ALTERNATIVES) - methods


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
