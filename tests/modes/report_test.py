"""`--mode=report` on what runs of this version and of earlier ones recorded."""

import json
import pathlib
import shutil

from helpers import small_runs
import pytest

from diversedit_jax import types
from diversedit_jax.modes import report
from diversedit_jax.reporting import records


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """As runs before goodput.jsonl: weights, scores, no account; of which nothing was reported."""
  return small_runs.untrained(tmp_path_factory.mktemp('report') / 'run').workdir


@pytest.fixture
def recorded(run, tmp_path):
  """Two starts, of which the first was killed at step 22, with a checkpoint of step 10."""
  path = tmp_path / 'run'
  shutil.copytree(run, path)
  seconds = lambda train: dict(setup=1.0, compile=2.0, data=0.5, save=0.25, hooks=0.25, train=train)
  accounts = [
    {'step': 0, 'time': 101.0, 'began': 100.0, 'steps': 30},
    {'step': 10, 'time': 108.0, 'seconds': seconds(4.0)},
    {'step': 20, 'time': 112.0, 'seconds': seconds(8.0)},
    {'step': 10, 'time': 211.0, 'began': 210.0, 'steps': 30},
    {'step': 30, 'time': 222.0, 'seconds': seconds(8.0), 'ended': 'finished'},
  ]
  metrics = [
    {'step': 20, 'loss': 2.0, 'grad_norm': 1.0},
    {'step': 30, 'loss': 1.5, 'diverse/loss': 0.25, 'steps_per_second': 2.5},
    {'step': 30, 'eval/fid': 99.0},
  ]
  changes = [
    {'step': 10, 'changed': {'train.batch_size': {'old': 16, 'new': 32}}},
    {'step': 25, 'rewound_to': 10},
  ]
  for name, rows in (('goodput.jsonl', accounts), ('metrics.jsonl', metrics)):
    (path / name).write_text(''.join(json.dumps(row) + '\n' for row in rows))
  (path / 'changes.json').write_text(json.dumps(changes))
  return path


def test_the_numbers_of_a_run(recorded):
  lines = report.run([str(recorded)]).splitlines()
  told = {line[:14].strip(): line[14:] for line in lines if line[:14].strip()}
  assert told['steps'] == '30 of 30 (100%), 800 images'
  assert told['last report'] == 'step 30, loss 1.5, diverse/loss 0.25, 2.5 steps/second'
  assert told['checkpoints'] == '30'
  assert told['scores'] == 'eval/digits.json: class_consistency 0.5, frechet_distance 12'
  assert told['changes'] == 'step 10: train.batch_size 16 -> 32'
  assert 'step 25: back to step 10' in '\n'.join(lines)
  assert told['goodput'] == '50.0% of 24s in 2 starts'
  assert told['lost'].split() == ['4.0', 's', '16.7%', '10', 'steps', 'were', 'made', 'again']
  assert told['train'].split() == ['12.0', 's', '50.0%']
  assert told['stopped'].split() == ['98.0', 's', 'between', 'starts']
  assert told['starts'].endswith(', steps 0 to 20: no end was recorded')
  assert lines[-3].endswith(', steps 10 to 30: finished')
  assert told['page'] == f'{recorded}/report/index.html'
  assert told['not recorded'].startswith('the seconds after the last report of a start that was')
  written = json.loads((recorded / 'report' / 'report.json').read_text())
  assert written['goodput']['lost_steps'] == 10 and written['last']['loss'] == 1.5
  assert written['scores']['eval/digits.json']['scores']['frechet_distance'] == 12.0


def test_what_an_earlier_version_did_not_record_is_said_and_not_guessed(run, tmp_path):
  page = report.run([str(run)], str(tmp_path / 'mine'))
  assert 'no losses' in page and 'goodput.jsonl, which runs write since' in page
  written = json.loads((tmp_path / 'mine' / 'report' / 'report.json').read_text())
  assert (
    written['goodput'] is None and written['last'] is None and len(written['not_recorded']) == 2
  )
  assert written['steps'] == {'planned': 30, 'done': 30}  # By its checkpoint.
  assert not (run / 'report').exists()


def test_a_run_that_went_on_with_a_newer_version_says_so(recorded):
  rows = (recorded / 'goodput.jsonl').read_text().splitlines(keepends=True)
  (recorded / 'goodput.jsonl').write_text(''.join(rows[3:]))
  facts = records.gather(recorded)
  assert facts['not_recorded'] == ['where the seconds of steps 1 to 10 went']


def test_damaged_records_are_refused(recorded):
  (recorded / 'goodput.jsonl').write_text('[1]\n')
  with pytest.raises(types.UserError, match='goodput.jsonl is damaged'):
    report.run([str(recorded)])


def test_where_a_run_may_only_be_read_the_way_on_is_shown(recorded, monkeypatch):
  def touch(path):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(pathlib.Path, 'touch', touch)
  with pytest.raises(
    types.UserError, match='cannot be written: .*; --output=DIR writes the report'
  ):
    report.run([str(recorded)])
