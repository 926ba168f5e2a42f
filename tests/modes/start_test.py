"""Runs that start from weights: what they learn at first, how they go on, what is refused."""

import json
import os
import shutil
import subprocess
import sys
import types as python_types

from flax import nnx
from helpers import killed_runs, small_runs
import jax
import numpy as np
import pytest

from diversedit_jax import checkpoint, convert, modes, rng, trees, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.data import pipeline
from diversedit_jax.experiment import run_dir
from diversedit_jax.modes import null_label, origins, run_context, start
from diversedit_jax.training import writers
from diversedit_jax.weights import array_files

pytestmark = pytest.mark.usefixtures('compilation_cached')
QUIET = {
  'method': 'flow',
  'model__unroll': 1,
  'optimizer__schedule': 'constant',
  'optimizer__warmup_steps': 0,
  'train__steps': 4,
  'log__every': 1,
  'log__tensorboard': False,
  'log__telemetry_every': 0,
  'checkpoint__every': 2,
  'preview__every': 0,
}


def make(**changes):
  return small_runs.make(**{**QUIET, 'model__skip__enabled': False, **changes})


ADDED = {'model__skip__enabled': True, 'model__skip__residual': True}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """A run of two steps, its checkpoint and averaged weights."""
  workdir = tmp_path_factory.mktemp('start') / 'source'
  modes.train.run(make(train__steps=2), str(workdir))
  folder = workdir / 'checkpoints' / '2'
  return python_types.SimpleNamespace(
    workdir=workdir,
    checkpoint=str(folder),
    ema=checkpoint.read(folder, 'ema'),
    params=checkpoint.read(folder, 'params'),
  )


@pytest.fixture(scope='module')
def started(source, tmp_path_factory):
  """A run of four steps with skips that starts from the source, which has none."""
  workdir = tmp_path_factory.mktemp('start') / 'started'
  modes.train.run(make(init_from=source.checkpoint, **ADDED), str(workdir))
  return workdir


def begun(experiment, workdir):
  """The trainable, and what a run would start from."""
  trainable = run_context.make_trainable(experiment, run_context.make_mesh(experiment))
  return trainable, start.begin(experiment, trainable, str(workdir))[1]


def arrays(workdir, step):
  return {
    f'{item}/{name}': x
    for item in ('params', 'ema', 'opt')
    for name, x in checkpoint.read(workdir / 'checkpoints' / str(step), item).items()
  }


def first_loss(experiment, params):
  """The loss of a network on what the first step of a run sees."""
  steps = pipeline.Steps(
    source=experiment.source, seed=experiment.seed, batch_size=experiment.train.batch_size
  )
  with pipeline.batches(steps, start_step=0) as batches:
    batch = next(batches)
  key = rng.stream(rng.stream(jax.random.key(experiment.seed), 'train'), 'step', 0)
  trainable = run_context.make_trainable(experiment, run_context.make_mesh(experiment))
  network = nnx.merge(trainable.graphdef, convert.unflatten(params))
  draw = experiment.objective.draw(batch, key)
  return float(experiment.objective.loss(network, draw, key=key, step=0)[0])


def test_the_first_loss_is_that_of_the_weights(source, started):
  row, *_ = writers.read_jsonl(started / 'metrics.jsonl')
  wanted = first_loss(make(), source.ema)
  np.testing.assert_allclose(row['loss'], wanted, rtol=1e-5)  # float32, in another program.
  assert abs(first_loss(make(), source.params) - wanted) > 1e-3 * wanted


def test_step_moments_and_average_are_new(source):
  trainable, found = begun(make(init_from=source.checkpoint), source.workdir.parent / 'new')
  state = trainable.init(jax.random.key(0), trainable.place(found.start))
  assert int(state.step) == 0
  assert not any(np.any(x) for x in jax.tree.leaves(state.opt_state))
  for tree in (state.params, state.ema):
    for name, x in trees.named_leaves(tree).items():
      np.testing.assert_array_equal(x, source.ema[name], err_msg=name)
  assert all(
    x.sharding == y
    for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(trainable.shardings), strict=True)
  )


def test_what_was_kept_and_new_is_recorded(source, started):
  facts = json.loads((started / 'init.json').read_text())
  assert facts['from'] == source.checkpoint
  assert (facts['weights'], facts['step']) == ('ema', 2)
  assert facts['sha256'] == array_files.digest(source.ema.items())
  names = ('norm/bias', 'norm/scale', 'update/bias', 'update/kernel')
  fuse = {f'model/blocks/fuse/{name}' for name in names}
  assert set(facts['new']) == fuse and len(facts['kept']) > 20 and not facts['left_out']
  stored = json.loads((started / 'config.json').read_text())
  assert stored['init_from'] == source.checkpoint


