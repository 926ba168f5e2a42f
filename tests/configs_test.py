"""The experiments in configs/: all build, each method's step traces, numbers are the papers'."""

import importlib
import pathlib
import re
import subprocess
import sys

import jax
import numpy as np
from PIL import Image
import pytest

from configs import common, imagenet, paper, zoo
from diversedit_jax import experiment as experiment_lib
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


def config_of(name, arg):
  return importlib.import_module(f'configs.{name}').get_config(arg)


def built(name, arg=''):
  return experiment_lib.build(config_of(name, arg))


def kinds():
  """A case of each config file and of each method with or without long residual connections."""
  found, files = {}, set()
  for name, arg in CASES:
    config = config_of(name, arg)
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
  experiment = built(name, arg)
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
  )
  n, source = experiment.train.batch_size, experiment.source
  one = source.gather(np.arange(1))
  batch = {name: jax.ShapeDtypeStruct((n, *x.shape[1:]), x.dtype) for name, x in one.items()}
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


# The papers' values, by attribute of a built experiment: DiverseDiT, Table A1, and what MeanFlow
# (2505.13447) has instead.
RECIPE = {
  'train.batch_size': 256,
  'train.label_dropout': 0.1,
  'train.ema_decay': 0.9999,
  'train.accumulate': 1,
  'optimizer.learning_rate': 1e-4,
  'optimizer.b1': 0.9,
  'optimizer.b2': 0.999,
  'optimizer.eps': 1e-8,
  'optimizer.weight_decay': 0.0,
  'optimizer.clip_norm': 1.0,
  'optimizer.warmup_steps': 0,
  'optimizer.schedule': 'constant',
  'architecture.mlp_ratio': 4.0,
  'architecture.qk_norm': False,
  'architecture.learn_sigma': False,
  'execution.dtype': 'bfloat16',
  'execution.residual_dtype': 'float32',
  'architecture.num_classes': 1000,
  'path.name': 'linear',
  'config.interpolant.prediction': 'velocity',
  'config.interpolant.time_law': 'uniform',
  'config.interpolant.weighting': 'none',
  'sampler.kind': 'euler_maruyama',
  'sampler.steps': 250,
  'sampler.diffusion': '2t',
  'sampler.last_step': 0.04,
  'sampler.guidance_scale': 1.0,
  'sample.weights': 'ema',
}
MEANFLOW = {
  'execution.dtype': 'float32',
  'optimizer.b2': 0.95,
  'optimizer.clip_norm': 0.0,
  'config.interpolant.time_law': 'logit_normal',
  'config.interpolant.time_mean': -0.4,
  'config.interpolant.time_std': 1.0,
  'sampler.kind': 'average_velocity',
  'sampler.steps': 1,
  'objective.flow.variant': 'original',
  'objective.flow.power': 1.0,
  'objective.flow.constant': 0.01,
}
# omega, kappa, start, end.
MEANFLOW_GUIDANCE = {
  'B/2': (1.0, 0.5, 0.0, 1.0),
  'B/4': (1.0, 0.5, 0.0, 1.0),
  'M/2': (1.0, 0.5, 0.0, 1.0),
  'L/2': (0.2, 0.92, 0.0, 0.8),
  'XL/2': (0.2, 0.92, 0.0, 0.75),
}
SHAPES = {
  's': (12, 384, 6, 2),
  'b': (12, 768, 12, 2),
  'l': (24, 1024, 16, 2),
  'xl': (28, 1152, 16, 2),
}


def found(experiment, names):
  values = {}
  for name in names:
    value = experiment
    for part in name.split('.'):
      value = getattr(value, part)
    values[name] = value
  return values


def term(experiment, name):
  return next(t for t in experiment.objective.terms if t.name == name)


