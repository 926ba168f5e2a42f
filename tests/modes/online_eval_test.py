"""Evaluation while training: files of its own, the best so far across interruptions."""

import json
import shutil
import types as python_types

from helpers import logs, picture_eval, small_runs
import numpy as np
import pytest

from diversedit_jax import convert, modes, types
from diversedit_jax.evaluation import scorers
from diversedit_jax.modes import online_eval, run_context
from diversedit_jax.training import writers

tiny_inception, files = picture_eval.tiny_inception, picture_eval.files
pytestmark = pytest.mark.usefixtures('compilation_cached')
STEPS, EVERY, NUMBER = 8, 2, 12
SMALL = {
  'train__steps': STEPS,
  'checkpoint__every': 4,
  'eval__every': EVERY,
  'eval__every_number': NUMBER,
  'sampler__guidance_scale': 1.0,
}


def make(files, **changes):
  return picture_eval.make(files, **SMALL | changes)


@pytest.fixture(scope='module')
def run(files, tmp_path_factory):
  """A run that nothing disturbed, and the keys of `eval` that it read."""
  workdir = tmp_path_factory.mktemp('during') / 'run'
  with logs.noted() as told, small_runs.keys_read() as seen:
    modes.train.run(make(files), str(workdir))
  return python_types.SimpleNamespace(
    workdir=workdir, folder=workdir / online_eval.FOLDER, seen=seen, told=told
  )


def results(folder):
  """Results by step."""
  found = {path.stem: json.loads(path.read_text()) for path in folder.glob('step-*.json')}
  return {int(name.removeprefix('step-')): result for name, result in sorted(found.items())}


def fids(folder):
  return {step: result['scores']['fid'] for step, result in results(folder).items()}


def test_every_interval_has_its_scores_and_its_card(run):
  found = results(run.folder)
  assert list(found) == [2, 4, 6, 8]
  assert {p.name for p in run.folder.iterdir()} == {
    *(f'step-{step:08d}.json' for step in found),
    'best.json',
    'best.safetensors',
  }
  for step, result in found.items():
    protocol = result['protocol']
    assert (protocol['step'], protocol['num_samples'], protocol['weights']) == (step, 12, 'ema')
    assert protocol['checkpoint'] == f'checkpoints/{step}' and protocol['seconds'] > 0
    assert protocol['networks'] and protocol['reference'] and protocol['quantiser'] == 'truncate'
    assert 'FID-12 is not FID-50K' in ' '.join(result['warnings'])
  assert len(set(fids(run.folder).values())) == 4
  rows = {
    r['step']: r for r in writers.read_jsonl(run.workdir / 'metrics.jsonl') if 'eval/fid' in r
  }
  assert {step: row['eval/fid'] for step, row in rows.items()} == fids(run.folder)
  # Apart from final numbers, of which there are none.
  assert {p.name for p in (run.workdir / 'eval').iterdir()} == {'during', 'references'}
  assert {'eval.every', 'eval.every_number', 'eval.best'} <= run.seen


def test_what_makes_numbers_doubtful_is_told_once_and_kept_with_the_best(run):
  found = results(run.folder)
  lines = [f'step 2: {line}' for line in found[2]['warnings']]
  assert len(lines) > 2 and all(run.told.count(line) == 1 for line in lines)
  for step in list(found)[1:]:
    for line in set(found[step]['warnings']) & set(found[2]['warnings']):
      assert f'step {step}: {line}' not in run.told
  best = json.loads((run.folder / 'best.json').read_text())
  assert best['warnings'] == found[best['step']]['warnings']


def test_the_scores_are_those_of_eval_at_that_step(run, files, tmp_path):
  """The same labels, noise and weights; the final evaluation of a checkpoint says so too."""
  origin = str(run.workdir / 'checkpoints' / '8')
  experiment = make(files, eval__number=NUMBER)
  result, archive = modes.evaluate.run(experiment, str(tmp_path), origin)
  found = json.loads(result.read_text())
  last = results(run.folder)[8]
  assert found['scores'] == pytest.approx(last['scores'], rel=1e-9)
  assert found['protocol']['labels_sha256'] == last['protocol']['labels_sha256']
  assert found['protocol']['step'] == 8 and archive.is_file()


