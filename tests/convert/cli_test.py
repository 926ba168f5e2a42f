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


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_there_and_back(tmp_path, checkpoint, state_dict, suffix, capsys):
  ours, theirs = tmp_path / f'ours{suffix}', tmp_path / f'back{suffix}'
  assert _run(input=checkpoint, output=ours) == 0
  text = capsys.readouterr().out
  params = mapping.to_ours(state_dict, 'sit')
  for line in (
    'family      sit',
    'depth       6',
    'heads       not told by the weights',
    'skips       True',
    f'parameters  {trees.count(params):,}',
    'fixed       pos_embed dropped, equal to ours',
  ):
    assert line in text.splitlines()
  read = array_files.unflatten(array_files.load(ours))
  _assert_same(trees.named_leaves(read), trees.named_leaves(params))
  assert _run(input=ours, output=theirs, to='torch', grid=4) == 0
  assert 'fixed       pos_embed made anew' in capsys.readouterr().out.splitlines()
  _assert_same(array_files.load(theirs), state_dict)


_CONFIGS = {
  'reg': 'model.qk_norm=True method=reg',
  'sra': '',
  'meanflow': 'method=meanflow',
  'sit_original': 'model.learn_sigma=True',
  'dit': 'model.learn_sigma=True model.time_input=ddpm interpolant.path=vp '
  'interpolant.prediction=noise',
}


@pytest.mark.parametrize('family', _CONFIGS)
def test_every_family_there_and_back(tmp_path, family, golden, capsys):
  """The family is found, but where the original SiT and DiT are alike: there it is asked for."""
  first, ours, back = (tmp_path / f'{name}.npz' for name in ('first', 'ours', 'back'))
  given = family_weights.of(family, golden)
  array_files.save(first, given)
  asked = {}
  if family in ('sit_original', 'dit'):
    asked = {'family': family}
    for flags in ({'input': first}, {'input': first, 'to': 'torch'}):
      assert _run(output=ours, **flags) == 1
      assert '--family=sit_original or --family=dit' in capsys.readouterr().err
      assert not ours.exists()
  licensed = "licence     DiT's published weights are CC BY-NC 4.0: for non-commercial use only"
  stored = family != 'meanflow'

  assert _run(input=first, output=ours, **asked) == 0
  lines = capsys.readouterr().out.splitlines()
  assert f'family      {family}' in lines
  (config,) = (line for line in lines if line.startswith('config '))
  assert config.startswith("config      model.size='' model.depth=")
  assert config.endswith(f'model.patch_size=2 {_CONFIGS[family]}'.strip())
  assert (licensed in lines) == (family == 'dit')
  assert ('fixed       pos_embed dropped, equal to ours' in lines) == stored

  if asked:
    assert _run(input=ours, output=back, to='torch', grid=4) == 1
    assert '--family=sit_original or --family=dit' in capsys.readouterr().err
  assert _run(input=ours, output=back, to='torch', grid=4, **asked) == 0
  lines = capsys.readouterr().out.splitlines()
  assert f'family      {family}' in lines and config in lines
  assert (licensed in lines) == (family == 'dit')
  assert ('fixed       pos_embed made anew' in lines) == stored
  found, clock = array_files.load(back), 't_embedder.mlp.0.weight'
  if family == 'sit_original':
    np.testing.assert_allclose(found.pop(clock), given.pop(clock), rtol=0, atol=1e-7)
  _assert_same(found, given)


def test_key(tmp_path, checkpoint, state_dict):
  assert _run(input=checkpoint, output=tmp_path / 'a.npz', key='model') == 0
  bias = array_files.load(tmp_path / 'a.npz')['model/final/linear/bias']
  np.testing.assert_array_equal(bias, state_dict['final_layer.linear.bias'] + 1)


def test_a_grid_that_is_not_square(tmp_path, checkpoint, state_dict, capsys):
  ours, theirs = tmp_path / 'ours.npz', tmp_path / 'theirs.npz'
  _run(input=checkpoint, output=ours)
  assert _run(input=ours, output=theirs, to='torch', grid='2x5') == 0
  assert array_files.load(theirs)['pos_embed'].shape == (1, 10, 64)
  assert _run(input=theirs, output=tmp_path / 'b.npz') == 1
  assert '10 tokens are not a square' in capsys.readouterr().err
  assert _run(input=theirs, output=tmp_path / 'b.npz', grid='2x5') == 0


def test_errors_are_one_line(tmp_path, checkpoint, capsys):
  existing = tmp_path / 'existing.npz'
  existing.write_text('precious')
  cases = {
    'exists and is not overwritten': {'output': existing},
    'no file': {'input': tmp_path / 'none.pt'},
    "no part 'emma'": {'key': 'emma'},
    "did you mean 'sit'": {'family': 'sits'},
    "does not fit family 'reg'": {'family': 'reg'},
    '.safetensors or .npz only': {'output': tmp_path / 'a.pt'},
    '--patch_size is for --to=torch': {'patch_size': 2},
    'unknown, shape': {'to': 'torch'},
  }
  for message, flags in cases.items():
    flags = {'input': checkpoint, 'output': tmp_path / 'a.npz'} | flags
    assert _run(**flags) == 1
    out, err = capsys.readouterr()
    assert message in err and err.startswith('convert: ') and err.count('\n') == 1 and not out
    assert existing.read_text() == 'precious' and not (tmp_path / 'a.npz').exists()


def test_bad_flags(capsys):
  for flags in (['--input=a.pt'], ['--input=a', '--output=b', '--grid=4y4'], ['--inptu=a']):
    with pytest.raises(SystemExit) as stop:
      cli.main(flags)
    assert stop.value.code == 2
  assert '--output' in capsys.readouterr().err


def test_as_a_command(tmp_path, checkpoint):
  run = lambda *flags: subprocess.run(
    [sys.executable, '-m', 'diversedit_jax.convert', *flags],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  flags = [f'--input={checkpoint}', f'--output={tmp_path / "a.safetensors"}']
  first, second = run(*flags), run(*flags)
  assert first.returncode == 0 and first.stdout.startswith('family') and not first.stderr
  assert second.returncode == 1 and 'not overwritten' in second.stderr and not second.stdout