@pytest.mark.parametrize('name', IMAGENET)
@pytest.mark.parametrize('method', ['flow', 'flow+diverse', 'repa+diverse', 'meanflow+diverse'])
def test_recipe(name, method):
  experiment = built(name, f'method={method}')
  expected = RECIPE | (MEANFLOW if 'meanflow' in method else {})
  assert found(experiment, expected) == expected
  size, resolution = name[:-3], int(name[-3:])
  model = experiment.architecture
  assert (model.depth, model.width, model.heads, model.patch_size) == SHAPES[size]
  assert (model.skip.enabled) == ('diverse' in method)
  assert experiment.source.shape == {256: (32, 32, 4), 512: (64, 64, 4)}[resolution]
  assert (experiment.data.size, experiment.data.space) == (resolution, 'latents')
  assert model.sequence == {256: 256, 512: 1024}[resolution]
  assert experiment.train.steps == 400_000
  if 'repa' in method:
    repa = term(experiment, 'repa')
    (pair,) = repa.aligned
    block = {'s': 5, 'b': 5, 'l': 8, 'xl': 8}[size]
    assert (pair.encoder, pair.block, pair.width) == ('dinov2-vit-b', block, 768)
    assert (repa.weight, repa.hidden) == (0.5, 2048)
    assert experiment.source.pixel_shape == (resolution, resolution, 3)
  else:
    assert experiment.source.pixel_shape is None
  if 'diverse' in method:
    diverse = term(experiment, 'diverse')
    assert (diverse.layers, diverse.lo, diverse.hi, diverse.adaptive) == ('all', 0.1, 0.5, True)
    assert diverse.weights == (0.33, 0.33, 0.33) and diverse.groups == 1


@pytest.mark.parametrize(('size', 'values'), MEANFLOW_GUIDANCE.items())
def test_meanflow_guides_by_size(size, values):
  for name in ('b256', 'xl512'):
    flow = built(name, f'method=meanflow,size={size}').objective.flow
    assert (flow.omega, flow.kappa, flow.start, flow.end) == values


@pytest.mark.parametrize(
  ('name', 'student', 'teacher', 'after', 'epochs'),
  [('b256', 4, 8, 149, 1000), ('xl256', 8, 20, 149, 1000), ('xl512', 8, 20, 99, 800)],
)
def test_sra(name, student, teacher, after, epochs):
  sra = term(built(name, 'method=sra'), 'sra')
  assert (sra.student_block, sra.teacher_block) == (student, teacher)
  assert (sra.decay_after, sra.decay_epochs) == (after, epochs)
  assert (sra.kind, sra.beta, sra.t_max, sra.weight) == ('smooth_l1', None, 0.2, 0.2)
  assert sra.steps_per_epoch == 5004


@pytest.mark.parametrize(('name', 'block'), [('b256', 3), ('l512', 6), ('xl256', 7)])
def test_dispersive(name, block):
  loss = term(built(name, 'method=dispersive'), 'dispersive')
  assert (loss.preset, loss.block, loss.kind, loss.weight) == ('paper', block, 'infonce_l2', 0.5)
  assert loss.groups == 256 // 16


def test_parameters_of_one_step_xl_with_skips():
  """713M in Table 5; MeanFlow alone has 676.4M, 14 fusions of 2D to D make the rest."""
  experiment = built('paper', 'table5/MeanFlow-XL+DiverseDiT')
  network = jax.eval_shape(
    lambda: state.Trainable(
      experiment.network, experiment.transformation(), sharding.make_mesh()
    ).init(jax.random.key(0))
  )
  d = 1152
  assert trees.count(network.params) == 676_440_592 + 14 * ((2 * d + 1) * d + 2 * 2 * d)
  assert trees.count(network.params) // 10**6 == 713


