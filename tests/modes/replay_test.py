"""`--mode=replay`: a step of a run comes to the same bits, and what is bad in it is named."""

import dataclasses
import json
import shutil

from helpers import bad_runs
import jax
import numpy as np
import pytest

from diversedit_jax import checkpoint, modes, trees, types
from diversedit_jax.modes import command, run_context
from diversedit_jax.training import average

pytestmark = pytest.mark.usefixtures('compilation_cached')
BAD = 18  # The step with a bad example; a checkpoint lies at 5, 10, 15, ..., a row at 10, 20, 30.


def experiment(**changes):
  kept = {'checkpoint.every': 5, 'checkpoint.keep': 10, 'train.on_nonfinite': 'rollback'}
  kept['train.averages'] = ('0.5', 'std=0.1')
  return bad_runs.spoiled(BAD, **(kept | changes))


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp('replay') / 'run'
  modes.train.run(experiment(), str(workdir))
  return workdir


@pytest.fixture
def copy(run, tmp_path):
  return shutil.copytree(run, tmp_path / 'run')


def replayed(workdir, step, output=None, **changes):
  """The facts of the file, whose findings and comparisons the text shows."""
  text = modes.replay.run(experiment(**changes), str(workdir), step, output and str(output))
  facts = json.loads(((output or workdir) / 'replay' / f'step-{step}.json').read_text())
  for line in (*facts['recorded'], *facts['findings']):
    assert line in text
  return facts


@pytest.mark.slow
def test_steps_come_to_the_same_bits_from_wherever_and_nothing_else_is_written(copy):
  before = small_files(copy)
  facts = replayed(copy, 10)
  same_rows = 'rows of metrics.jsonl, step 10: the same to the bit'
  arrays = 'checkpoint of step 10: all 212 arrays the same to the bit'
  assert facts['from'].endswith('checkpoints/5') and facts['recorded'] == [same_rows, arrays]
  for step in (5, 10):
    shutil.rmtree(copy / 'checkpoints' / str(step))
  facts = replayed(copy, 15)  # Over the row of step 10, whose sums begin with step 1.
  assert facts['from'] == 'the beginning'
  assert facts['recorded'] == [same_rows, arrays.replace('10', '15')]
  assert facts['findings'] == []
  mean = np.mean([example['loss'] for example in facts['examples']])
  assert facts['metrics']['velocity'] == pytest.approx(mean)
  facts = replayed(copy, 20)  # Past the step that is left out.
  assert facts['recorded'] == [same_rows.replace('10', '20'), arrays.replace('10', '20')]
  written = {f'replay/step-{step}.json' for step in (10, 15, 20)}
  after = small_files(copy)
  gone = {name for name in before if name.startswith(('checkpoints/5/', 'checkpoints/10/'))}
  assert after.keys() == before.keys() - gone | written
  assert all(after[name] == before[name] for name in before.keys() - gone)


def small_files(workdir):
  return {
    path.relative_to(workdir).as_posix(): path.read_bytes()
    for path in workdir.rglob('*')
    if path.is_file()
  }


@pytest.mark.slow
def test_the_bad_example_of_a_step_that_was_left_out_is_named(run, tmp_path):
  facts = replayed(run, BAD, tmp_path)  # The run may only be read.
  assert not (run / 'replay').exists()
  index = bad_runs.example_of(experiment(), BAD)
  assert facts['findings'][0] == f'images: example {index} is not finite'
  assert 'output of block 1, the first such' in facts['findings'][1]
  assert facts['recorded'][-1].startswith('left out of the run, because ')
  worst, *others = facts['examples']
  assert (worst['example'], worst['row'], worst['loss']) == (index, bad_runs.ROW, 'nan')
  losses = [example['loss'] for example in others]
  assert losses == sorted(losses, reverse=True) and len(facts['examples']) == 32
  assert facts['metrics']['loss'] == 'nan'
  assert [block['block'] for block in facts['blocks']] == [1, 2]


