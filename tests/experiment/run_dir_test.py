"""Run directories: which may be used, and what is said about those that may not."""

import json

import pytest

from diversedit_jax import types
from diversedit_jax.experiment import declarations, flat_config, learned, published, run_dir

VERSIONS = {'jax': '1'}
KEYS = declarations.keys()
SMALL = {'model.size': '', 'model.depth': 2, 'model.width': 8, 'model.heads': 2}
SMALL |= {'model.patch_size': 2, 'train.steps': 10}
DATA = {'name': 'store/a', 'examples': 5, 'sha256': '1' * 64}


def config(**changes):
  """A small model and ten steps, and changes as `train__steps=20`."""
  flat = {key.replace('__', '.'): value for key, value in changes.items()}
  return published.nested({**SMALL, **flat})


def train(path, config, data=None):
  return run_dir.open_for_training(str(path), config, VERSIONS, data=data, write=True)


def read(path, config, data=None):
  return run_dir.open_for_reading(str(path), config, data)


def rewrite(path, change):
  """Changes the stored config in place."""
  stored = json.loads((path / 'config.json').read_text())
  change(stored)
  (path / 'config.json').write_text(json.dumps(stored))


@pytest.fixture
def run(tmp_path):
  return train(tmp_path / 'run', config())


def test_new_run_records_itself_and_continues(run):
  assert json.loads((run / 'config.json').read_text())['train']['steps'] == 10
  assert json.loads((run / 'versions.json').read_text()) == [VERSIONS]
  before = (run / 'config.json').read_bytes()
  assert train(run, config()) == run
  assert (run / 'config.json').read_bytes() == before


def test_another_config_is_refused_with_what_differs(run):
  before = (run / 'config.json').read_text()
  with pytest.raises(
    types.UserError, match=r'model.depth: stored 2, given 4.*seed: stored 0, given 1'
  ):
    train(run, config(model__depth=4, seed=1))
  assert (run / 'config.json').read_text() == before


def test_run_may_be_prolonged_and_the_old_config_is_kept(run):
  train(run, config(train__steps=20, log__every=1))
  assert json.loads((run / 'config.json').read_text())['train']['steps'] == 20
  (old,) = run.glob('config.until-0-*.json')
  assert json.loads(old.read_text())['train']['steps'] == 10


def test_cosine_run_cannot_be_prolonged(tmp_path):
  """Its learning rate would jump back up."""
  run = train(tmp_path / 'run', config(optimizer__schedule='cosine'))
  with pytest.raises(types.UserError, match='train.steps: stored 10, given 20'):
    train(run, config(optimizer__schedule='cosine', train__steps=20))


# Runs of other versions, which had other keys.


def without(flat_key):
  """A change of a stored config: the key is not there."""

  def change(stored):
    *sections, last = flat_key.split('.')
    for name in sections:
      stored = stored[name]
    del stored[last]

  return change


def test_a_key_that_a_stored_config_lacks_means_its_default(tmp_path):
  whole = declarations.defaults()
  run = train(tmp_path / 'run', whole)
  content = (run / 'config.json').read_text()
  for key in KEYS:
    rewrite(run, without(key))
    assert train(run, whole) == read(run, whole) == run, key
    (run / 'config.json').write_text(content)


def test_a_value_beside_the_default_of_a_key_that_is_missing_is_a_difference(run):
  rewrite(run, without('train.ema_decay'))
  with pytest.raises(types.UserError, match='train.ema_decay: stored 0.9999, given 0.5'):
    train(run, config(train__ema_decay=0.5))
  read(run, config(train__ema_decay=0.5))


def test_a_key_that_this_version_does_not_have_is_left_out(run):
  rewrite(run, lambda stored: stored['train'].update(unheard_of=1))
  assert train(run, config()) == read(run, config()) == run
  rewrite(run, lambda stored: stored.update(method='flow+unheard_of'))
  with pytest.raises(types.UserError, match="this version has no method 'unheard_of'"):
    train(run, config())


def test_a_trace_was_asked_for_by_two_keys(run, caplog):
  def as_before(stored):
    del stored['log']['profile']
    stored['log'] |= {'profile_at': 7, 'profile_steps': 3}

  rewrite(run, as_before)
  assert flat_config.stored(run)['log.profile'] == '7:9'
  assert train(run, config()) == run
  assert 'has no log.profile' not in caplog.text