# FID by row, of the paper's tables, in their order; None is not a number there.
FIDS = {
  'table1': (36.80, 28.05, 22.99, 17.29, 18.77, 16.10, 9.57, 8.47, 17.43, 12.42, 8.73, 8.09),
  'table2': (1.89, 1.52),
  'table3': (2.21, 1.99),
  'table4': (9.44, 8.51, 8.73, 7.15, 5.94, 5.69),
  'table5': (3.43, 3.21, 2.99),
  'table6': (28.05, 32.77, 33.72, 17.29, 20.66, 18.18),
  'table7': (18.97, 17.70, 20.85),
  'table8': (28.05, 30.59, 31.85, None),
  'table9': (28.05, 24.98, 21.95),
  # SiT-B by steps; DINOv2, MAE and both at 5, 8 and 10, after DINOv2 alone two of three blocks.
  'tableA2': (
    *(89.65, 40.46, 31.42, 12.69, 12.04),
    *(5.37, 7.67, 10.85, 13.25, 13.54, 10.15, 11.40, 12.11, 5.77, 7.44, 11.03),
    *(11.46, 11.73, 11.36, 12.71),
  ),
  'tableA3': (43.46, 33.18, 30.13, 23.82, 22.75, 19.19, 10.82, 9.83, 19.65, 17.68, 7.91, 7.18),
  # Guided, then not.
  'tableA4': (
    *(12.47, 8.33, 16.46, 12.92, 5.14, 4.18, 3.86, 3.39, 3.33, 3.17, 3.50, 3.16),
    *(22.99, 17.29, 27.94, 23.27, 12.02, 10.01, 9.57, 8.47, 8.27, 8.18, 8.73, 8.09),
  ),
  'tableA5': (32.77, 23.96, 21.27, 16.44, 14.85, 12.44, 5.57, 4.66, 12.50, 11.24, 4.30, 3.98),
  'tableA6': (23.28, 16.21, 20.07, 20.76, 12.47, 8.34, 10.75, 11.02),
  'tableA7': (18.77, 16.85, 16.10, 16.01, 15.84, 15.77),
  'tableA8': (28.05, 31.32, 29.97, 36.12),
  'tableA9': (12.47, 8.34, 10.98, 10.78, 8.59),
  'tableA10': (23.28, 16.21, 13.73, 11.25),
}
# FID, sFID, IS, precision, recall of one row of each table that has all five.
ALL_FIVE = {
  'table1/REPA-L+DiverseDiT': (8.47, 5.42, 123.03, 0.69, 0.67),
  'table2/200-epochs': (1.52, 4.23, 282.72, 0.81, 0.66),
  'table3/80-epochs': (2.21, 4.31, 241.08, 0.82, 0.61),
  'table4/MeanFlow-L+DiverseDiT': (7.15, 5.91, 199.66, 0.81, 0.41),
  'table6/SiT-B-no-residual': (33.72, 6.53, 43.97, 0.53, 0.63),
  'table7/REPA-B-only-dispersion': (20.85, 6.78, 68.74, 0.61, 0.65),
  'table8/SiT-B-0.3-0.9': (31.85, 6.43, 45.98, 0.54, 0.63),
  'table9/SiT-B+DiverseDiT+DispLoss+SRA': (21.95, 5.92, 64.64, 0.60, 0.64),
  'tableA2/REPA-B-DINOv2@5+MoCoV3@10': (12.71, 6.08, 104.46, 0.66, 0.56),
  'tableA3/REPA-XL+DiverseDiT': (7.18, 5.38, 137.09, 0.78, 0.64),
  'tableA4/REPA-XL-8+DiverseDiT': (3.16, 5.60, 194.36, 0.77, 0.62),
  'tableA4/REPA-L-5+DiverseDiT-unguided': (10.01, 5.47, 107.68, 0.69, 0.64),
  'tableA5/SiT-XL': (12.50, 5.17, 102.38, 0.79, 0.58),
  'tableA6/REPA-B-no-residual': (11.02, 5.77, 112.93, 0.64, 0.62),
  'tableA8/SiT-B-only-MI': (29.97, 6.21, 48.23, 0.57, 0.63),
  'tableA9/REPA-B-only-dispersion': (8.59, 5.77, 131.69, 0.70, 0.63),
  'tableA10/SiT-B+DiverseDiT+DispLoss+SRA': (11.25, 5.37, 108.15, 0.69, 0.61),
}
FEWER = {'table5': ['FID'], 'tableA7': ['FID', 'IS', 'hours']}
NOT_ALL = {'table8/SiT-B-constant': [], 'tableA4/REPA-L-5-unguided': ['FID']}
GUIDED = {'table2', 'table3', 'tableA5', 'tableA6', 'tableA9', 'tableA10'}


def table_of(name):
  return name.split('/')[0]