def test_the_best_weights_are_a_checkpoint(run, files, tmp_path):
  best = json.loads((run.folder / 'best.json').read_text())
  found = fids(run.folder)
  step = min(found, key=found.get)
  assert (best['score'], best['step'], best['value']) == ('fid', step, found[step])
  assert best['scores'] == results(run.folder)[step]['scores']
  file = run.folder / best['weights']
  experiment = make(files, eval__number=NUMBER)
  result, _ = modes.evaluate.run(experiment, str(tmp_path), str(file))
  scores = json.loads(result.read_text())['scores']
  assert scores == pytest.approx(best['scores'], rel=1e-9)
  made = modes.sample.run(make(files, sample__number=4), str(tmp_path), str(file))
  assert made[0].is_file()


def test_the_best_survives_an_interruption(files, tmp_path, monkeypatch):
  """The third evaluation fails; steps from the checkpoint at 4 on are trained and scored again."""
  values = iter([5.0, 1.0, None, 3.0, 4.0])
  score = scorers.PictureScorer.score

  def scored(self, batches, labels):
    value = next(values)
    if value is None:
      raise picture_eval.Interrupted
    found = score(self, batches, labels)
    found['scores']['fid'] = value
    return found

  monkeypatch.setattr(scorers.PictureScorer, 'score', scored)
  workdir = tmp_path / 'run'
  with pytest.raises(picture_eval.Interrupted):
    modes.train.run(make(files), str(workdir))
  folder = workdir / online_eval.FOLDER
  kept = (folder / 'best.safetensors').read_bytes()
  modes.train.run(make(files), str(workdir))
  assert list(results(folder)) == [2, 4, 6, 8]
  best = json.loads((folder / 'best.json').read_text())
  assert (best['step'], best['value']) == (4, 1.0)
  assert (folder / 'best.safetensors').read_bytes() == kept


def test_a_repeated_step_may_keep_its_weights_again(run, files, tmp_path):
  """The run is killed after it was evaluated and before the checkpoint was whole."""
  workdir = tmp_path / 'run'
  shutil.copytree(run.workdir, workdir)
  shutil.rmtree(workdir / 'checkpoints' / '8')
  before = convert.load(str(workdir / online_eval.FOLDER / 'best.safetensors'))
  modes.train.run(make(files), str(workdir))
  assert fids(workdir / online_eval.FOLDER) == pytest.approx(fids(run.folder), rel=1e-9)
  after = convert.load(str(workdir / online_eval.FOLDER / 'best.safetensors'))
  for key, value in before.items():
    np.testing.assert_array_equal(after[key], value)


def test_bests_of_other_protocols_are_not_compared(run, tmp_path):
  folder = tmp_path / 'during'
  shutil.copytree(run.folder, folder)
  best = json.loads((folder / 'best.json').read_text())
  worse = {'score': 'fid', 'value': best['value'] + 1, 'step': 10}
  assert not online_eval._is_best(folder, worse, best['identity'])
  assert online_eval._is_best(folder, worse | {'value': best['value'] - 1}, best['identity'])
  assert not online_eval._is_best(folder, worse | {'value': best['value']}, best['identity'])
  assert online_eval._is_best(folder, worse | {'step': best['step']}, best['identity'])
  assert online_eval._is_best(folder, worse, {**best['identity'], 'compared': {}})
  assert online_eval._is_best(folder, worse | {'score': 'kid'}, best['identity'])
  best |= {'score': 'inception_score', 'value': 5.0}
  (folder / 'best.json').write_text(json.dumps(best))
  for value, better in ((4.0, False), (6.0, True)):
    found = {'score': 'inception_score', 'value': value, 'step': 10}
    assert online_eval._is_best(folder, found, best['identity']) == better


# Changes, and what the refusal says; the first leaves no workdir behind.
REFUSED = {
  'labels': ({'eval__labels': 'file:absent.npy'}, "eval.labels='file:absent.npy' cannot be read"),
  'best': ({'eval__best': 'encoder_fid'}, "eval.best='encoder_fid' is not among .*: fid, sfid"),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_evaluated_is_refused_before_training(files, tmp_path, monkeypatch, name):
  changes, message = REFUSED[name]
  monkeypatch.setattr(run_context, 'resident', lambda *_: pytest.fail('trained'))
  with pytest.raises(types.UserError, match=message):
    modes.train.run(make(files, **changes), str(tmp_path / 'run'))
  assert (tmp_path / 'run').exists() == (name == 'best')
