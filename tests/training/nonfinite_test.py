"""Steps that are not finite: left out, counted, bounded, and the rest as if they had never been."""

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys

from helpers import bad_runs, killed_runs, small_runs, tiny
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diversedit_jax import checkpoint, modes, rng, sharding, trees, types
from diversedit_jax.data import pipeline
from diversedit_jax.methods import base
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import taps
from diversedit_jax.modes import run_context
from diversedit_jax.training import nonfinite, step
from diversedit_jax.training import state as state_lib

pytestmark = pytest.mark.usefixtures('compilation_cached')
BAD = (8, 20)
LAST = small_runs.STEPS


def arrays(workdir, at=LAST):
  return killed_runs.arrays(workdir, at)


def rows(workdir):
  return killed_runs.rows(workdir)


def record(workdir):
  return json.loads((workdir / 'left_out.json').read_text())


def assert_same(one, other):
  assert one.keys() == other.keys() and len(one) > 50
  for name, x in one.items():
    np.testing.assert_array_equal(x, other[name], err_msg=name)


@pytest.fixture(scope='module')
def by_hand():
  """Arrays after the last step, of a loop that does nothing but count in the bad steps."""
  experiment = bad_runs.spoiled(*BAD)
  mesh = sharding.make_mesh()
  trainable = run_context.make_trainable(experiment, mesh)
  compiled = step.compile_step(
    run_context.make_step(experiment, trainable), trainable.shardings, mesh
  )
  steps = pipeline.Steps(source=experiment.source, seed=0, batch_size=32)
  key = jax.random.key(experiment.seed)
  with jax.set_mesh(mesh):
    state = trainable.init(rng.stream(key, 'init'))
    for k in range(LAST):
      if k + 1 in BAD:
        state = state.replace(step=state.step + 1)
      else:
        state, _ = compiled(state, sharding.put_batch(steps(k), mesh, 32), {})
  parts = {'params': state.params, 'ema': state.ema, 'opt': state.opt_state}
  return {name: np.asarray(x) for name, x in trees.named_leaves(parts).items()}


@pytest.fixture(scope='module')
def rolled_back(tmp_path_factory):
  """A run that went back twice: to its beginning, and to the checkpoint of step 15."""
  workdir = tmp_path_factory.mktemp('back') / 'run'
  assert modes.train.run(bad_runs.spoiled(*BAD, **{'train.on_nonfinite': 'rollback'}), str(workdir))
  return workdir


def check_record(workdir):
  experiment = bad_runs.spoiled()
  assert [entry['step'] for entry in record(workdir)] == list(BAD)
  for entry in record(workdir):
    assert 'loss is nan' in entry['because'] and 'grad_norm is nan' in entry['because']
    assert len(entry['examples']) == 32
    assert entry['examples'][bad_runs.ROW] == bad_runs.example_of(experiment, entry['step'])
  assert [row.get('skipped') for row in rows(workdir)] == [1, 1, None]
  assert all(np.isfinite(list(row.values())).all() for row in rows(workdir))


def test_rollback_is_a_run_that_never_applied_these_updates(rolled_back, by_hand):
  check_record(rolled_back)
  assert_same(arrays(rolled_back), by_hand)


@pytest.mark.slow
def test_rollback_goes_on_bit_for_bit_wherever_it_was_killed(rolled_back, tmp_path):
  experiment = bad_runs.spoiled(*BAD, **{'train.on_nonfinite': 'rollback'})
  # Killed after step 20 was recorded, and before the record of it.
  for known in (2, 1):
    workdir = tmp_path / str(known)
    shutil.copytree(rolled_back, workdir)
    shutil.rmtree(workdir / 'checkpoints' / str(LAST))
    (workdir / 'left_out.json').write_text(json.dumps(record(rolled_back)[:known]))
    modes.train.run(experiment, str(workdir))
    assert record(workdir) == record(rolled_back) and rows(workdir) == rows(rolled_back)
    assert_same(arrays(workdir), arrays(rolled_back))


