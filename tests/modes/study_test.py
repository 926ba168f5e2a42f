"""`--mode=study` on runs of a few steps: trained, continued, gathered, told."""

import gc
import json
import os
import signal

from helpers import bucket, picture_eval, small_runs
import jax
import numpy as np
import pytest

from diversedit_jax import checkpoint, config_file, paths, signals, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.analysis import drawing
from diversedit_jax.evaluation import digits
from diversedit_jax.experiment import flat_config, study
from diversedit_jax.modes import study as study_mode
from diversedit_jax.modes import study_results, train
from diversedit_jax.training import writers

_RUN = dict(train__steps=8, optimizer__warmup_steps=2, eval__every=4, eval__every_number=40)
_RUN |= dict(log__every=4, log__telemetry_every=0, preview__every=0, checkpoint__every=8)
_RUN |= dict(analysis__parts=('steps',), analysis__times=(0.5,))


def small(**changes):
  return small_runs.make_config(**{**_RUN, **changes})


def asked(seeds=(0,), **variants):
  variants = variants or {'plain': small(method='flow'), 'diverse': small()}
  return study.config('A small one', variants, seeds)


@pytest.fixture(scope='module')
def done(tmp_path_factory):
  """A study of two variants in two parts: its folder, and what each part wrote."""
  folder = tmp_path_factory.mktemp('study')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(study_results, '_ROUNDS', 2)
    patch.setattr(drawing, 'DPI', 60)
    written = [study_mode.run(asked(), 'pair', str(folder), part=f'{i}/2') for i in (1, 2)]
  return folder, written


def test_the_parts_of_a_study_make_one_table(done):
  folder, written = done
  assert [finished for _, finished in written] == [True, True]
  assert [path.name for path in written[1][0]] == ['pair.json', 'pair.md', 'pair.svg', 'pair.png']
  results = json.loads((folder / 'pair.json').read_text())
  assert [run['variant'] for run in results['runs']] == ['plain', 'diverse']
  assert results['variants']['diverse']['changes'] == {'method': 'flow+diverse'}
  assert (results['score'], results['best']) == ('frechet_distance', 'min')
  assert set(results['floors']) == {'frechet_distance', 'class_consistency'}
  for run in results['runs']:
    rows = writers.read_jsonl(folder / run['variant'] / 'seed-0' / 'metrics.jsonl')
    expected = [[r['step'], r['eval/frechet_distance']] for r in rows if len(r) == 3]
    assert [s for s, _ in run['scores']['frechet_distance']] == [4, 8]
    for (_, found), (_, score) in zip(run['scores']['frechet_distance'], expected, strict=True):
      assert found == pytest.approx(score, rel=1e-5)
  for run in results['runs']:
    [(step, score)] = run['series']['cka diversity, t=0.5']  # There is one checkpoint.
    assert step == 8 and 0 < score < 1.5
  plain, diverse = results['variants']['plain'], results['variants']['diverse']
  assert diverse['parameters'] == plain['parameters']
  assert plain['flops_per_step'] > 0 and plain['seconds_per_step'] > 0
  assert '| diverse | 1 |' in (folder / 'pair.md').read_text()


def test_what_is_done_is_not_trained_again(done, monkeypatch):
  folder, _ = done
  monkeypatch.setattr(train, 'run', lambda *_: pytest.fail('trained again'))
  known = json.loads((folder / 'pair.json').read_text())
  study_mode.run(asked(), 'pair', str(folder))
  assert json.loads((folder / 'pair.json').read_text()) == known  # Its costs are not timed again.


def test_table_and_figure_are_made_again_from_the_results_alone(done, tmp_path):
  folder, _ = done
  (tmp_path / 'pair.json').write_bytes((folder / 'pair.json').read_bytes())
  study_mode.run(asked(), 'pair', output=str(tmp_path))
  for name in ('pair.md', 'pair.svg'):
    assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


def test_a_run_that_diverges_is_told_and_the_others_go_on(done, tmp_path, monkeypatch):
  folder, _ = done
  for run in ('plain', 'diverse'):
    (tmp_path / run).symlink_to(folder / run)
  bad = small(optimizer__learning_rate=1e30, optimizer__clip_norm=0.0)
  monkeypatch.setattr(study_results, '_costs', lambda asked: {n: {} for n in asked.variants})
  variants = {'plain': small(method='flow'), 'wild': bad, 'diverse': small()}
  given = asked(**variants)
  study_mode.run(given, 'wild', str(tmp_path))
  results = json.loads((tmp_path / 'wild.json').read_text())
  plain, wild, diverse = results['runs']
  assert plain['failed'] is None and diverse['failed'] is None and diverse['scores']
  assert 1 <= wild['failed']['step'] <= 8 and 'is inf' in wild['failed']['because']
  assert study_results.is_done(tmp_path / 'wild' / 'seed-0', bad)  # And is not tried again.


