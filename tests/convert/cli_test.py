"""The command line, in process, and once as a command."""

import pathlib
import subprocess
import sys

from helpers import family_weights, torch_zip
import numpy as np
import pytest

from diversedit_jax import trees
from diversedit_jax.convert import cli, mapping
from diversedit_jax.weights import array_files

_ROOT = pathlib.Path(__file__).parent.parent.parent


@pytest.fixture(scope='module')
def state_dict(golden):
  archive = golden('sit_skip')
  return {n.removeprefix('params/'): x for n, x in archive.items() if n.startswith('params/')}


@pytest.fixture
def checkpoint(tmp_path, state_dict):
  """A training checkpoint whose model differs from its moving average."""
  path = tmp_path / 'theirs.pt'
  model = {name: x if name == 'pos_embed' else x + 1 for name, x in state_dict.items()}
  contents = {'model': torch_zip.tensors(model), 'ema': torch_zip.tensors(state_dict), 'steps': 9}
  torch_zip.write(path, contents)
  return path


def _run(**flags):
  return cli.main([f'--{name}={value}' for name, value in flags.items()])


def _assert_same(found, expected):
  assert set(found) == set(expected)
  for name, x in expected.items():
    np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_there_and_back(tmp_path, checkpoint, state_dict, capsys):
  ours, theirs, other = tmp_path / 'ours.npz', tmp_path / 'back.safetensors', tmp_path / 'other.npz'
  assert _run(input=checkpoint, output=other, key='model') == 0
  bias = array_files.load(other)['model/final/linear/bias']
  np.testing.assert_array_equal(bias, state_dict['final_layer.linear.bias'] + 1)
  capsys.readouterr()
  assert _run(input=checkpoint, output=ours) == 0
  text = capsys.readouterr().out
  params = mapping.to_ours(state_dict, 'sit')
  for line in (
    'family      sit',
    'depth       6',
    'heads       unknown',
    'skips       True',
    f'parameters  {trees.count(params):,}',
    'fixed       pos_embed dropped, equal to ours',
  ):
    assert line in text.splitlines()
  read = array_files.unflatten(array_files.load(ours))
  _assert_same(trees.named_leaves(read), trees.named_leaves(params))
  assert _run(input=ours, output=theirs, to='torch', grid=4) == 0
  assert 'fixed       pos_embed computed' in capsys.readouterr().out.splitlines()
  _assert_same(array_files.load(theirs), state_dict)


def test_a_family_that_must_be_asked_for(tmp_path, golden, capsys):
  """The original SiT and DiT look the same; DiT's weights have a licence."""
  theirs, ours, back = (tmp_path / f'{name}.npz' for name in ('theirs', 'ours', 'back'))
  given = family_weights.of('dit', golden)
  array_files.save(theirs, given)
  licence = "licence     DiT's published weights are CC BY-NC 4.0: for non-commercial use only"
  for flags in ({'input': theirs, 'output': ours}, {'input': ours, 'output': back, 'to': 'torch'}):
    assert _run(grid=4, **flags) == 2
    assert '--family=sit_original or --family=dit' in capsys.readouterr().err
    assert _run(grid=4, family='dit', **flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 'family      dit' in lines and licence in lines
  _assert_same(array_files.load(back), given)


def test_errors_are_one_line(tmp_path, checkpoint, capsys):
  existing = tmp_path / 'existing.npz'
  existing.write_text('precious')
  cases = {
    'exists and is not overwritten': {'output': existing},
    "does not fit family 'reg'": {'family': 'reg'},
    'cannot hold our weights': {'output': tmp_path / 'a.pt'},
    '--patch_size is for --to=torch': {'patch_size': 2},
    'not expected': {'to': 'torch'},
  }
  for message, flags in cases.items():
    flags = {'input': checkpoint, 'output': tmp_path / 'a.npz'} | flags
    assert _run(**flags) == 2
    out, err = capsys.readouterr()
    assert message in err and err.startswith('convert: ') and err.count('\n') == 1 and not out
    assert existing.read_text() == 'precious' and not (tmp_path / 'a.npz').exists()


def test_bad_flags(capsys):
  assert cli.main(['--input=a', '--output=b', '--grid=4y4']) == 2
  assert "'4y4' is not ROWS" in capsys.readouterr().err


def test_as_a_command(tmp_path, checkpoint):
  run = lambda *flags: subprocess.run(
    [sys.executable, '-m', 'diversedit_jax.convert', *flags],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  flags = [f'--input={checkpoint}', f'--output={tmp_path / "a.safetensors"}']
  done = run(*flags)
  assert done.returncode == 0 and done.stdout.startswith('family') and not done.stderr