def test_a_run_that_drops_no_label_may_have_the_null_label_of_its_weights(source, tmp_path):
  file, checkpoint_ = file_of(source, tmp_path), source.checkpoint
  for begins, dropped in (
    ({'init_from': checkpoint_}, 0.1),
    ({'init_from': file}, None),  # It does not say.
    ({'init_from': checkpoint_, 'init__new': 'label_embed/*'}, 0.0),
  ):
    experiment, workdir = make(train__label_dropout=0.0, **begins), tmp_path / 'run'
    found = begun(experiment, workdir)[1]
    assert null_label.dropped(0.0, found.facts) == dropped
    run = small_runs.untrained(tmp_path / str(dropped), 2, train__label_dropout=0.0)
    assert null_label.dropped_by(run.workdir) == 0
    run_dir.record_beginning(run.workdir, found.facts)
    assert null_label.dropped_by(run.workdir) == dropped
    origin = origins.find(str(run.workdir / 'checkpoints' / '2'))
    assert null_label.dropped_for(origin) == dropped


@pytest.mark.parametrize('given', ['the same', 'nothing', 'moved'])
def test_a_run_goes_on_exactly_without_its_weights(source, started, given, tmp_path):
  """The run is that of a machine which was lost after two steps."""
  workdir = tmp_path / 'again'
  shutil.copytree(started, workdir)
  shutil.rmtree(workdir / 'checkpoints' / '4')
  there = source.workdir / 'checkpoints' / '2'
  hidden = tmp_path / 'elsewhere' / '2'
  hidden.parent.mkdir()
  there.rename(hidden)
  named = {'the same': source.checkpoint, 'nothing': '', 'moved': str(hidden)}[given]
  try:
    modes.train.run(make(init_from=named, **ADDED), str(workdir))
  finally:
    hidden.rename(there)
  found, wanted = arrays(workdir, 4), arrays(started, 4)
  assert found.keys() == wanted.keys()
  for name, x in wanted.items():
    np.testing.assert_array_equal(found[name], x, err_msg=name)
  assert json.loads((workdir / 'config.json').read_text())['init_from'] == source.checkpoint


def test_a_run_that_had_saved_nothing_starts_from_its_weights_again(source, started, tmp_path):
  workdir = tmp_path / 'early'
  shutil.copytree(started, workdir, ignore=shutil.ignore_patterns('checkpoints'))
  experiment = make(**ADDED)  # The key is not given again.
  trainable = run_context.make_trainable(experiment, run_context.make_mesh(experiment))
  experiment, found, _ = start.begin(experiment, trainable, str(workdir))
  assert experiment.init_from == source.checkpoint and len(found.start.new) == 4
  facts = json.loads((workdir / 'init.json').read_text())
  (workdir / 'init.json').write_text(json.dumps(facts | {'sha256': '0' * 64}))
  with pytest.raises(types.UserError, match='is not what the run in .*early started from'):
    start.begin(experiment, trainable, str(workdir))


def file_of(source, folder, name='weights.npz'):
  convert.save(folder / name, source.ema)
  return str(folder / name)