def guidance_of(name):
  table = table_of(name)
  if table == 'tableA2':
    return 1.8
  return 1.35 if table in GUIDED or (table == 'tableA4' and 'unguided' not in name) else 1.0


def test_rows_have_the_papers_numbers():
  tables = {}
  for row in paper.ROWS:
    table = table_of(row.name)
    tables.setdefault(table, []).append(row.paper.get('FID'))
    names = NOT_ALL.get(row.name, FEWER.get(table, ['FID', 'sFID', 'IS', 'Prec', 'Rec']))
    assert list(row.paper) == names, row.name
  assert {name: tuple(values) for name, values in tables.items()} == FIDS
  assert len({row.name.lower() for row in paper.ROWS}) == len(paper.ROWS)
  assert {name: tuple(paper.find(name).paper.values()) for name in ALL_FIVE} == ALL_FIVE
  assert paper.find('tableA7/SiT-L-24-layers').paper == {'FID': 15.77, 'IS': 85.64, 'hours': 28.50}


# FID of rows whose method has none in the paper's tables.
ZOO = {
  'rare/SiT-B': 35.15,
  'rare/REPA-B-guided': 6.69,
  'rare/iREPA-B': 20.40,
  'rare/HASTE-B-guided': 5.00,
  'rare/SRA-B': 28.84,
  'layersync/SiT-B+LayerSync': 30.00,
  'layersync/SiT-L+LayerSync': 14.83,
  'layersync/SiT-XL+LayerSync': 11.24,
  'layersync/SiT-XL-800+LayerSync': 6.87,
  'selfflow/Self-Flow-XL': 5.70,
}


def test_the_zoo_has_published_numbers_and_their_sources():
  assert {name: zoo.find(name).paper['FID'] for name in ZOO} == ZOO
  for row in zoo.ROWS:
    assert bool(row.paper) == bool(row.note) == (table_of(row.name) != 'grid'), row.name
    experiment = built('zoo', row.name)
    assert experiment.sampler.guidance_scale == (1.65 if 'guided' in row.name else 1.0)
    assert experiment.train.steps == (
      4_000_000 if '-XL' in row.name and row.steps > 10**6 else 400_000
    )
    has_skips = table_of(row.name) == 'grid' and ('diverse' in row.name or 'skips' in row.name)
    assert experiment.architecture.skip.enabled == has_skips


def test_models_that_are_trained_alike_are_known():
  models = paper.trained_as()
  assert models['tableA6/SiT-B-full'] == models['table8/SiT-B-0.1-0.5'] == 'table1/SiT-B+DiverseDiT'
  assert models['tableA4/REPA-XL-8'] == models['table1/REPA-XL'] == 'table1/REPA-XL'
  assert models['tableA5/REPA-XL+DiverseDiT'] == 'table3/80-epochs'
  assert models['tableA10/SiT-B+DiverseDiT+DispLoss+SRA'] == 'table9/SiT-B+DiverseDiT+DispLoss+SRA'
  # Tables A5, A6, A9 and A10 only sample what others train.
  for name, model in models.items():
    assert (model != name) or table_of(name) not in ('tableA5', 'tableA6', 'tableA9', 'tableA10')
  assert len({models[name] for name in models if name.startswith('table6/')}) == 6
  assert models['table2/200-epochs'] == 'table2/200-epochs'


METHODS = {
  'SiT': 'flow',
  'REPA': 'flow+repa',
  'MeanFlow': 'meanflow',
  'DiverseDiT': 'diverse',
  'DispLoss': 'dispersive',
  'SRA': 'sra',
}