@pytest.mark.parametrize(('full', 'parts'), [(True, ['all']), (False, [])])
def test_the_whole_analysis_was_asked_for_by_a_switch(run, full, parts, caplog):
  rewrite(run, lambda stored: stored['analysis'].update(full=full))
  assert flat_config.stored(run)['analysis.parts'] == parts
  assert train(run, config()) == run and 'has no analysis.full' not in caplog.text


def test_methods_are_the_same_in_any_order_and_other_methods_do_not_matter(tmp_path):
  run = train(tmp_path / 'run', config(method='diverse+sra'))
  assert train(run, config(method='flow+sra+diverse')) == run
  assert train(run, config(method='sra+diverse', repa__hidden=7)) == run
  with pytest.raises(types.UserError, match='sra.weight: stored 0.2, given 0.5'):
    train(run, config(method='sra+diverse', sra__weight=0.5))


def test_averages_are_the_same_in_any_order_and_spelling(tmp_path):
  run = train(tmp_path / 'run', config(train__averages=('std=0.10', '0.9')))
  assert train(run, config(train__averages=('0.90', 'std=0.1'))) == run
  with pytest.raises(types.UserError, match='--continue_with=train.averages'):
    train(run, config(train__averages=('std=0.1',)))


def test_blocks_of_the_first_version_counted_from_zero(tmp_path):
  made = lambda layers, steps=10: config(
    method='diverse', diversity__layers=layers, train__steps=steps
  )
  run = train(tmp_path / 'run', made('0,2,5'))
  rewrite(run, without('diversedit_jax'))
  assert train(run, made('1,3,6')) == read(run, made('1,3,6')) == run
  train(run, made('1,3,6', 20))  # Rewrites the config, and is not converted twice.
  assert 'diversedit_jax' in json.loads((run / 'config.json').read_text())
  assert train(run, made('1,3,6', 20)) == run
  with pytest.raises(types.UserError, match="diversity.layers: stored '1,3,6', given '2,4,7'"):
    train(run, made('2,4,7', 20))


def test_a_size_by_name_equals_its_four_numbers(tmp_path):
  numbers = config(model__depth=12, model__width=384, model__heads=6)
  named = config(model__size='S/2', model__depth=0, model__width=0, model__heads=0)
  for i, (stored, given) in enumerate(((numbers, named), (named, numbers))):
    run = train(tmp_path / str(i), stored)
    assert train(run, given) == read(run, given) == run
    with pytest.raises(types.UserError, match='model.depth: stored 12, given 4'):
      train(run, config(model__depth=4, model__width=384, model__heads=6))


# What lies in the folder.


@pytest.mark.parametrize(
  'name',
  [
    'statistics/',
    'slurm-1.out',
    'lost+found/',
    '.nfs0001',
    '.DS_Store',
    'audit.json',
    'thesis.tex',
  ],
)
def test_files_that_a_run_would_not_overwrite_do_not_matter(tmp_path, name):
  made = tmp_path / name
  made.mkdir() if name.endswith('/') else made.write_text('x')
  assert train(tmp_path, config()) == tmp_path and made.exists()


@pytest.mark.parametrize(
  'name',
  [
    'checkpoints',
    'metrics.jsonl',
    'telemetry',
    'tensorboard',
    'data.json',
    'samples/preview-0.png',
  ],
)
def test_parts_of_a_run_without_its_config_are_refused(tmp_path, name):
  (tmp_path / name).parent.mkdir(exist_ok=True)
  (tmp_path / name).write_text('x')
  with pytest.raises(types.UserError, match=f'holds {name[:7]}.* but no config.json: not a whole'):
    train(tmp_path, config())
  assert (tmp_path / name).exists() and not (tmp_path / 'config.json').exists()


def test_impossible_workdirs_are_refused(tmp_path):
  (tmp_path / 'file').write_text('x')
  for workdir, message in (
    ('', 'no workdir'),
    ('https://host/run', 'https://host/run is a URL'),
    (tmp_path / 'file', 'is a file, expected a directory'),
    (tmp_path / 'file' / 'run', 'cannot be written'),
  ):
    with pytest.raises(types.UserError, match=message):
      train(workdir, config())


@pytest.mark.parametrize('content', [b'{"train":', b'\xff\xfe', b'3'])
@pytest.mark.parametrize('name', ['config.json', 'data.json', 'versions.json'])
def test_a_damaged_file_of_a_run_is_named(run, name, content):
  (run / name).write_bytes(content)
  with pytest.raises(types.UserError, match=f'{name} is damaged'):
    train(run, config(), DATA)


# Data.