REFUSED = {
  'no such file': (dict(init_from='/no/such/file.npz'), 'no weights at /no/such/file.npz'),
  'a run': (dict(init_from='{run}'), 'holds checkpoints of steps .2.; name one, as .*/2'),
  'no weights': (dict(init_from='{run}/config.json'), 'config.json'),
  'weights of a file': (
    dict(init_from='{file}', init__weights='params'),
    'init.weights=params chooses among those',
  ),
  'other heads': (
    dict(init_from='{run}/checkpoints/2', model__heads=4),
    'model.heads=2, given 4: .*heads=2',
  ),
  'another width': (
    dict(init_from='{file}', model__width=32),
    'does not fit the config: .* another size',
  ),
  'skips that replace': (
    dict(init_from='{file}', model__skip__enabled=True),
    '--config.model.skip.residual=True adds',
  ),
  'an unknown pattern': (
    dict(init_from='{file}', init__new='finl/*'),
    "init.new: 'finl/.*' matches no .* 'final'",
  ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_refusals_before_anything_is_written(source, tmp_path, case):
  changes, words = REFUSED[case]
  places = {'run': source.workdir, 'file': file_of(source, tmp_path)}
  changes = {k: v.format(**places) if isinstance(v, str) else v for k, v in changes.items()}
  with pytest.raises(types.UserError, match=words):
    modes.train.run(make(**changes), str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('init_from', ['{run}/checkpoints/2', '{file}'])
def test_a_workdir_that_holds_another_run_is_refused(source, started, tmp_path, init_from):
  file = tmp_path / 'other.npz'
  convert.save(file, source.params)
  given = init_from.format(run=source.workdir, file=file)
  for workdir, experiment, began in (
    (source.workdir, make(init_from=given), 'random parameters'),
    (started, make(init_from=str(file), **ADDED), source.checkpoint),
  ):
    with pytest.raises(types.UserError, match=f'a run that started from {began}; init_from='):
      modes.train.run(experiment, str(workdir))


def test_what_a_run_has_otherwise_is_told(source, tmp_path, caplog):
  experiment = make(
    init_from=source.checkpoint,
    interpolant__path='cosine',
    optimizer__freeze='label_embed',
    init__classes='new',
  )
  trainable, found = begun(experiment, tmp_path / 'new')
  start.tell(found, trainable)
  said = '\n'.join(record.getMessage() for record in caplog.records)
  assert "trained with interpolant.path='linear', and go on with 'cosine'" in said
  assert 'optimizer.freeze keeps what is new as it starts: model/label_embed/embedding' in said
  assert found.facts['differs'] == {'interpolant.path': ('linear', 'cosine')}


def test_the_flag_names_what_the_key_names():
  config = small_runs.make_config()
  assert start.with_checkpoint(config, 'a.npz').init_from == 'a.npz' and not config.init_from
  config.init_from = 'b.npz'
  assert start.with_checkpoint(config, 'b.npz') == config
  for given, words in {'a.npz': 'give one of them', '': '--checkpoint is empty'}.items():
    with pytest.raises(types.UserError, match=words):
      start.with_checkpoint(config, given)


def test_keys_about_the_weights_need_weights():
  with pytest.raises(types.UserError, match="init.new='final' is about the weights of init_from"):
    experiment_lib.build(small_runs.make_config(init__new='final'))


@pytest.mark.slow
def test_eight_devices_start_from_the_checkpoint_of_one(source, started, tmp_path):
  """Each holds an eighth of the parameters; the first loss is that of one device."""
  flags = [f'--config.{k.replace("__", ".")}={v}' for k, v in {**QUIET, **ADDED}.items()]
  small = [f'--config.{k}={v}' for k, v in small_runs.SMALL.items()]
  command = [sys.executable, '-m', 'diversedit_jax.main', '--config=configs/digits.py']
  subprocess.run(
    [
      *command,
      *small,
      *flags,
      '--config.mesh.fsdp=8',
      '--config.optimizer.shard_over_data=True',
      f'--workdir={tmp_path}/eight',
      f'--checkpoint={source.checkpoint}',
    ],
    check=True,
    cwd=killed_runs.ROOT,
    env=os.environ | {'XLA_FLAGS': '--xla_force_host_platform_device_count=8'},
  )
  one, eight = (writers.read_jsonl(run / 'metrics.jsonl') for run in (started, tmp_path / 'eight'))
  for a, b in zip(one, eight, strict=True):
    np.testing.assert_allclose(b['loss'], a['loss'], rtol=1e-4)


@pytest.mark.slow
def test_a_killed_run_that_started_from_weights_goes_on_bit_for_bit(tmp_path):
  plain = ('--config.model.skip.enabled=False', '--config.method=flow')
  assert killed_runs.run(tmp_path / 'a', *plain, '--config.train.steps=10').returncode == 0
  origin = tmp_path / 'a' / 'checkpoints' / '10'
  named = ('--config.model.skip.residual=True', f'--checkpoint={origin}')
  assert killed_runs.run(tmp_path / 'whole', *named).returncode == 0
  process = killed_runs.start_and_wait_for(tmp_path / 'cut', 'step 21/', *named)
  process.terminate()
  assert process.wait() == 0
  shutil.rmtree(tmp_path / 'a')
  assert killed_runs.run(tmp_path / 'cut', *named[:1]).returncode == 0
  killed_runs.assert_same_run(tmp_path / 'whole', tmp_path / 'cut')