def test_a_signal_ends_the_study(tmp_path, monkeypatch):
  monkeypatch.setattr(train, 'run', lambda *_: False)
  assert study_mode.run(asked(), 'pair', str(tmp_path)) == ([], False)


def test_a_signal_in_the_last_step_of_a_run_ends_the_study_too(tmp_path, monkeypatch):
  begun = []

  def finish(experiment, place):
    begun.append(place)
    with signals.stop_requested():
      os.kill(os.getpid(), signal.SIGTERM)
    return True  # It was the last step.

  monkeypatch.setattr(train, 'run', finish)
  given = asked(plain=small(analysis__parts=()), other=small(analysis__parts=()))
  assert study_mode.run(given, 'pair', str(tmp_path)) == ([], False)
  assert len(begun) == 1


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model__depth': 3, 'model__skip__enabled': True}, "variant 'other': .*needs an even depth"),
    ({'eval__every': 0}, "variant 'other' has eval.every=0"),
    ({'train__steps': 12}, 'differ in train.steps: 8 of plain, 12 of other'),
    ({'eval__every_number': 50}, 'differ in eval.every_number: 40 of plain, 50 of other'),
    ({'eval__best': 'class_consistency'}, 'differ in eval.best'),
  ],
)
def test_variants_are_checked_before_any_is_trained(changes, words, tmp_path, monkeypatch):
  monkeypatch.setattr(train, 'run', lambda *_: pytest.fail('trained'))
  with pytest.raises(types.UserError, match=words):
    study_mode.run(asked(plain=small(), other=small(**changes)), 'bad', str(tmp_path))


@pytest.mark.parametrize('name', ['digits_parts', 'digits_diversity', 'digits_methods'])
def test_shipped_studies_can_be_trained(name, tmp_path, monkeypatch):
  begun = []
  monkeypatch.setattr(train, 'run', lambda experiment, place: begun.append(experiment) or False)
  given = config_file.load(f'studies/{name}:seeds=1')
  study_mode.run(given, name, str(tmp_path))
  variants = study.read(given).variants
  assert len(begun) == 1  # All have been checked before.
  assert len({str(flat_config.of(config)) for config in variants.values()}) == len(variants)


def test_the_study_of_cifar10_can_be_trained(tmp_path, monkeypatch):
  monkeypatch.setattr(train, 'run', lambda *_: False)
  for split in ('train', 'test'):
    picture_eval.write_pictures(tmp_path / split)
  arguments = f'data=folder:{tmp_path}/{{split}},classifier={tmp_path}/c.safetensors,small,seeds=1'
  given = config_file.load(f'studies/cifar10_parts:{arguments}')
  config_file.override(given, ['train.batch_size=16'])
  assert study_mode.run(given, 'cifar10', str(tmp_path / 'runs')) == ([], False)


def test_neither_runs_nor_results_is_refused():
  with pytest.raises(types.UserError, match='--mode=study needs --workdir=DIR'):
    study_mode.run(asked(), 'pair')


def test_a_share_of_no_runs_is_refused(tmp_path):
  with pytest.raises(types.UserError, match='--shard=1/2 is a share of the runs, which need'):
    study_mode.run(asked(), 'pair', output=str(tmp_path), part='1/2')


def test_several_processes_are_refused_and_told_the_way_on(tmp_path, monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  with pytest.raises(types.UserError, match='is for one process.*--shard=1/4'):
    study_mode.run(asked(), 'pair', str(tmp_path))
  assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
  'changes',
  [
    {'optimizer__learning_rate': 0.25},  # Trained otherwise;
    {'eval__every_number': 50},  # scored otherwise, which a run may change on its way.
    {'sampler__steps': 3},
  ],
)
def test_runs_of_another_config_are_not_told_as_those_of_this_one(changes, done, monkeypatch):
  folder, _ = done
  monkeypatch.setattr(train, 'run', lambda *_: pytest.fail('trained'))
  variants = {'plain': small(method='flow', **changes), 'diverse': small(**changes)}
  [key] = (name.replace('__', '.') for name in changes)
  with pytest.raises(types.UserError, match=rf'plain/seed-0 is a run of another config.* {key}: '):
    study_mode.run(asked(**variants), 'pair', str(folder))


