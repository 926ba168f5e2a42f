"""The experiments in configs/: all build, each method's step traces, numbers are the papers'."""

import importlib
import pathlib
import re

from helpers import command_server, published
import jax
import numpy as np
from PIL import Image
import pytest

from configs import common, imagenet, paper, zoo
from diversedit_jax import rng, sharding, trees, types
from diversedit_jax.data import sources
from diversedit_jax.experiment import declarations
from diversedit_jax.methods import registry
from diversedit_jax.modes import listing
from diversedit_jax.training import state, step

ROOT = pathlib.Path(__file__).parents[1]
SHARED = ('__init__', 'common', 'imagenet')
NAMES = sorted(p.stem for p in (ROOT / 'configs').glob('*.py') if p.stem not in SHARED)
IMAGENET = ('s256', 'b256', 'l256', 'xl256', 'b512', 'l512', 'xl512')
# Beside the rows of paper.py and zoo.py, which have no config without a row.
VARIANTS = {
  'digits': ['', 'method=flow,skips=False', 'method=repa+diverse', 'method=sra+dispersive'],
  'xl256': [
    '',
    'method=flow,skips=False',
    'skips',
    'size=B/4,guidance=1.35,steps=10',
    'method=reg+diverse',
    'data=synthetic:16x16x4:10',
  ],
  'b256': ['', 'size=B/8', 'size=M/2,method=meanflow', 'method=repa+dispersive+sra'],
  's256': ['', 'method=repa', 'method=meanflow'],
  'b512': ['', 'method=sra', 'method=reg', 'method=meanflow+dispersive'],
  'paper': [row.name for row in paper.ROWS],
  'zoo': [row.name for row in zoo.ROWS],
  # Its own data are not in the package; 'pictures' is a folder that a fixture makes.
  'cifar10': ['data=folder:pictures', 'data=folder:pictures,method=flow'],
}
CASES = [(name, arg) for name in NAMES for arg in VARIANTS.get(name, [''])]


def kinds():
  """A case of each config file and of each method with or without long residual connections."""
  found, files = {}, set()
  for name, arg in CASES:
    config = published.config_of(name, arg)
    key = f'{"+".join(registry.parse(config.method))}{" skips" * config.model.skip.enabled}'
    if key not in found or name not in files:
      found.setdefault(key if key not in found else f'{key} {name}', (name, arg))
      files.add(name)
  return [pytest.param(*case, id=key) for key, case in found.items()]


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
  """A folder with 'pictures', 13 of 32x32 in each of ten classes."""
  root, rng = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
  for i in range(130):
    path = root / 'pictures' / f'class{i % 10}' / f'{i:03d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path, compress_level=0)
  return root


# Terms that a flow brings.
BROUGHT = {('repa', 'reg'), ('sra', 'selfflow')}


@pytest.mark.parametrize(('name', 'arg'), kinds())
def test_step_traces(pictures, monkeypatch, name, arg):
  monkeypatch.chdir(pictures)
  experiment = published.built(name, arg)
  tx, key = experiment.transformation(), jax.random.key(0)
  trainable = state.Trainable(experiment.network, tx, sharding.make_mesh())
  step_fn = step.make_step(
    experiment.objective,
    trainable.graphdef,
    tx,
    key=rng.stream(key, 'train'),
    ema_decay=experiment.train.ema_decay,
    learning_rate=experiment.schedule(),
    accumulate=experiment.train.accumulate,
    fixed=trainable.fixed,
  )
  n, source = experiment.train.batch_size, experiment.source
  one = source.gather(np.arange(1))
  batch = {name: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype) for name, x in one.items()}
  if source.tokenizer:  # Which makes latents in the step.
    assert batch['pixels'].shape == (n, *source.pixel_shape)
  else:
    assert batch[sources.KEYS[source.space]].shape == (n, *source.shape)
  frozen = {encoder.name: encoder.params for encoder in experiment.objective.encoders}
  before = jax.eval_shape(trainable.init, key)
  after, metrics = jax.eval_shape(step_fn, before, batch, frozen)
  assert jax.tree.structure(after) == jax.tree.structure(before)
  jax.tree.map(
    lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype) or pytest.fail(), after, before
  )
  assert {'loss', 'velocity', 'grad_norm'} <= set(metrics)
  parts = experiment.config.method.split('+')
  for term in ('diverse', 'repa', 'dispersive', 'sra'):
    used = term in parts or (term, *({'reg', 'selfflow'} & {*parts})) in BROUGHT
    assert (f'{term}/loss' in metrics) == used, term


