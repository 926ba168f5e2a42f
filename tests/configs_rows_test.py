"""Rows of tables in configs/paper.py and configs/zoo.py: published numbers, and what names say."""

import re

from helpers import published
import pytest

from configs import paper, zoo
from diversedit_jax import types

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
  'internal/SiT-XL-800-guided': 1.46,
  'lightning/XL-800': 2.17,
  'rae/DiT-XL-80': 4.28,
  'rae/DiT-XL-DINOv2-S-800': 1.87,
  'rae/DiTDH-XL-80': 2.16,
  'rae/DiTDH-XL-800': 1.51,
}
# Rows at batch 1024, whose epochs are in their names.
WIDE_BATCH = ('lightning', 'rae')


def test_rows_of_rae_mirror_pictures_where_there_are_some():
  for row in ('rae/DiT-XL-80', 'rae/DiTDH-XL-800'):
    assert zoo.get_config(f'{row},data=folder:/pictures').data.flip
    assert not zoo.get_config(row).data.flip


def test_the_zoo_has_published_numbers_and_their_sources():
  assert {name: zoo.find(name).paper['FID'] for name in ZOO} == ZOO
  for row in zoo.ROWS:
    assert bool(row.paper) == bool(row.note) == (table_of(row.name) != 'grid'), row.name
    experiment = published.built('zoo', row.name)
    scale = 1.35 if table_of(row.name) == 'internal' else 1.65
    assert experiment.sampler.guidance_scale == (scale if 'guided' in row.name else 1.0)
    if table_of(row.name) in WIDE_BATCH:
      epochs = experiment.train.steps * experiment.train.batch_size / 1_281_167
      assert epochs == pytest.approx(int(row.name.rpartition('-')[2]), rel=2e-3)
    else:
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
  experiment = published.built('paper', row.name)
  table, name = row.name.split('/')
  expected = published.RECIPE | (published.MEANFLOW if 'MeanFlow' in name else {})
  guidance = guidance_of(row.name)
  expected |= {'sampler.guidance_scale': guidance}
  assert published.found(experiment, expected) == expected
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
  assert shape == published.SHAPES[size.lower()][:3]

  # Ablations take a part away from DiverseDiT; all others name what they have.
  ablation = details not in ([], ['none'], ['5'], ['8']) and table != 'tableA2'
  parts = {*METHODS[family].split('+'), *(METHODS[m] for m in more)}
  parts |= {'diverse'} if ablation else set()
  skips = 'diverse' in parts and details != ['no', 'residual']
  parts -= {'diverse'} if details == ['no', 'diversity'] else set()
  assert {*experiment.config.method.split('+'), 'flow'} == parts | {'flow'}
  assert (experiment.architecture.skip.enabled) == skips


def test_ablations_set_what_they_vary():
  diversity = lambda name: published.term(published.built('paper', name), 'diverse')
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
          experiment = published.built('paper', f'tableA4/REPA-{size}-{block}{ours}{half}')
          assert [p.block for p in published.term(experiment, 'repa').aligned] == [block]
  for name, pairs in (
    ('DINOv2@2-5-8', [('dinov2-vit-b', 2), ('dinov2-vit-b', 5), ('dinov2-vit-b', 8)]),
    ('MAE@10', [('mae-vit-l', 10)]),
    ('DINOv2+MAE@8', [('dinov2-vit-b', 8), ('mae-vit-l', 8)]),
    ('DINOv2@3+MoCoV3@8', [('dinov2-vit-b', 3), ('mocov3-vit-b', 8)]),
  ):
    aligned = published.term(published.built('paper', f'tableA2/REPA-B-{name}'), 'repa').aligned
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
