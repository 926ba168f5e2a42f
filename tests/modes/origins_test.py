"""Weights of a run, of a checkpoint elsewhere and of files; and what holds none that fit."""

import json

from helpers import bucket, small_runs
import numpy as np
import pytest

from diversedit_jax import convert, modes, paths, types
from diversedit_jax.modes import origins

# All tests sample with the one sampler of this file.
pytestmark = pytest.mark.usefixtures('compilation_cached')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run with random weights, and samples of their average."""
  run = small_runs.untrained(tmp_path_factory.mktemp('origins') / 'run', small_runs.STEPS)
  archive, _, _ = modes.sample.run(run.experiment, str(run.workdir), None)
  run.samples = small_runs.arrays(archive)
  run.checkpoint = str(run.workdir / 'checkpoints' / str(small_runs.STEPS))
  return run


@pytest.fixture
def ema(run):
  """The averaged weights by name."""
  return run.items['ema']


def sample(run, folder, origin=None, **changes):
  """Samples of the run's checkpoint, or of another origin, made in another folder; their card."""
  archive, card, _ = modes.sample.run(
    small_runs.make(**changes), str(folder), str(origin or run.checkpoint)
  )
  return small_runs.arrays(archive), json.loads(card.read_text())


def test_checkpoint_from_elsewhere_gives_the_same_arrays(run, tmp_path):
  made, facts = sample(run, tmp_path)
  np.testing.assert_array_equal(made['images'], run.samples['images'])
  assert (facts['checkpoint'], facts['step']) == ('checkpoints/30', 30)
  assert {p.name for p in tmp_path.iterdir()} == {'samples'}


def test_weights_are_those_asked_for(run, tmp_path):
  made, facts = sample(run, tmp_path, sample__weights='params')
  different = np.abs(made['images'] - run.samples['images']).max(axis=(1, 2, 3)) > 1e-4
  assert different.all() and facts['weights'] == 'params'


def test_weights_from_a_file_give_the_same_arrays(run, ema, tmp_path):
  file = tmp_path / 'weights.safetensors'
  convert.save(file, ema)
  made, facts = sample(run, tmp_path / 'out', origin=file)
  np.testing.assert_array_equal(made['images'], run.samples['images'])
  assert facts['checkpoint'] == file.name
  # A method's heads only train the model: a file without them will do.
  sra = {'method': 'sra+diverse', 'sra__student_block': 1, 'sra__teacher_block': 2}
  made, _ = sample(run, tmp_path / 'sra', origin=file, **sra)
  np.testing.assert_array_equal(made['images'], run.samples['images'])


def test_a_folder_of_weights_is_its_file(ema, tmp_path):
  """The folder is as libraries write it, in shards with an index."""
  names, index = list(ema), tmp_path / 'diffusion_pytorch_model.safetensors.index.json'
  for i, part in enumerate((names[:5], names[5:])):
    convert.save(tmp_path / f'{i}.safetensors', {name: ema[name] for name in part})
  table = {name: f'{int(i > 4)}.safetensors' for i, name in enumerate(names)}
  index.write_text(json.dumps({'weight_map': table}))
  origin = origins.find(str(tmp_path))
  assert origin.path == index and origin.step is None
  assert set(origin.arrays()) == set(ema)


def test_file_that_does_not_fit_is_refused_with_what_differs(run, ema, tmp_path):
  kernel, missing = 'model/patch_embed/kernel', 'model/patch_embed/bias'
  wrong = {**ema, kernel: ema[kernel].T}
  del wrong[missing]
  convert.save(tmp_path / 'wrong.safetensors', wrong)
  with pytest.raises(types.UserError) as error:
    sample(run, tmp_path, origin=tmp_path / 'wrong.safetensors')
  message = str(error.value)
  assert f'missing: {missing}' in message and 'not expected' not in message
  assert f'{kernel} has shape (16, 4) instead of (4, 16)' in message
  theirs = {'ema.x_embedder.proj.weight': ema[kernel], 'ema.blocks.0.mlp.fc1.bias': ema[missing]}
  convert.save(tmp_path / 'theirs.safetensors', theirs)
  with pytest.raises(types.UserError, match='names of SiT and DiT; convert it: python -m'):
    sample(run, tmp_path, origin=tmp_path / 'theirs.safetensors')
  # A null label that was never learned has a row of zeros.
  table = ema['model/label_embed/embedding'].copy()
  table[-1] = 0
  convert.save(tmp_path / 'labels.safetensors', {**ema, 'model/label_embed/embedding': table})
  with pytest.raises(types.UserError, match=r'with train\.label_dropout=0 the model never learns'):
    sample(run, tmp_path, origin=tmp_path / 'labels.safetensors')


def test_checkpoint_that_is_none_is_refused(run, tmp_path):
  (tmp_path / 'empty' / '5').mkdir(parents=True)
  for step in (15, 30):
    (tmp_path / 'run' / 'checkpoints' / str(step)).mkdir(parents=True)
  for origin, message in {
    tmp_path / 'absent': 'no weights at .*: there is no such file or folder',
    tmp_path / 'run': r'holds checkpoints of steps \[15, 30\]; name one, as .*/run/checkpoints/30',
    tmp_path / 'run' / 'checkpoints': 'name one, as .*/run/checkpoints/30',
    run.workdir / 'samples': 'neither a file of weights nor a folder checkpoints/STEP',
    run.workdir / 'checkpoints' / '7': 'no weights at',
    run.workdir / 'config.json': 'not an index of shards: it has no "weight_map"',
    tmp_path / 'empty' / '5': 'no readable checkpoint in .*/empty: 5: ',
  }.items():
    with pytest.raises(types.UserError, match=message):
      sample(run, tmp_path / 'out', origin=origin)


def test_checkpoint_of_another_model_is_refused(run, tmp_path):
  with pytest.raises(types.UserError, match=r'model\.width: stored 16, given 32'):
    modes.sample.run(small_runs.make(model__width=32), str(run.workdir), None)
  with pytest.raises(types.UserError, match=r'model\.width: stored 16, given 32'):
    sample(run, tmp_path, model__width=32)
  with pytest.raises(types.UserError, match="interpolant.path: stored 'linear', given 'cosine'"):
    modes.sample.run(small_runs.make(interpolant__path='cosine'), str(run.workdir), None)


def test_a_run_is_known_by_its_directory_here_and_in_a_bucket(run, tmp_path):
  there = f'{bucket.new()}/run'
  stored = (run.workdir / 'config.json').read_bytes()
  (paths.path(there, bucket=True) / 'config.json').write_bytes(stored)
  assert origins.run_at(str(run.workdir)) == run.workdir
  assert str(origins.run_at(there)) == there
  (tmp_path / 'config.json').write_text('{"architectures": ["SiT"]}')  # Another library's.
  for other in (run.checkpoint, str(tmp_path), 'hf://org/model', 'nowhere'):
    assert origins.run_at(other) is None