def test_what_scores_do_not_depend_on_may_change(done, monkeypatch):
  folder, _ = done
  monkeypatch.setattr(train, 'run', lambda *_: pytest.fail('trained'))
  changes = dict(log__every=2, eval__name='other', data__prefetch=1)
  variants = {'plain': small(method='flow', **changes), 'diverse': small(**changes)}
  assert study_mode.run(asked(**variants), 'pair', str(folder))[1]


def test_runs_that_end_while_costs_are_timed_are_in_the_table(done, tmp_path, monkeypatch):
  folder, _ = done
  (tmp_path / 'plain').symlink_to(folder / 'plain')

  def costs(asked):
    (tmp_path / 'diverse').symlink_to(folder / 'diverse')  # Another share of the study ends.
    return {name: {} for name in asked.variants}

  monkeypatch.setattr(study_results, '_costs', costs)
  study_mode.run(asked(), 'pair', str(tmp_path), part='1/2')
  results = json.loads((tmp_path / 'pair.json').read_text())
  assert [run['variant'] for run in results['runs']] == ['plain', 'diverse']


def test_a_state_that_cannot_be_saved_ends_its_own_run_only(tmp_path, monkeypatch):
  begun = []

  def diverge(experiment, place):
    begun.append(place)
    try:
      raise checkpoint.NotFinite(4, 'params not finite', 'none')
    except checkpoint.NotFinite as error:
      raise types.UserError('told with the way on') from error

  monkeypatch.setattr(train, 'run', diverge)
  monkeypatch.setattr(study_results, '_costs', lambda asked: {n: {} for n in asked.variants})
  study_mode.run(asked(), 'pair', str(tmp_path))
  results = json.loads((tmp_path / 'pair.json').read_text())
  failed = {'step': 4, 'because': 'params not finite'}
  assert len(begun) == 2 and [run['failed'] for run in results['runs']] == [failed] * 2


def test_samples_that_are_not_finite_end_their_own_run_only(tmp_path, monkeypatch):
  samples = np.full((2, 8, 8, 1), np.nan)
  labels = np.zeros(2, np.int32)
  score = lambda *_: digits.DigitsReference.build().evaluate(samples, labels)
  monkeypatch.setattr(train, 'run', score)
  monkeypatch.setattr(study_results, '_costs', lambda asked: {n: {} for n in asked.variants})
  study_mode.run(asked(), 'pair', str(tmp_path))
  results = json.loads((tmp_path / 'pair.json').read_text())
  failed = {'step': 0, 'because': '2 of 2 samples have values that are not finite'}
  assert [run['failed'] for run in results['runs']] == [failed] * 2


def test_between_its_turns_a_variant_holds_a_batch_on_the_devices_and_no_network(done):
  del done  # Its programs are kept.
  size = lambda: sum(array.nbytes for array in jax.live_arrays())
  gc.collect()
  before, experiment = size(), experiment_lib.build(small())
  take = study_results._stepper(experiment)
  assert take(1) > 0
  gc.collect()
  batch = 2 * 32 * (8 * 8 + 1) * 4
  assert size() - before < batch


def test_a_study_in_a_bucket_is_read_and_told_there(done, monkeypatch):
  folder, _ = done
  monkeypatch.setattr(train, 'run', lambda *_: pytest.fail('trained again'))
  there = paths.path(bucket.new(), bucket=True)
  for file in folder.rglob('*'):
    if file.suffix in ('.json', '.jsonl'):
      (there / str(file.relative_to(folder))).write_bytes(file.read_bytes())
  written, finished = study_mode.run(asked(), 'pair', str(there))
  assert finished
  for path in written:
    assert paths.is_bucket(path) and path.is_file()
    if path.suffix in ('.json', '.md', '.svg'):
      assert path.read_bytes() == (folder / path.name).read_bytes()


def test_numbers_that_are_not_finite_are_no_points_of_a_curve(tmp_path):
  rows = [{'step': 4, 'velocity': 0.5}, {'step': 8, 'velocity': float('nan')}]
  (tmp_path / 'metrics.jsonl').write_text(''.join(f'{json.dumps(row)}\n' for row in rows))
  one = next(study.read(asked()).runs())
  assert study_results._records(tmp_path, one)['series'] == {'velocity': [[4, 0.5]]}
