"""Runs that go on with other values or from an earlier step: what is allowed, kept and said."""

import json
import pathlib
import re
import sys

import pytest

from diversedit_jax import types
from diversedit_jax.experiment import continuing, declarations, flat_config, run_dir

DATA = {'name': 'store/a', 'examples': 5, 'sha256': '1' * 64}


def config(changes):
  made = declarations.defaults()
  made.update(train=dict(steps=100), optimizer=dict(schedule='cosine'))
  made.update_from_flattened_dict(changes)
  return made


def start(path, changes=(), *, keys=(), step=None, data=DATA):
  return run_dir.open_for_training(
    str(path),
    config(dict(changes)),
    {'jax': '1'},
    data=data,
    write=True,
    continue_with=keys,
    continue_from=step,
  )


@pytest.fixture
def run(tmp_path):
  """A run at step 40 with a checkpoint at 20, and what it made on the way."""
  path = start(tmp_path / 'run')
  rows = []
  for step in (20, 40):
    for name in (
      'checkpoints/{}/x',
      'samples/preview-{:08d}.png',
      'telemetry/blocks-{:08d}.npz',
      'replay/step-{}.json',
    ):
      file = path / name.format(step)
      file.parent.mkdir(parents=True, exist_ok=True)
      file.write_text(str(step))
    rows.append(json.dumps({'step': step}) + '\n')
  (path / 'metrics.jsonl').write_text(''.join(rows))
  (path / 'eval' / 'during').mkdir(parents=True)
  (path / 'eval' / 'during' / 'best.json').write_text('{"step": 40}')
  (path / 'eval' / 'during' / 'best.safetensors').write_text('40')
  return path


# Values of keys that steer learning, and those that decide what is learned.
STEERING = {
  'optimizer.learning_rate': 5e-5,
  'optimizer.clip_norm': 0.5,
  'seed': 1,
  'model.dtype': 'bfloat16',
  'train.steps': 200,  # The schedule is not constant.
  'train.batch_size': 128,
  'data.flip': True,
  'method': 'flow+diverse',
}


@pytest.mark.parametrize(('key', 'value'), STEERING.items())
def test_the_refusal_of_another_value_shows_the_flag_with_which_it_is_accepted(run, key, value):
  with pytest.raises(types.UserError, match='belongs to another config') as refused:
    start(run, {key: value})
  old = json.loads((run / 'config.json').read_text())
  (shown,) = re.findall(r'add --continue_with=(\S+);', str(refused.value))
  assert start(run, {key: value}, keys=shown.split(',')) == run
  (kept,) = run.glob('config.until-40-*.json')
  assert json.loads(kept.read_text()) == old
  (entry,) = json.loads((run / 'changes.json').read_text())
  stored = flat_config.flatten(old)[key]
  assert entry == {'step': 40, 'changed': {key: {'old': stored, 'new': value}}}
  # The job is requeued; then somebody types the old command.
  start(run, {key: value}, keys=[key])
  assert len(continuing.history(run)) == 1
  with pytest.raises(types.UserError) as refused:
    start(run)
  assert f'{key}: stored {value!r}, given {stored!r}' in str(refused.value)


@pytest.mark.parametrize('method', ['flow', 'sra', 'flow+diverse', 'sra+dispersive'])
def test_microbatches_change_by_themselves_where_they_change_nothing(tmp_path, method):
  workdir, given = tmp_path / 'run', {'method': method, 'train.accumulate': 4}
  start(workdir, {'method': method})
  keys = []
  if method not in ('flow', 'sra'):  # Their loss is that of a microbatch.
    with pytest.raises(types.UserError, match='add --continue_with=train.accumulate;'):
      start(workdir, given)
    keys = ['train.accumulate']
  start(workdir, given, keys=keys)
  assert flat_config.stored(workdir)['train.accumulate'] == 4


@pytest.mark.parametrize('now', ['latents', None])
def test_a_run_that_called_its_encoders_latents_pixels_goes_on(tmp_path, now):
  encoder = {'rae.encoder': 'dinov2reg-vit-b'}
  start(tmp_path / 'run', {'data.space': 'pixels', **encoder})
  start(tmp_path / 'run', {'data.space': now, **encoder})
  assert flat_config.stored(tmp_path / 'run')['data.space'] == now


def test_only_what_is_named_changes(run):
  before = (run / 'config.json').read_bytes()
  with pytest.raises(types.UserError, match='it differs in seed: stored 0, given 1. To') as refused:
    start(run, {'seed': 1, 'optimizer.b2': 0.95}, keys=['optimizer.*'])
  assert 'add --continue_with=optimizer.*,seed; to go on as before, give --config.seed=0;' in str(
    refused.value
  )
  assert (run / 'config.json').read_bytes() == before
  start(run, {'seed': 1, 'optimizer.b2': 0.95}, keys=['optimizer.*', 'config.seed'])