@pytest.mark.slow
def test_what_differs_is_told_and_what_else_is_not_as_it_was(copy, caplog):
  keys = {4: 'train.label_dropout', 7: 'seed', 9: 'train.clip'}
  changes = [{'step': at, 'changed': {key: {'old': 1, 'new': 0}}} for at, key in keys.items()]
  (copy / 'changes.json').write_text(json.dumps(changes))
  (versions,) = json.loads((copy / 'versions.json').read_text())
  (copy / 'versions.json').write_text(json.dumps([versions | {'jax': '0.1'}]))
  rows = [json.loads(line) for line in (copy / 'metrics.jsonl').read_text().splitlines()]
  rows[0]['velocity'] += 1e-9
  (copy / 'metrics.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
  shutil.rmtree(copy / 'checkpoints' / '10')
  shutil.copytree(copy / 'checkpoints' / '15', copy / 'checkpoints' / '10')
  row, state, values, packages = replayed(copy, 10, **{'train.max_skipped': 9})['recorded']
  assert row.startswith('the row of step 10 differs: velocity ') and 'grad_norm' not in row
  assert state.startswith('checkpoint of step 10 differs: params/')
  assert values.startswith('not as in the run: train.max_skipped: stored ')
  assert packages == f"not as in the run: jax: stored '0.1', given {versions['jax']!r}"
  told = 'until step 9 the run had other values (seed, train.clip); steps 6 to 10 are'
  assert told in caplog.text


@pytest.mark.slow
def test_the_block_whose_weights_overflow_is_named(copy):
  for step in (20, 25, 30):
    shutil.rmtree(copy / 'checkpoints' / str(step))
  made = experiment()
  trainable = run_context.make_trainable(made, run_context.make_mesh(made))
  more = map(average.item, trainable.averages)
  checkpoints = checkpoint.Checkpoints(str(copy / 'checkpoints'), more=more, keep=20)
  _, items, meta = checkpoints.restore(trainable.targets(), 15)

  def enlarged(path, x):
    name = trees.path_name(path).removeprefix('model/blocks/second/mlp/')
    value = {'fc1/bias': 1e6, 'fc2/kernel': 1e38}.get(name)
    return x if value is None else x.at[0].set(value)

  items['params'] = jax.tree_util.tree_map_with_path(enlarged, items['params'])
  checkpoints.save(16, items, meta)
  checkpoints.close()
  facts = replayed(copy, 17)
  assert facts['from'].endswith('checkpoints/16')
  assert facts['findings'][0].startswith('output of block 2, the first such: ')
  assert [block['activation_rms'] in ('nan', 'inf') for block in facts['blocks']] == [False, True]


@pytest.mark.slow
def test_a_run_that_goes_on_after_skipping_is_replayed_too(tmp_path):
  workdir, skipping = tmp_path / 'run', {'train.on_nonfinite': 'skip'}
  modes.train.run(experiment(**skipping), str(workdir))
  facts = replayed(workdir, BAD, **skipping)
  assert facts['metrics']['skipped'] == 1
  facts = replayed(workdir, 20, **skipping)
  assert [line.partition(':')[2] for line in facts['recorded']] == [
    ' the same to the bit',
    ' all 212 arrays the same to the bit',
  ]


@pytest.mark.slow
def test_impossible_replays_are_refused(run, copy, tmp_path):
  refuse = lambda message: pytest.raises(types.UserError, match=message)
  for step in (0, 31):
    with refuse(f'--step={step}: steps are counted from 1 to train.steps=30'):
      modes.replay.run(experiment(), str(run), step)
  with refuse('differs in seed: stored 0, given 1.* give --config.seed=0'):
    modes.replay.run(experiment(seed=1), str(run), 12)
  with refuse('holds no run'):
    modes.replay.run(experiment(), str(tmp_path / 'none'), 12)
  made = experiment()
  others = dataclasses.replace(made.source, labels=made.source.labels[::-1])
  with refuse('learns from other data'):
    modes.replay.run(dataclasses.replace(made, source=others), str(run), 12)
  (copy / 'init.json').write_text('{"weights": "elsewhere"}')
  with refuse('no checkpoint before that step, found 5, 10, 15, 20, 25, 30, and it began from'):
    modes.replay.run(experiment(), str(copy), 5)
  shutil.rmtree(copy / 'checkpoints')
  with refuse('train first'):
    modes.replay.run(experiment(), str(copy), 5)


def test_the_flag_belongs_to_the_mode():
  with pytest.raises(types.UserError, match='--mode=replay needs --step=N'):
    command.Command(mode='replay')
  with pytest.raises(types.UserError, match='--step is not for --mode=train, but for replay'):
    command.Command(mode='train', step=3)