@pytest.mark.slow
def test_skipping_leaves_out_the_same_steps_without_going_back(tmp_path, by_hand, caplog):
  experiment = bad_runs.spoiled(*BAD, **{'train.on_nonfinite': 'skip'})
  modes.train.run(experiment, str(tmp_path / 'run'))
  check_record(tmp_path / 'run')
  assert 'continuing' not in caplog.text
  found = arrays(tmp_path / 'run')
  assert found.keys() == by_hand.keys()
  for name, x in found.items():  # Another program, which may round otherwise.
    np.testing.assert_allclose(x, by_hand[name], rtol=1e-4, atol=1e-5, err_msg=name)

  # Resumed in the middle, it is the same to the bit.
  workdir = tmp_path / 'cut'
  shutil.copytree(tmp_path / 'run', workdir)
  shutil.rmtree(workdir / 'checkpoints' / str(LAST))
  modes.train.run(experiment, str(workdir))
  assert record(workdir) == record(tmp_path / 'run') and rows(workdir) == rows(tmp_path / 'run')
  assert_same(arrays(workdir), found)


@pytest.mark.slow
@pytest.mark.parametrize('policy', ['skip', 'rollback'])
def test_no_more_steps_are_left_out_than_a_run_may(tmp_path, policy):
  workdir = tmp_path / 'run'
  limited = {'train.on_nonfinite': policy, 'train.max_skipped': 1}
  with pytest.raises(types.UserError) as error:
    modes.train.run(bad_runs.spoiled(*BAD, **limited), str(workdir))
  assert 'step 20: ' in str(error.value) and 'train.max_skipped=1' in str(error.value)
  assert [entry['step'] for entry in record(workdir)] == [8]
  with pytest.raises(types.UserError, match='step 20'):  # However often it is started.
    modes.train.run(bad_runs.spoiled(*BAD, **limited), str(workdir))
  assert modes.train.run(bad_runs.spoiled(*BAD, **limited | {'train.max_skipped': 2}), str(workdir))


@pytest.mark.slow
def test_a_run_that_stopped_goes_on_by_rollback_and_keeps_what_it_left_out(tmp_path, rolled_back):
  workdir = tmp_path / 'run'
  with pytest.raises(types.UserError, match='step 8: .*train.on_nonfinite=rollback') as error:
    modes.train.run(bad_runs.spoiled(*BAD), str(workdir))
  assert 'last good checkpoint: none' in str(error.value)
  assert not (workdir / 'left_out.json').exists()
  modes.train.run(bad_runs.spoiled(*BAD, **{'train.on_nonfinite': 'rollback'}), str(workdir))
  assert_same(arrays(workdir), arrays(rolled_back))
  shutil.rmtree(workdir / 'checkpoints' / str(LAST))
  modes.train.run(bad_runs.spoiled(*BAD), str(workdir))  # Stops at nothing that is recorded.
  assert_same(arrays(workdir), arrays(rolled_back))


@pytest.mark.slow
def test_going_back_takes_later_steps_off_the_list(tmp_path, rolled_back):
  workdir = tmp_path / 'run'
  shutil.copytree(rolled_back, workdir)
  other = {'train.on_nonfinite': 'rollback', 'seed': 1}
  modes.train.run(bad_runs.spoiled(**other), str(workdir), continue_with=['seed'], continue_from=15)
  assert [entry['step'] for entry in record(workdir)] == [8]
  (aside,) = (workdir / 'set_aside').glob('*/left_out.json')
  assert [entry['step'] for entry in json.loads(aside.read_text())] == list(BAD)


@pytest.mark.slow
def test_one_device_with_a_bad_row_stops_the_update_on_all(tmp_path):
  root = pathlib.Path(__file__).parents[2]
  helper = root / 'tests' / 'helpers' / 'one_bad_device.py'
  subprocess.run(
    [sys.executable, str(helper), str(tmp_path / 'found.npz')],
    check=True,
    cwd=root,
    env=os.environ | {'PYTHONPATH': f'{root}:{root / "tests"}'},
  )
  found = small_runs.arrays(tmp_path / 'found.npz')
  assert found['skipped'].tolist() == [0, 1, 0] and found['step'].tolist() == [1, 2, 3]
  assert np.isnan(found['loss'][1]) and np.isfinite(found['loss'][[0, 2]]).all()
  # One array of all of the state's bits for each device after each step.
  assert found['bits'].shape[:2] == (3, 8)
  np.testing.assert_array_equal(found['bits'][1], found['bits'][0])
  assert (found['bits'][2] != found['bits'][1]).any(axis=-1).all()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Told(base.Term):
  """A loss that the batch tells; and a root whose gradient is not finite where that says 0."""

  def tap(self, key, depth):
    return taps.chosen([0])

  def loss(self, features, context):
    told = context.noisy.batch
    under = told['root'][0] + 0.0 * jnp.sum(features)
    return told['term'][0] + jnp.sqrt(under) - 1, {'loss': told['term'][0]}