@pytest.mark.parametrize(
  ('changes', 'what'),
  [
    ({'model.skip.enabled': True}, 'model.skip.enabled decides the network'),
    ({'interpolant.path': 'vp', 'seed': 1}, 'interpolant.path decides the network'),
    ({'method': 'repa'}, 'method decides the network'),
    ({'data.num_classes': 7}, 'data.num_classes decides the network'),
    ({'data.crop': 'center'}, 'data.crop decides the examples'),
    ({'optimizer.freeze': 'final'}, 'optimizer.freeze decides which parameters have which moments'),
    ({'optimizer.name': 'muon'}, 'optimizer.name decides which parameters have which moments'),
    ({'model.skip.enabled': True, 'data.size': 64}, 'decide the examples and the network'),
  ],
)
def test_network_and_data_stay_and_the_way_on_is_a_new_run_from_the_weights(run, changes, what):
  with pytest.raises(types.UserError, match=re.escape(what)) as refused:
    start(run, changes, keys=list(changes))
  assert f'--config.init_from={run}/checkpoints/40' in str(refused.value)
  for key in changes:
    assert f'{key}: stored' in str(refused.value)


def test_other_data_stay_refused_whatever_is_named(run):
  with pytest.raises(types.UserError, match='data.source decides the examples'):
    start(run, {'data.source': 'store:b'}, keys=['data.source'], data=DATA | {'sha256': '2' * 64})
  with pytest.raises(types.UserError, match='other data: .* --config.init_from=.*checkpoints/40'):
    start(run, data=DATA | {'sha256': '2' * 64})


@pytest.mark.parametrize(
  ('keys', 'message'),
  [
    (['optimizer.learning_rat'], "unknown key; did you mean 'optimizer.learning_rate'"),
    (['optimiser.*'], r"unknown key; did you mean 'optimizer.\*'"),
    (['*'], 'unknown key'),
    (['seed'], '--continue_with=seed: seed is 0 as the run has it'),
    (['optimizer.*'], r'--continue_with=optimizer.\*: all of optimizer.\* is as the run has it'),
  ],
)
def test_names_that_change_nothing_are_refused(run, keys, message):
  with pytest.raises(types.UserError, match=message):
    start(run, {'train.batch_size': 64}, keys=['train.batch_size', *keys])
  assert not (run / 'changes.json').exists()


@pytest.mark.parametrize('flags', [{'keys': ['seed']}, {'step': 20}])
def test_there_must_be_a_run_to_go_on_with(tmp_path, flags):
  with pytest.raises(types.UserError, match=r'--continue_.* holds no run that could go on'):
    start(tmp_path / 'typo', {'seed': 1}, **flags)
  assert not (tmp_path / 'typo').exists()


def test_going_back_loses_nothing_and_happens_once(run):
  files = lambda folder: sorted(p.read_text() for p in folder.rglob('*') if p.is_file())
  with pytest.raises(
    types.UserError, match=r'--continue_from=30: .* no such step; found \[20, 40\]'
  ):
    start(run, step=30)
  every = files(run)
  start(run, {'seed': 1}, keys=['seed'], step=20)
  assert continuing.newest_step(run) == 20
  (aside,) = (run / 'set_aside').iterdir()
  assert {p.relative_to(aside).as_posix() for p in aside.rglob('*') if p.is_file()} == {
    'checkpoints/40/x',
    'samples/preview-00000040.png',
    'telemetry/blocks-00000040.npz',
    'replay/step-40.json',
    'eval/during/best.json',
    'eval/during/best.safetensors',
    'metrics.jsonl',
  }
  assert set(every) <= set(files(run))
  back, changed = continuing.history(run)
  assert back == {'step': 40, 'rewound_to': 20, 'set_aside': f'set_aside/{aside.name}'}
  assert changed['step'] == 20 and set(changed['changed']) == {'seed'}
  # The job is requeued after it went on; then it goes back once more, with another seed.
  (run / 'checkpoints' / '30').mkdir()
  start(run, {'seed': 1}, keys=['seed'], step=20)
  assert continuing.newest_step(run) == 30
  start(run, {'seed': 2}, keys=['seed'], step=20)
  assert continuing.newest_step(run) == 20 and len(list((run / 'set_aside').iterdir())) == 2


def test_going_back_is_done_to_the_end_by_the_next_start_if_it_was_killed(run, monkeypatch):
  with monkeypatch.context() as killed:
    killed.setattr(pathlib.Path, 'rename', lambda *_: sys.exit('killed'))
    with pytest.raises(SystemExit):
      start(run, step=20)
  start(run, step=20)
  assert continuing.newest_step(run) == 20
  assert [entry['rewound_to'] for entry in continuing.history(run)] == [20]


def test_a_change_of_a_key_that_is_no_longer_there_hinders_nothing(run):
  gone = {'step': 20, 'changed': {'train.gone': {'old': 0, 'new': 1}}}
  (run / 'changes.json').write_text(json.dumps([gone]))
  start(run, {'seed': 1}, keys=['seed'])


def test_values_hold_after_the_step_to_which_a_run_took_them(tmp_path):
  change = lambda old, new: {'seed': {'old': old, 'new': new}}
  past = [
    {'step': 10, 'changed': change(0, 1)},
    {'step': 40, 'changed': change(1, 2)},
    {'step': 60, 'rewound_to': 30},
    {'step': 50, 'changed': change(2, 3)},
  ]
  (tmp_path / 'changes.json').write_text(json.dumps(past))
  assert continuing.changes(tmp_path) == [
    (10, change(0, 1)),
    (30, change(1, 2)),
    (50, change(2, 3)),
  ]