# omega, kappa, start, end.
MEANFLOW_GUIDANCE = {
  'B/2': (1.0, 0.5, 0.0, 1.0),
  'B/4': (1.0, 0.5, 0.0, 1.0),
  'M/2': (1.0, 0.5, 0.0, 1.0),
  'L/2': (0.2, 0.92, 0.0, 0.8),
  'XL/2': (0.2, 0.92, 0.0, 0.75),
}


@pytest.mark.parametrize('name', IMAGENET)
@pytest.mark.parametrize('method', ['flow', 'flow+diverse', 'repa+diverse', 'meanflow+diverse'])
def test_recipe(name, method):
  experiment = published.built(name, f'method={method}')
  expected = published.RECIPE | (published.MEANFLOW if 'meanflow' in method else {})
  assert published.found(experiment, expected) == expected
  size, resolution = name[:-3], int(name[-3:])
  model = experiment.architecture
  assert (model.depth, model.width, model.heads, model.patch_size) == published.SHAPES[size]
  assert (model.skip.enabled) == ('diverse' in method)
  assert experiment.source.shape == {256: (32, 32, 4), 512: (64, 64, 4)}[resolution]
  assert (experiment.data.size, experiment.data.space) == (resolution, 'latents')
  assert model.sequence == {256: 256, 512: 1024}[resolution]
  assert experiment.train.steps == 400_000
  if 'repa' in method:
    repa = published.term(experiment, 'repa')
    (pair,) = repa.aligned
    block = {'s': 5, 'b': 5, 'l': 8, 'xl': 8}[size]
    assert (pair.encoder, pair.block, pair.width) == ('dinov2-vit-b', block, 768)
    assert (repa.weight, repa.hidden) == (0.5, 2048)
    assert experiment.source.pixel_shape == (resolution, resolution, 3)
  else:
    assert experiment.source.pixel_shape is None
  if 'diverse' in method:
    diverse = published.term(experiment, 'diverse')
    assert (diverse.layers, diverse.lo, diverse.hi, diverse.adaptive) == ('all', 0.1, 0.5, True)
    assert diverse.weights == (0.33, 0.33, 0.33) and diverse.groups == 1


@pytest.mark.parametrize(('size', 'values'), MEANFLOW_GUIDANCE.items())
def test_meanflow_guides_by_size(size, values):
  for name in ('b256', 'xl512'):
    flow = published.built(name, f'method=meanflow,size={size}').objective.flow
    assert (flow.omega, flow.kappa, flow.start, flow.end) == values


@pytest.mark.parametrize(
  ('name', 'student', 'teacher', 'after', 'epochs'),
  [('b256', 4, 8, 149, 1000), ('xl256', 8, 20, 149, 1000), ('xl512', 8, 20, 99, 800)],
)
def test_sra(name, student, teacher, after, epochs):
  sra = published.term(published.built(name, 'method=sra'), 'sra')
  assert (sra.student_block, sra.teacher_block) == (student, teacher)
  assert (sra.decay_after, sra.decay_epochs) == (after, epochs)
  assert (sra.kind, sra.beta, sra.t_max, sra.weight) == ('smooth_l1', None, 0.2, 0.2)
  assert sra.steps_per_epoch == 5004


@pytest.mark.parametrize(('name', 'block'), [('b256', 3), ('l512', 6), ('xl256', 7)])
def test_dispersive(name, block):
  loss = published.term(published.built(name, 'method=dispersive'), 'dispersive')
  assert (loss.preset, loss.block, loss.kind, loss.weight) == ('paper', block, 'infonce_l2', 0.5)
  assert loss.groups == 256 // 16


def test_parameters_of_one_step_xl_with_skips():
  """713M in Table 5; MeanFlow alone has 676.4M, 14 fusions of 2D to D make the rest."""
  experiment = published.built('paper', 'table5/MeanFlow-XL+DiverseDiT')
  network = jax.eval_shape(
    lambda: state.Trainable(
      experiment.network, experiment.transformation(), sharding.make_mesh()
    ).init(jax.random.key(0))
  )
  d = 1152
  assert trees.count(network.params) == 676_440_592 + 14 * ((2 * d + 1) * d + 2 * 2 * d)
  assert trees.count(network.params) // 10**6 == 713


