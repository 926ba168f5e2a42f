"""`--mode=sweep`: its table and plot are of the single evaluations; it goes on and is extended."""

import json

from helpers import logs, picture_eval, small_runs
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import modes, types
from diversedit_jax.modes import evaluate, sweep
from diversedit_jax.sampling import generate

tiny_inception, files = picture_eval.tiny_inception, picture_eval.files
pytestmark = pytest.mark.usefixtures('compilation_cached')
GRID = {
  'sweep__guidance_scales': (1.0, 3.0),
  'sweep__guidance_lows': (0.0,),
  'sweep__guidance_highs': (0.5, 1.0),
}
POINTS = [(1, 0, 1), (3, 0, 0.5), (3, 0, 1)]


def swept_by(files, workdir, **changes):
  experiment = picture_eval.make(files, **GRID | changes)
  return modes.sweep.run(experiment, str(workdir), str(files / 'weights.safetensors'))


@pytest.fixture(scope='module')
def swept(files, tmp_path_factory):
  """Folder `eval` of a sweep, its table, the keys that were read, and the warnings in the log."""
  workdir = tmp_path_factory.mktemp('sweep')
  with logs.noted() as told, small_runs.keys_read() as seen:
    table, plot = swept_by(files, workdir)
  assert (table.name, plot.name) == ('sweep-fid.json', 'sweep-fid.png')
  return workdir / 'eval', json.loads(table.read_text()), seen, told


def test_every_key_is_read(swept):
  assert {f'sweep.{key}' for key in experiment_lib.defaults().sweep} <= swept[2]


def test_the_table_has_one_row_for_each_setting(swept):
  folder, table, _, _ = swept
  rows = table['rows']
  assert [(row['scale'], *row['interval']) for row in rows] == POINTS
  # Steps from 1 and 1/2: 1 evaluation each, 2 where guidance acts.
  assert [row['nfe'] for row in rows] == [2, 3, 4]
  names = ['w1-t0-1', 'w3-t0-0.5', 'w3-t0-1']
  files = {path.name for path in (folder / 'sweep-fid').iterdir()}
  assert files == {f'{name}.json' for name in names}  # And no archive of samples.
  for row, name in zip(rows, names, strict=True):
    one = json.loads((folder / 'sweep-fid' / f'{name}.json').read_text())
    assert {k: row[k] for k in one['scores']} == one['scores']
    guided = one['protocol']['guidance']
    assert (guided['scale'], guided['interval']) == (row['scale'], row['interval'])
    assert one['protocol']['num_samples'] == 18
  assert len({row['fid'] for row in rows}) == 3
  assert table['best'] == min(rows, key=lambda row: row['fid'])
  assert (table['score'], table['number']) == ('fid', 18)
  assert table['best']['file'] == f'sweep-fid/{names[table["rows"].index(table["best"])]}.json'
  assert all((folder / row['file']).is_file() for row in rows)


def test_what_makes_numbers_doubtful_is_in_the_table_and_told_once(swept):
  folder, table, _, told = swept
  ones = [json.loads((folder / row['file']).read_text())['warnings'] for row in table['rows']]
  assert 'quote none' in table['warnings'][0] and min(map(len, ones)) > 2
  assert set(table['warnings'][1:]) == {line for one in ones for line in one}
  assert [line for line in told if line.startswith('sweep-fid: ')] == [
    f'sweep-fid: {line}' for line in table['warnings']
  ]
  assert not any(line.startswith('w1-t0-1: ') for line in told)


def test_the_plot_and_the_text_mark_the_best(swept):
  folder, table, _, _ = swept
  plot = np.asarray(Image.open(folder / 'sweep-fid.png'))
  assert min(plot.shape[:2]) > 500 and plot.std() > 1
  best = table['rows'][[row['fid'] for row in table['rows']].index(table['best']['fid'])]
  lines = sweep.as_text(table['rows'], 'fid', best).splitlines()
  assert len(lines) == 4 and [line.endswith(' *') for line in lines[1:]].count(True) == 1
  starred = next(line for line in lines if line.endswith(' *'))
  assert starred.split()[0] == f'{best["scale"]:g}' and f'{best["fid"]:.5g}' in starred
  assert lines[0].split()[:4] == ['scale', 'interval', 'NFE', 'fid']


def test_every_interval_begins_without_guidance():
  rows = [{'scale': s, 'interval': [0.0, h], 'fid': s * h} for s, h in ((1, 1), (2, 0.5), (2, 1))]
  assert sweep._curves(rows, 'fid') == {'[0, 0.5]': {1: 1, 2: 1.0}, '[0, 1]': {1: 1, 2: 2}}
  assert sweep._curves(rows[:1], 'fid') == {'unguided': {1: 1}}
  assert sweep._curves(rows[1:2], 'fid') == {'[0, 0.5]': {2: 1.0}}


def test_an_interrupted_sweep_goes_on_and_may_be_extended(swept, files, tmp_path, monkeypatch):
  call, asked, breaks = generate.Generator.__call__, [], [5]
  order = evaluate.file_order(picture_eval.make(files), 18).tolist()

  def counted(self, params, labels, indices):
    asked.append(order.index(indices[0]))
    if len(asked) in breaks:  # The second batch of the second setting.
      raise picture_eval.Interrupted(breaks.pop())
    return call(self, params, labels, indices)

  monkeypatch.setattr(generate.Generator, '__call__', counted)
  with pytest.raises(picture_eval.Interrupted):
    swept_by(files, tmp_path)
  assert not (tmp_path / 'eval' / 'sweep-fid.json').exists()
  table, _ = swept_by(files, tmp_path)
  assert asked == [0, 8, 16, 0, 8, 8, 16, 0, 8, 16]
  assert json.loads(table.read_text()) == swept[1]
  del asked[:]
  more = {'sweep__guidance_scales': (1.0, 3.0, 2.0), 'sweep__guidance_highs': (1.0,)}
  table, _ = swept_by(files, tmp_path, **more)
  assert asked == [0, 8, 16]  # First samples of the batches at scale 2.
  assert [row['scale'] for row in json.loads(table.read_text())['rows']] == [1, 3, 2]


# Changes of the config, and what the refusal says.
REFUSED = {
  'score': ({'sweep__score': 'encoder_kid'}, "sweep.score='encoder_kid' is not .*: fid, sfid"),
  'interval': ({'sweep__guidance_lows': (-1.0,)}, 'low'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_an_impossible_sweep_is_refused_before_sampling(files, tmp_path, monkeypatch, name):
  changes, message = REFUSED[name]
  monkeypatch.setattr(generate.Generator, '__call__', lambda *_, **__: pytest.fail('sampled'))
  with pytest.raises(types.UserError, match=message):
    swept_by(files, tmp_path, **changes)


def test_meanflow_cannot_be_swept(tmp_path):
  """It is guided in training."""
  experiment = small_runs.make(
    method='meanflow', sampler__kind='average_velocity', sampler__guidance_scale=1.0
  )
  weights = picture_eval.write_weights(experiment, tmp_path / 'weights.npz')
  with pytest.raises(types.UserError, match='guided in training'):
    modes.sweep.run(experiment, str(tmp_path), str(weights))


def test_a_sweep_of_another_seed_is_refused_before_sampling(swept, files, monkeypatch):
  monkeypatch.setattr(generate.Generator, '__call__', lambda *_, **__: pytest.fail('sampled'))
  with pytest.raises(types.UserError, match=r'w1-t0-1\.json has scores of another protocol'):
    swept_by(files, swept[0].parent, sample__seed=1)
