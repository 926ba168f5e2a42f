"""Run directories: which may be used, and what is said about those that may not."""

import json

import ml_collections
import pytest

from diversedit_jax import types
from diversedit_jax.experiment import run_dir

VERSIONS = {'jax': '1'}


def config(**changes):
  config = ml_collections.ConfigDict(
    {
      'seed': 0,
      'train': {'steps': 10, 'batch_size': 4},
      'model': {'depth': 2},
      'log': {'every': 5},
      'diversity': {'weights': (0.33, 0.33, 0.33)},
    }
  )
  for key, value in changes.items():
    section, _, field = key.partition('__')
    (config[section] if field else config)[field or section] = value
  return config


def train(path, config):
  return run_dir.open_for_training(str(path), config, VERSIONS, write=True)


def test_new_run_records_itself_and_continues(tmp_path):
  path = train(tmp_path / 'run', config())
  assert json.loads((path / 'config.json').read_text())['train']['steps'] == 10
  assert json.loads((path / 'versions.json').read_text()) == [VERSIONS]
  assert train(path, config()) == path


def test_another_config_is_refused_with_what_differs(tmp_path):
  path = train(tmp_path / 'run', config())
  before = (path / 'config.json').read_text()
  with pytest.raises(
    types.UserError, match=r'model.depth: stored 2, given 4.*seed: stored 0, given 1'
  ):
    train(path, config(model__depth=4, seed=1))
  assert (path / 'config.json').read_text() == before


def test_run_may_be_prolonged_and_the_old_config_is_kept(tmp_path):
  path = train(tmp_path / 'run', config())
  train(path, config(train__steps=20, log__every=1))
  assert json.loads((path / 'config.json').read_text())['train']['steps'] == 20
  (old,) = path.glob('config.until-10-*.json')
  assert json.loads(old.read_text())['train']['steps'] == 10


def test_run_from_before_a_key_of_placement_goes_on(tmp_path):
  """How a state is spread over devices is not part of what is learned from a step."""
  path, later = train(tmp_path / 'run', config()), config()
  later.optimizer = {'shard_over_data': False}
  train(path, later)
  later.optimizer.shard_over_data = True
  assert train(path, later) == path


def test_folder_of_something_else_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').write_text('x')
  with pytest.raises(types.UserError, match='holds files but no config.json'):
    train(tmp_path, config())
  assert [f.name for f in tmp_path.iterdir()] == ['thesis.tex']


def test_missing_and_unwritable_workdirs_are_refused(tmp_path):
  with pytest.raises(types.UserError, match='no workdir'):
    train('', config())
  (tmp_path / 'file').write_text('x')
  with pytest.raises(types.UserError, match='is a file, expected a directory'):
    train(tmp_path / 'file', config())
  with pytest.raises(types.UserError, match='cannot be written'):
    train(tmp_path / 'file' / 'run', config())


def test_reading_needs_a_run_of_the_same_model(tmp_path):
  with pytest.raises(types.UserError, match='holds no run'):
    run_dir.open_for_reading(str(tmp_path), config())
  path = train(tmp_path / 'run', config())
  run_dir.open_for_reading(str(path), config(seed=3, train__batch_size=8))
  with pytest.raises(types.UserError, match='model.depth: stored 2, given 4'):
    run_dir.open_for_reading(str(path), config(model__depth=4))


@pytest.mark.parametrize(
  ('stored', 'given', 'fits'),
  [
    ('flow', 'dispersive+diverse', True),  # Losses without parameters of their own.
    ('repa+diverse', 'repa', True),
    ('repa', 'flow', False),
    ('flow', 'meanflow', False),
    ('reg', 'repa', False),
  ],
)
def test_reading_needs_the_parameters_of_the_same_method(tmp_path, stored, given, fits):
  path = train(tmp_path / 'run', config(method=stored))
  if fits:
    run_dir.open_for_reading(str(path), config(method=given))
    return
  with pytest.raises(types.UserError, match=f"method: stored '{stored}', given '{given}'"):
    run_dir.open_for_reading(str(path), config(method=given))


DATA = {'name': 'store/a', 'examples': 5, 'sha256': '1' * 64}
LATENTS = {'encoder_sha256': '2' * 64, 'scale': [0.5], 'shift': [0.0]}


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ({'space': 'latents', 'latents': LATENTS}, None),
    ({'space': 'latents'}, None),  # Scaled already, or made up.
    (
      {'space': 'latents', 'latents': LATENTS | {'scale': [2.0]}},
      r'latents.scale: stored \[0.5\], given \[2.0\]',
    ),
    ({'space': 'latents', 'latents': LATENTS | {'encoder_sha256': '3' * 64}}, 'encoder_sha256'),
    ({'space': 'pixels'}, "space: stored 'latents', given 'pixels'"),
  ],
)
def test_reading_needs_data_of_the_same_space_not_the_same_data(tmp_path, given, message):
  stored = {**DATA, 'space': 'latents', 'latents': LATENTS}
  path = run_dir.open_for_training(
    str(tmp_path / 'run'), config(), VERSIONS, data=stored, write=True
  )
  moved = {**DATA, 'name': 'store/b', 'sha256': '4' * 64, **given}
  if message is None:
    run_dir.open_for_reading(str(path), config(), moved)
  else:
    with pytest.raises(types.UserError, match=f'has learned from other data.*{message}'):
      run_dir.open_for_reading(str(path), config(), moved)
  # A run that was made before its data.json had these entries.
  (path / 'data.json').write_text(json.dumps(DATA))
  run_dir.open_for_reading(str(path), config(), moved)


def test_damaged_config_is_named(tmp_path):
  path = train(tmp_path / 'run', config())
  (path / 'config.json').write_text('{"train":')
  with pytest.raises(types.UserError, match='config.json is not a run config'):
    train(path, config())


def test_url_is_refused_before_a_folder_of_that_name_appears():
  with pytest.raises(types.UserError, match='gs://bucket/run is a URL'):
    train('gs://bucket/run', config())


def test_cosine_run_cannot_be_prolonged(tmp_path):
  """Its learning rate would jump back up."""
  cosine = config()
  cosine.optimizer = ml_collections.ConfigDict({'schedule': 'cosine'})
  path = train(tmp_path / 'run', cosine)
  longer = cosine.copy_and_resolve_references()
  longer.train.steps = 20
  with pytest.raises(types.UserError, match='train.steps: stored 10, given 20'):
    train(path, longer)


def test_versions_are_recorded_at_every_start_that_changes_them(tmp_path):
  path = train(tmp_path / 'run', config())
  run_dir.open_for_training(str(path), config(), {'jax': '2'}, write=True)
  train(path, config())
  found = json.loads((path / 'versions.json').read_text())
  assert found == [{'jax': '1'}, {'jax': '2'}, {'jax': '1'}]