def test_table_and_keys_are_printed():
  """Two processes, for neither needs a workdir or a whole config."""
  for arguments, wanted in (
    (['--config=configs/paper.py', '--mode=list'], paper.listing() + '\n'),
    (['--mode=keys', 'sra'], declarations.document('sra')),
  ):
    done = command_server.main(arguments)
    assert (done.returncode, done.stdout) == (0, wanted), done.stderr


def test_list_and_experiment_are_not_confused():
  for arg in (None, ''):
    config = paper.get_config(arg)
    assert list(config) == ['listing'] and listing.listing(config) == config.listing
    with pytest.raises(types.UserError, match='none was named; .*configs/paper.py:table1/SiT-B'):
      listing.check_is_experiment(config)
  with pytest.raises(types.UserError, match='nothing to list'):
    listing.listing(paper.get_config('table1/SiT-B'))


def test_cifar10(pictures, monkeypatch):
  monkeypatch.chdir(pictures)
  experiment = published.built('cifar10', 'data=folder:pictures')
  model, data = experiment.architecture, experiment.data
  assert (model.input_size, model.channels, model.num_classes) == ((32, 32), 3, 10)
  assert (model.depth, model.width, model.heads, model.patch_size) == published.SHAPES['s']
  assert (data.size, data.flip, data.resident) == (32, True, 'host')
  assert experiment.train.batch_size == 128 and experiment.train.steps == 200_000


def test_cifar10_that_is_not_prepared_is_refused_with_the_command(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(types.UserError) as error:
    published.built('cifar10')
  assert str(error.value).startswith(f'tfds:cifar10 is not in {tmp_path}')
  command = "tfds.builder('cifar10', file_format='array_record').download_and_prepare()"
  assert command in str(error.value)


def test_skips_follow_the_method_unless_given():
  skips = lambda arg: imagenet.get(arg, size='B/2', resolution=256).model.skip.enabled
  assert skips('') and skips('method=meanflow+diverse') and skips('method=flow,skips')
  assert not skips('method=repa') and not skips('skips=False')
  assert not skips('method=flow+dispersive')


def test_data_have_pixels_where_an_encoder_looks():
  data = lambda arg, px: imagenet.get(arg, size='B/2', resolution=px).data.source
  assert data('', 256) == 'synthetic:32x32x4:1000'
  assert data('method=reg', 256) == 'synthetic:32x32x4+256x256x3:1000'
  assert data('method=sra', 512) == 'synthetic:64x64x4:1000'
  assert data('method=repa', 512) == 'synthetic:64x64x4+512x512x3:1000'
  assert data('method=repa,data=arrays:x.npz', 256) == 'arrays:x.npz'


def test_impossible_meta_arguments_are_refused():
  for arg, words in (
    ('size=Q/2', "unknown model.size 'Q/2'"),
    ('size=Q/2,method=meanflow', "unknown model size 'Q/2'"),
    ('method=rpea', "unknown method 'rpea'"),
    ('skips=maybe', 'is not a bool'),
    ('steps=ten', "steps='ten' is not a int"),
    ('step=7', "unknown config argument 'step'"),
  ):
    with pytest.raises(types.UserError, match=words):
      published.built('b256', arg)


def test_headers_carry_command_and_hardware():
  for name in NAMES:
    text = importlib.import_module(f'configs.{name}').__doc__
    assert re.search(rf"--config='?configs/{name}\.py", text) and 'Hardware' in text
  for name in (*IMAGENET, 'paper', 'zoo', 'lightning_xl256', 'rae_xl256', 'ddt_xl256'):
    text = ' '.join(importlib.import_module(f'configs.{name}').__doc__.split())
    assert 'measured with this code yet' in text and 'FID-50K' in text


def test_meta_arguments_are_typed_like_their_defaults():
  args = common.parse_arg('size=B/2,steps=10,flip', size='XL/2', steps=1, flip=False, rate=1.0)
  assert args.to_dict() == {'size': 'B/2', 'steps': 10, 'flip': True, 'rate': 1.0}