@pytest.mark.parametrize('row', paper.ROWS, ids=lambda row: row.name)
def test_row_is_what_its_name_says(row):
  experiment = built('paper', row.name)
  table, name = row.name.split('/')
  expected = RECIPE | (MEANFLOW if 'MeanFlow' in name else {})
  guidance = guidance_of(row.name)
  expected |= {'sampler.guidance_scale': guidance}
  assert found(experiment, expected) == expected
  # REPA's interval wherever there is guidance, and the assumption is visible.
  assert (experiment.sampler.guidance_low, experiment.sampler.guidance_high) == (
    (0.0, 0.7) if guidance > 1 else (0.0, 1.0)
  )
  assert ('assumed' in row.note) == (guidance > 1 or table == 'table5')
  large = table in ('table3', 'tableA3', 'tableA5')
  assert experiment.architecture.sequence == (1024 if large else 256)
  assert experiment.data.size == (512 if large else 256)
  steps = {'table2/200-epochs': 10**6, 'table3/200-epochs': 10**6}.get(row.name, 400_000)
  if table == 'tableA2':
    steps = int(name[:-1].split('-')[-1]) * 1000 if name.startswith('SiT') else 450_000
  assert experiment.train.steps == (1_200_000 if table == 'table5' else steps)
  if table in ('table2', 'table3'):
    name = 'REPA-XL+DiverseDiT'
  if table == 'tableA2':
    name = name[:6]
  name = name.removesuffix('-unguided')
  first, *more = name.split('+')
  family, size, *details = first.split('-')
  shape = (
    experiment.architecture.depth,
    experiment.architecture.width,
    experiment.architecture.heads,
  )
  assert shape == SHAPES[size.lower()][:3]

  # Ablations take a part away from DiverseDiT; all others name what they have.
  ablation = details not in ([], ['none'], ['5'], ['8']) and table != 'tableA2'
  parts = {*METHODS[family].split('+'), *(METHODS[m] for m in more)}
  parts |= {'diverse'} if ablation else set()
  skips = 'diverse' in parts and details != ['no', 'residual']
  parts -= {'diverse'} if details == ['no', 'diversity'] else set()
  assert {*experiment.config.method.split('+'), 'flow'} == parts | {'flow'}
  assert (experiment.architecture.skip.enabled) == skips


def test_ablations_set_what_they_vary():
  diversity = lambda name: term(built('paper', name), 'diverse')
  usual = diversity('table1/SiT-B+DiverseDiT')
  assert (usual.layers, usual.num_layers, usual.adaptive) == ('random', 10, True)
  assert (usual.lo, usual.hi, usual.weights) == (0.1, 0.5, (0.33, 0.33, 0.33))
  for number in (5, 10, 15, 20):
    config = diversity(f'tableA7/SiT-L-{number}-layers')
    assert (config.layers, config.num_layers) == ('random', number)
  assert diversity('tableA7/SiT-L-24-layers').layers == 'all'
  for lo, hi in ((0.1, 0.5), (0.2, 0.7), (0.3, 0.9)):
    config = diversity(f'table8/SiT-B-{lo}-{hi}')
    assert (config.lo, config.hi, config.adaptive) == (lo, hi, True)
  assert not diversity('table8/SiT-B-constant').adaptive
  for table in ('table7/REPA-B', 'tableA8/SiT-B', 'tableA9/REPA-B'):
    for i, which in enumerate(('orth', 'MI', 'dispersion')):
      weights = diversity(f'{table}-only-{which}').weights
      assert weights == tuple(0.33 * (i == j) for j in range(3))
  for size in ('B', 'L', 'XL'):
    for block in (5, 8):
      for ours in ('', '+DiverseDiT'):
        for half in ('', '-unguided'):
          experiment = built('paper', f'tableA4/REPA-{size}-{block}{ours}{half}')
          assert [p.block for p in term(experiment, 'repa').aligned] == [block]
  for name, pairs in (
    ('DINOv2@2-5-8', [('dinov2-vit-b', 2), ('dinov2-vit-b', 5), ('dinov2-vit-b', 8)]),
    ('MAE@10', [('mae-vit-l', 10)]),
    ('DINOv2+MAE@8', [('dinov2-vit-b', 8), ('mae-vit-l', 8)]),
    ('DINOv2@3+MoCoV3@8', [('dinov2-vit-b', 3), ('mocov3-vit-b', 8)]),
  ):
    aligned = term(built('paper', f'tableA2/REPA-B-{name}'), 'repa').aligned
    assert [(pair.encoder, pair.block) for pair in aligned] == pairs


