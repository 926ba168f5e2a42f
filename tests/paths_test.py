"""One rule for paths: `~` wherever a path is given, the rest from where one stands."""

import os
import pathlib
import subprocess
import sys

import pytest

from configs import common
from diversedit_jax import options, paths, types
from diversedit_jax.experiment import data_options, declarations, eval_options, run_dir, sections
from diversedit_jax.preparation import flags as prepare_flags


@pytest.fixture(autouse=True)
def home(monkeypatch):
  monkeypatch.setenv('HOME', '/home/user')


@pytest.mark.parametrize(
  ('given', 'found'),
  [
    ('~/x', '/home/user/x'),
    ('~', '/home/user'),
    ('folder:~/x/{split}', 'folder:/home/user/x/{split}'),
    ('file:~/labels.npy', 'file:/home/user/labels.npy'),
    ('~root/x', os.path.expanduser('~root/x')),
    ('x/~y', 'x/~y'),
    ('../x', '../x'),
    ('digits', 'digits'),
    ('', ''),
    ('hf://a/b', 'hf://a/b'),
    ('synthetic:8x8x4:10', 'synthetic:8x8x4:10'),
  ],
)
def test_a_home_folder_is_expanded_also_behind_a_kind(given, found):
  assert paths.expanded(given) == found


def test_every_key_that_names_a_path_is_declared_so_and_expanded():
  named = {name for name, key in declarations.keys().items() if key.option.path}
  words = ('folder', 'file ', 'file:', '.npz', 'DIR', 'hf://')
  said = {k for k, key in declarations.keys().items() if any(w in key.option.doc for w in words)}
  others = {
    'eval.name',
    'eval.keep_samples',
    'model.skip.placement',
    'train.steps',
  }
  assert said - named <= others
  assert data_options.DataOptions(source='folder:~/x').source == 'folder:/home/user/x'
  assert eval_options.EvalOptions(inception='~/i.pth').inception == '/home/user/i.pth'
  (given,) = options.values([sections.VaeOptions], {'weights': '~/v'}, 'vae')
  assert sections.VaeOptions(**given).weights == '/home/user/v'


def test_flags_expand_theirs():
  given = prepare_flags.parse(['--source=zip:~/a.zip', '--output=~/store', '--vae=~/vae'])
  assert given['source'] == 'zip:/home/user/a.zip' and given['vae'] == '/home/user/vae'
  assert given['output'] == pathlib.Path('/home/user/store')


def test_an_unknown_home_is_told(monkeypatch):
  with pytest.raises(types.UserError, match='home folder is not known; give the path without ~'):
    paths.path('~nobody_of_this_name/x')
  # What it gives where neither HOME nor the user is known.
  monkeypatch.setattr(paths.os.path, 'expanduser', lambda path: path)
  with pytest.raises(types.UserError, match='set HOME, or give the path without ~'):
    paths.path('~/x')
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  assert paths.user_cache() is None


def test_a_name_that_is_not_utf8_is_refused_where_it_would_be_lost():
  with pytest.raises(types.UserError, match=r"x\\udcff' is no name in UTF-8"):
    run_dir.open_for_output('x\udcff')


@pytest.mark.parametrize(
  ('argument', 'data', 'rest'),
  [
    ('data=folder:/a,b', 'folder:/a,b', True),
    ('data=folder:/a,b,c d,skips=False', 'folder:/a,b,c d', False),
    ('skips=False,data=~/a,b', '~/a,b', False),
    ('data=digits,skips=False', 'digits', False),
  ],
)
def test_a_path_in_a_meta_argument_may_hold_commas(argument, data, rest):
  found = common.parse_arg(argument, data='', skips=True)
  assert (found.data, found.skips) == (data, rest)


@pytest.mark.parametrize('argument', ['data=digits,b', 'data=/a,skip=False', 'b', 'skips,b'])
def test_what_is_no_part_of_a_path_is_still_refused(argument):
  with pytest.raises(types.UserError, match='unknown config argument'):
    common.parse_arg(argument, data='', skips=True)


@pytest.mark.parametrize(
  ('given', 'is_one'),
  [('gs://b/x', True), ('s3://b/x', True), ('hf://a/b', False), ('gs:/b/x', False), ('gs', False)],
)
def test_a_bucket_is_known_by_its_scheme(given, is_one):
  assert paths.is_bucket(given) == is_one


def test_a_path_in_a_bucket_is_kept_whole_and_other_paths_are_what_they_were():
  path = paths.path('gs://bucket/run/', bucket=True) / 'x.json'
  assert str(path) == str(paths.absolute(path)) == 'gs://bucket/run/x.json'
  assert paths.path('x', bucket=True) == pathlib.Path('x')
  assert paths.absolute(pathlib.Path('x')) == pathlib.Path.cwd() / 'x'


@pytest.mark.parametrize(
  ('given', 'may', 'words'),
  [
    ('gs://bucket/run', False, 'lies in a bucket, expected a path on a disk'),
    ('gs:/bucket/run', False, 'is a URL, expected a path on a disk'),
    ('az://bucket/run', True, 'or one in a bucket: gs://BUCKET/FOLDER'),
    ('gs://bucket/', True, 'gs://BUCKET/FOLDER'),
    ('s3://bucket/run', True, r"pip install 'diversedit_jax\[s3\]'"),
  ],
)
def test_paths_in_buckets_that_cannot_be_used_are_refused(given, may, words, monkeypatch):
  monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
  with pytest.raises(types.UserError, match=words):
    paths.path(given, bucket=may)


@pytest.mark.parametrize('first', ['diversedit_jax.paths', 'fsspec'])
def test_no_bucket_is_read_by_an_old_listing(first):
  """Whoever imports what first, and whether or not a path has come through here before."""
  opened = "fsspec.filesystem('gcs', token='anon')"
  script = (
    f'import {first}, diversedit_jax.paths, fsspec; print({opened}.dircache.use_listings_cache)'
  )
  environment = {k: v for k, v in os.environ.items() if not k.startswith('FSSPEC_')}
  told = subprocess.run(
    [sys.executable, '-c', script], capture_output=True, text=True, check=True, env=environment
  )
  assert told.stdout == 'False\n'
