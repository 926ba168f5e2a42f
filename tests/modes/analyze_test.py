"""`--mode=analyze` end to end on the shrunken digits run: files, numbers, what is refused."""

import json
import shutil

from helpers import small_runs
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import modes, types
from diversedit_jax.analysis import drawing, registry, similarity
from diversedit_jax.experiment import flat_config
from diversedit_jax.modes import export

pytestmark = pytest.mark.usefixtures('compilation_cached')
DEPTH = small_runs.DEPTH
SMALL = {
  'analysis__examples': 20,
  'analysis__times': (0.2, 0.8),
  'analysis__time_grid': (0.2, 0.8),
  'analysis__probe_examples': 60,
  'analysis__pictures': 2,
  'analysis__sources': 3,
  'analysis__draws': 2,
  'analysis__batches': 2,
  'analysis__neighbours': 3,
  'method': 'flow+diverse',
}


def make(**more):
  return small_runs.make(**(SMALL | more))


def content(workdir):
  return json.loads((workdir / 'analysis' / 'analysis.json').read_text())


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run of two checkpoints of random weights, as if it had been trained."""
  workdir = tmp_path_factory.mktemp('analyze') / 'run'
  made = small_runs.untrained(workdir, **SMALL)
  other = tmp_path_factory.mktemp('other') / 'run'
  small_runs.untrained(other, step=15, **SMALL)
  shutil.copytree(other / 'checkpoints' / '15', workdir / 'checkpoints' / '15')
  return made


@pytest.fixture(scope='module')
def whole(run, tmp_path_factory):
  """What all parts write, beside a network to compare with: another of six blocks."""
  other = tmp_path_factory.mktemp('deep') / 'deep'
  small_runs.untrained(other, **SMALL, model__depth=4)
  output = tmp_path_factory.mktemp('output')
  experiment = make(analysis__parts=('all',), analysis__against=str(other))
  origin = str(run.workdir / 'checkpoints' / '30')
  with pytest.MonkeyPatch.context() as patch, small_runs.keys_read() as seen:
    patch.setattr(drawing, 'DPI', 60)
    written = modes.analyze.run(experiment, str(output), origin)
  keys = {name for name in flat_config.of(experiment.config) if name.startswith('analysis.')}
  assert keys <= seen, keys - seen
  return output, written, content(output)


def test_all_parts_write_what_they_say_and_nothing_else(whole):
  output, written, found = whole
  assert sorted(written) == sorted(p for p in output.rglob('*') if p.is_file())
  assert set(found['parts']) == set(registry.PARTS) and found['schema'] == 1
  named = {name for part in found['parts'].values() for name in [part['arrays']] if name}
  for part in found['parts'].values():
    for figure in part['figures'].values():
      assert [name.rpartition('.')[2] for name in figure['files']] == ['png', 'pdf']
      named |= {*figure['files']}
      assert all(panel['title'] for panel in figure['panels'])
    assert part['summary'] and part['protocol']['step'] == 30
  assert named | {'analysis.json', 'sheet.png', 'sheet.pdf'} == {p.name for p in written}
  for path in written:
    if path.suffix == '.png':
      assert len(np.unique(np.asarray(Image.open(path)))) > 10, path


def test_numbers_of_a_part_stand_with_what_they_depend_on(whole):
  _, _, found = whole
  cka = found['parts']['cka']
  expected = {'method': 'flow+diverse', 'weights': 'ema', 'checkpoint': 'checkpoints/30'}
  expected |= {'data': 'digits/test', 'examples': 20, 'times': [0.2, 0.8], 'labels': 'true'}
  expected |= {'view': 'mean', 'kernel': 'linear', 'estimator': 'unbiased', 'depth': DEPTH}
  assert expected.items() <= cka['protocol'].items()
  assert found['parts']['probe']['protocol']['labels'] == 'null'
  assert found['parts']['cknna']['protocol']['encoder'] == 'pca'
  with np.load(whole[0] / 'analysis' / 'cka.npz') as file:
    matrix = file['linear/unbiased/t=0.2']
  panel = cka['figures']['cka']['panels'][0]
  np.testing.assert_allclose(panel['values'], matrix)
  score = similarity.diversity_score(matrix)
  assert cka['summary']['diversity_score'][0] == pytest.approx(score)
  assert np.mean(cka['figures']['diversity']['panels'][0]['series']['t = 0.2']) == pytest.approx(
    score
  )


def test_parts_have_a_number_for_every_block(whole):
  parts = whole[2]['parts']
  for values in parts['rank']['summary']['rank'].values():
    assert len(values) == DEPTH and all(1 <= v <= 19 for v in values)
  shares = parts['variance']['summary']
  np.testing.assert_allclose(np.sum([*shares.values()], axis=0), np.ones(DEPTH))
  gradients = parts['gradients']['summary']
  assert set(gradients['norm']) == {'flow', 'diverse'} and min(gradients['norm']['flow']) > 0
  assert len(gradients['cosine']['diverse']) == DEPTH
  assert all(c is None or -1 <= c <= 1 for c in gradients['cosine']['diverse'])
  assert len(parts['probe']['summary']['time_r2']) == DEPTH
  compared = parts['compare']['figures']['compare']['panels'][0]
  assert np.shape(compared['values']) == (DEPTH, 4) and 'deep, step 30' in compared['x_label']


def test_steps_are_those_that_the_run_keeps(whole):
  steps = whole[2]['parts']['steps']
  assert steps['summary']['steps'] == [15, 30]
  # Both checkpoints have the same random weights.
  for first, last in steps['summary']['diversity_score'].values():
    assert first == last
  both = [panel['values'] for panel in steps['figures']['steps']['panels']]
  cka = whole[2]['parts']['cka']['figures']['cka']['panels']
  np.testing.assert_allclose(both[-1], cka[1]['values'])  # At the middle time, the last of two.


SLOW_FORMS = [pytest.param(form, marks=pytest.mark.slow) for form in ('checkpoint', 'folder')]


@pytest.mark.parametrize('form', ['run', 'file', *SLOW_FORMS])
def test_a_network_compared_with_itself_is_its_own_cka(form, run, tmp_path):
  against = run.workdir / 'checkpoints' / '15'
  origin = str(run.workdir / 'checkpoints' / '30')
  if form == 'run':
    against = run.workdir
  elif form in ('folder', 'file'):
    against = export.run(run.experiment, str(tmp_path / 'given'), origin)[0].parent
  if form == 'file':
    against = shutil.copy(against / 'model.safetensors', tmp_path / 'alone.safetensors')
  experiment = make(analysis__parts=('cka', 'compare'), analysis__against=str(against))
  modes.analyze.run(experiment, str(tmp_path / 'out'), origin)
  own, both = (
    small_runs.arrays(tmp_path / 'out' / 'analysis' / f'{part}.npz') for part in ('cka', 'compare')
  )
  for t in (0.2, 0.8):
    np.testing.assert_allclose(own[f'linear/unbiased/t={t}'], both[f't={t}'], atol=1e-9)
  # Nothing is written beside what is only read.
  assert {p.name for p in run.workdir.iterdir()} >= {'checkpoints', 'config.json'}
  assert not (run.workdir / 'analysis').exists()


def test_a_later_part_joins_those_before_it(run, tmp_path):
  origin = str(run.workdir / 'checkpoints' / '30')
  modes.analyze.run(make(analysis__parts=('rank',)), str(tmp_path), origin)
  before = content(tmp_path)['parts']
  minibatch = {'analysis__estimator': 'minibatch', 'analysis__batch_size': 8}
  modes.analyze.run(make(analysis__parts=('cka',), **minibatch), str(tmp_path), origin)
  after = content(tmp_path)['parts']
  assert after['rank'] == before['rank'] and set(after) == {'rank', 'cka'}
  assert not (tmp_path / 'analysis' / 'sheet.png').exists()
  with np.load(tmp_path / 'analysis' / 'cka.npz') as file:
    names = {name for name in file.files if '/' in name}
  kernels = similarity.KERNELS
  assert names == {f'{kernel}/minibatch/t={t}' for kernel in kernels for t in (0.2, 0.8)}


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'analysis__parts': ('compare',)}, 'compare compares with another network: give --config'),
    ({'analysis__parts': ('steps',), 'analysis__steps': (7,)}, r'steps \[7\]; .* \[15, 30\]'),
    ({'analysis__parts': ('gradients',), 'method': 'flow'}, 'no term beside its flow'),
    ({'analysis__parts': ('cknna',), 'analysis__neighbours': 20}, 'analysis.neighbours=20'),
    ({'analysis__parts': ('compare',), 'analysis__against': 'nowhere'}, 'no weights at'),
  ],
)
def test_what_the_run_does_not_allow_is_refused_before_anything_is_computed(
  run, tmp_path, fields, words
):
  origin = str(run.workdir / 'checkpoints' / '30')
  with pytest.raises(types.UserError, match=words):
    modes.analyze.run(make(**fields), str(tmp_path), origin)
  assert not (tmp_path / 'analysis').exists()


@pytest.mark.slow
@pytest.mark.parametrize(
  ('method', 'more'),
  [
    ('reg+diverse', {'repa__pairs': 'pca@1'}),
    ('meanflow+diverse', {'sampler__kind': 'average_velocity', 'sampler__guidance_scale': 1.0}),
    ('repa+sra+dispersive+diverse', {'repa__pairs': 'pca@2', 'repa__hidden': 8}),
  ],
)
def test_all_parts_look_at_every_flow_and_every_term(method, more, tmp_path):
  blocks = {'sra__student_block': 1, 'sra__teacher_block': 2, 'dispersive__block': 1}
  options = SMALL | more | blocks | {'method': method}
  made = small_runs.untrained(tmp_path / 'run', **options, analysis__parts=('all',))
  modes.analyze.run(made.experiment, str(made.workdir), None)
  parts = content(made.workdir)['parts']
  assert set(parts) == set(registry.PARTS) - {'compare'}
  gradients = parts['gradients']['summary']
  terms = {term.name for term in made.experiment.objective.terms}
  assert set(gradients['cosine']) == terms and min(gradients['norm'][method.split('+')[0]]) >= 0
  if 'sra' in method:  # The student's block is the first; what comes after it feels nothing.
    assert gradients['norm']['sra'][0] > 0 == gradients['norm']['sra'][1]
    assert gradients['cosine']['dispersive'][1] is None