Told.name = 'told'


@pytest.fixture(scope='module')
def guarded():
  """A compiled step of a small network that skips, its state and a batch."""
  architecture, tx = tiny.architecture(depth=1), optax.adam(1e-2)
  graphdef, params = tiny.parameters(architecture)
  run = jax.jit(
    step.make_step(
      objective_lib.Objective(flow=tiny.interpolant(), terms=(Told(),)),
      graphdef,
      tx,
      key=jax.random.key(0),
      ema_decay=0.5,
      learning_rate=lambda step: 1e-2,
      skip=True,
    )
  )
  state = state_lib.TrainState(
    step=jnp.int32(4), params=params, ema=params, opt_state=tx.init(params)
  )
  batch = {k: v for k, v in tiny.batch().items() if '/' not in k}
  return run, state, batch | {'term': jnp.zeros(4), 'root': jnp.ones(4)}


@pytest.mark.parametrize(
  ('name', 'value', 'told'),
  [
    ('labels', 1, ()),  # Nothing is bad.
    ('images', np.nan, ('loss', 'velocity', 'grad_norm')),
    ('term', np.inf, ('loss', 'told/loss')),
    ('root', 0.0, ('grad_norm',)),
  ],
)
def test_a_step_is_skipped_for_all_that_is_known_before_its_update(guarded, name, value, told):
  run, state, batch = guarded
  after, metrics = run(state, batch | {name: batch[name].at[0].set(value)}, {})
  assert {k for k, v in metrics.items() if not np.isfinite(v)} == {*told}
  assert int(metrics['skipped']) == bool(told) and int(after.step) == 5
  before, after = (trees.named_leaves((s.params, s.ema, s.opt_state)) for s in (state, after))
  same = [np.array_equal(before[name], after[name]) for name in before]
  assert all(same) if told else not any(same)


def test_a_list_is_as_long_as_it_may_be_and_only_one_process_writes_it(tmp_path):
  file = tmp_path / 'left_out.json'
  one, other = (
    nonfinite.LeftOut(file, most=2, write=write, examples=lambda step: [step])
    for write in (True, False)
  )
  for steps in (one, other):
    steps.add(4, 'loss is nan')
    steps.add(2, 'loss is inf')
    with pytest.raises(nonfinite.NonFiniteLoss, match='step 9: loss is nan; .*max_skipped=2'):
      steps.add(9, 'loss is nan')
    assert [k in steps for k in (2, 3, 4, 9)] == [True, False, True, False]
  found = record(tmp_path)
  assert [entry['step'] for entry in found] == [4, 2]
  again = nonfinite.LeftOut(file, most=3, write=False, examples=lambda step: [step])
  again.add(9, 'loss is nan')
  assert record(tmp_path) == found and 9 in again and 4 in again
  nonfinite.forget_after(tmp_path, 3)
  assert [entry['step'] for entry in record(tmp_path)] == [2]


def test_a_run_from_other_weights_starts_again_from_them(tmp_path):
  """Its initial parameters were given to the state that is gone."""
  left_out = nonfinite.LeftOut(
    tmp_path / 'left_out.json', most=3, write=True, examples=lambda step: [7, 9]
  )

  def attempt(placed):
    raise nonfinite.NonFiniteLoss(4, 'loss is nan', 'stopped')

  with (
    contextlib.closing(checkpoint.Checkpoints(str(tmp_path / 'ck'))) as checkpoints,
    pytest.raises(types.UserError, match='step 4: loss is nan; .*starts again from the weights'),
  ):
    nonfinite.with_rollback(
      attempt, object(), active=True, left_out=left_out, checkpoints=checkpoints
    )
  assert record(tmp_path) == [{'step': 4, 'because': 'loss is nan', 'examples': [7, 9]}]