def test_row_takes_data_and_steps():
  config = paper.get_config('table6/SiT-B-full,data=synthetic:16x16x4:10,steps=7')
  assert (config.data.source, config.train.steps) == ('synthetic:16x16x4:10', 7)
  method = paper.get_config('TABLE9/sit-b+diversedit+disploss+sra').method
  assert method == 'flow+diverse+dispersive+sra'


@pytest.mark.parametrize(
  ('wrong', 'near'), [('table1/SiT-Q+DiverseDit', 'table1/SiT-'), ('9/DispLoss', 'table')]
)
def test_unknown_row_is_refused_with_the_nearest(wrong, near):
  with pytest.raises(types.UserError, match=f"no row '{wrong}'".replace('+', r'\+')) as error:
    paper.get_config(wrong)
  assert f"the nearest is '{near}" in str(error.value) and '--mode=list' in str(error.value)


def test_list_names_every_row_and_what_it_sets():
  rows, _, notes = paper.listing().partition('\n\n')
  head, *lines = rows.splitlines()
  assert head.split()[:4] == ['row', 'method', 'size', 'steps']
  assert [line.split()[0] for line in lines] == [row.name for row in paper.ROWS]
  line_of = {line.split()[0]: line for line in lines}
  line = line_of['tableA7/SiT-L-5-layers']
  assert line.split()[1:4] == ['flow+diverse', 'L/2', '400,000']
  for words in ('FID 16.85', 'IS 77.62', 'hours 19.90', '5 random layers'):
    assert words in line
  assert 'the model of tableA3/SiT-B; guidance 1.35 in [0, 0.7]; [' in line_of['tableA5/SiT-B']
  notes = dict(note.split(' ', 1) for note in notes.splitlines())
  assert list(notes) == [f'[{i + 1}]' for i in range(len(notes))]
  for name, words in (
    ('table8/SiT-B-constant', 'diverges'),
    ('table2/80-epochs', 'Table A4 has 3.16'),
    ('tableA4/REPA-XL-8+DiverseDiT', 'Table 2 has 1.89'),
    ('tableA4/REPA-L-5-unguided', "repeat SiT-B's"),
    ('tableA5/SiT-B', "quotes Table A3's"),
    ('tableA7/SiT-L-none', 'head says SiT-XL'),
  ):
    said = [notes[mark] for mark in re.findall(r'\[\d+\](?= |$)', line_of[name])]
    assert any(words in note for note in said), (name, said)


def test_table_and_keys_are_printed():
  """Two processes, for neither needs a workdir or a whole config."""
  for arguments, wanted in (
    (['--config=configs/paper.py', '--mode=list'], paper.listing() + '\n'),
    (['--mode=keys', 'sra'], declarations.document('sra')),
  ):
    command = [sys.executable, '-m', 'diversedit_jax.main', *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == wanted


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
  experiment = built('cifar10', 'data=folder:pictures')
  model, data = experiment.architecture, experiment.data
  assert (model.input_size, model.channels, model.num_classes) == ((32, 32), 3, 10)
  assert (model.depth, model.width, model.heads, model.patch_size) == SHAPES['s']
  assert (data.size, data.flip, data.resident) == (32, True, 'host')
  assert experiment.train.batch_size == 128 and experiment.train.steps == 200_000


def test_cifar10_that_is_not_prepared_is_refused_with_the_command(tmp_path, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(types.UserError) as error:
    built('cifar10')
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
      built('b256', arg)


def test_headers_carry_command_and_hardware():
  for name in NAMES:
    text = importlib.import_module(f'configs.{name}').__doc__
    assert re.search(rf"--config='?configs/{name}\.py", text) and 'Hardware' in text
  for name in (*IMAGENET, 'paper', 'zoo', 'lightning_xl256'):
    text = ' '.join(importlib.import_module(f'configs.{name}').__doc__.split())
    assert 'measured with this code yet' in text and 'FID-50K' in text


def test_meta_arguments_are_typed_like_their_defaults():
  args = common.parse_arg('size=B/2,steps=10,flip', size='XL/2', steps=1, flip=False, rate=1.0)
  assert args.to_dict() == {'size': 'B/2', 'steps': 10, 'flip': True, 'rate': 1.0}