def test_data_may_move_but_not_change(tmp_path):
  run = train(tmp_path / 'run', config(data__source='store:a'), DATA)
  moved = config(data__source='store:elsewhere/a')
  assert train(run, moved, DATA | {'name': 'store/elsewhere'}) == run
  assert json.loads((run / 'data.json').read_text())['name'] == 'store/elsewhere'
  with pytest.raises(types.UserError, match='learns from other data'):
    train(run, moved, DATA | {'sha256': '2' * 64})
  with pytest.raises(types.UserError, match="data.source: stored 'store:elsewhere/a'"):
    train(run, config(data__source='store:b'), DATA | {'sha256': '2' * 64})


@pytest.mark.parametrize(
  'before,now,message',
  [
    (None, '0 1 2 10', 'data.classes=alphabetical gives the order of before'),
    ('0 1 10 2', '0 1 2 10', "label 2: stored '10', given '2'.*data.classes=alphabetical"),
    ('cat dog', 'cat eel', "2 classes before and 2 now, label 1: stored 'dog', given 'eel'"),
    ('cat dog', 'cat dog eel', '2 classes before and 3 now'),
  ],
)
def test_classes_that_moved_are_named_and_the_way_on(tmp_path, before, now, message):
  names = lambda text: {} if text is None else {'label_names': text.split()}
  run = train(tmp_path / 'run', config(), DATA | names(before))
  with pytest.raises(types.UserError, match=f'learns from other data: .*{message}') as error:
    train(run, config(), DATA | names(now) | {'sha256': '2' * 64})
  assert ('alphabetical' in str(error.value)) == ('alphabetical' in message)


def test_names_of_classes_are_recorded_or_those_of_the_same_data(tmp_path):
  run, ask = train(tmp_path / 'run', config(), DATA), learned.label_names
  assert ask(run, lambda: DATA['sha256'], ('a', 'b')) == ('a', 'b')
  assert ask(run, lambda: 'other', ('a', 'b')) == ()
  train(run, config(), DATA | {'label_names': ['ant', 'b\udcff']})
  assert ask(run, lambda: 'other', ('a', 'b')) == ('ant', 'b\udcff')


# Reading.


def test_reading_needs_a_run_of_the_same_network_in_any_dtype(tmp_path, run):
  with pytest.raises(types.UserError, match='holds no run'):
    read(tmp_path, config())
  read(run, config(seed=3, train__batch_size=8, data__source='store:b'))
  with pytest.raises(types.UserError, match='model.depth: stored 2, given 4'):
    read(run, config(model__depth=4))
  with pytest.raises(types.UserError, match="interpolant.path: stored 'linear', given 'vp'"):
    read(run, config(interpolant__path='vp'))
  read(run, config(model__dtype='bfloat16'))
  with pytest.raises(types.UserError, match="model.dtype: stored 'float32', given 'bfloat16'"):
    train(run, config(model__dtype='bfloat16'))


@pytest.mark.parametrize(
  ('stored', 'given', 'fits'),
  [
    ('flow', 'dispersive+diverse', True),  # Losses without parameters of their own.
    ('repa+diverse', 'repa', True),
    ('flow+repa', 'flow', False),
    ('flow', 'meanflow', False),
    ('reg', 'flow+repa', False),
  ],
)
def test_reading_needs_the_parameters_of_the_same_method(tmp_path, stored, given, fits):
  path = train(tmp_path / 'run', config(method=stored))
  if fits:
    read(path, config(method=given))
    return
  with pytest.raises(types.UserError, match='method: stored ') as error:
    read(path, config(method=given))
  assert f'stored {stored!r}, given {given!r}' in str(error.value)


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
  path = train(tmp_path / 'run', config(), stored)
  moved = {**DATA, 'name': 'store/b', 'sha256': '4' * 64, **given}
  if message is None:
    read(path, config(), moved)
  else:
    with pytest.raises(
      types.UserError, match=f'was trained on latents of another space.*{message}'
    ):
      read(path, config(), moved)
  # A run that was made before its data.json had these entries.
  (path / 'data.json').write_text(json.dumps(DATA))
  read(path, config(), moved)


def test_versions_are_recorded_at_every_start_that_changes_them(run):
  run_dir.open_for_training(str(run), config(), {'jax': '2'}, write=True)
  train(run, config())
  found = json.loads((run / 'versions.json').read_text())
  assert found == [{'jax': '1'}, {'jax': '2'}, {'jax': '1'}]


@pytest.mark.parametrize('names,said', [('0 1 2', False), ('0 2 1', True), ('a', True)])
def test_numbers_of_classes_are_no_names(names, said):
  assert learned.that_say_something(names.split()) == (tuple(names.split()) if said else ())
