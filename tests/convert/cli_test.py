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


def _checkpoints(state_dict):
  """Checkpoints of other trainers, by name of the file: all have the same network in them."""
  named = lambda form, factor=1: {form.format(n): factor * x for n, x in state_dict.items()}
  beside = {'vae.decoder.conv_in.weight': np.ones((2, 2), np.float32)}
  count = {'initted': np.bool_(True), 'step': np.int64(3)}
  average = named('online_model.{}', 2) | named('ema_model.{}') | count
  return {
    'lightning.ckpt': {'state_dict': named('model.{}') | beside, 'hyper_parameters': {'lr': 1}},
    'averaged.ckpt': {'state_dict': named('model.{}', 2) | named('model_ema.{}') | beside},
    'ema_pytorch.pt': {'model': named('{}', 2), 'ema': average, 'step': 3},
    'fsdp.bin': {'module': named('_fsdp_wrapped_module.{}')},
    'plain': named('module._orig_mod.{}'),
  }


@pytest.mark.parametrize('file', _checkpoints({}))
def test_checkpoints_of_other_trainers(tmp_path, state_dict, file, capsys):
  contents = {
    name: torch_zip.tensors({n: np.asarray(x) for n, x in part.items()})
    if isinstance(part, dict) and name != 'hyper_parameters'
    else part
    for name, part in _checkpoints(state_dict)[file].items()
  }
  contents |= {n: torch_zip.tensor(x) for n, x in contents.items() if isinstance(x, np.ndarray)}
  torch_zip.write(tmp_path / file, contents)
  assert _run(input=tmp_path / file, output=tmp_path / 'a.npz') == 0
  expected = trees.named_leaves(mapping.to_ours(state_dict, 'sit'))
  _assert_same(array_files.load(tmp_path / 'a.npz'), expected)
  told = {
    'lightning.ckpt': "read        dropped 'model.', with which all its names begin",
    'averaged.ckpt': "read        took 'state_dict.model_ema' of the networks",
    'ema_pytorch.pt': "read        took 'ema.ema_model' of the networks",
  }
  assert told.get(file, 'family') in capsys.readouterr().out


def test_labels_of_a_model_that_dropped_none(tmp_path, checkpoint, capsys):
  assert _run(input=checkpoint, output=tmp_path / 'a.npz') == 0
  assert (
    'labels      11 rows: 10 classes, the last row for the null label' in capsys.readouterr().out
  )
  assert _run(input=checkpoint, output=tmp_path / 'b.npz', num_classes=11) == 0
  out = capsys.readouterr().out
  assert 'num_classes 11\n' in out and '11 rows of 11 classes, and one of zeros for the null' in out
  assert 'train.label_dropout=0 sampler.guidance_scale=1\n' in out


def test_weights_of_another_kind_are_named_in_a_short_line(tmp_path, capsys):
  names = [f'decoder.up.{i}.block.0.conv1.weight' for i in range(300)]
  array_files.save(tmp_path / 'vae.npz', dict.fromkeys(names, np.ones(2, np.float32)))
  assert _run(input=tmp_path / 'vae.npz', output=tmp_path / 'a.npz') == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.endswith("CompVis' names of an autoencoder: give it as --vae or vae.weights)")
  assert len(line) < 800


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


def test_a_decoder_as_wide_as_the_other_blocks(tmp_path, golden, capsys):
  """Names and shapes do not tell its blocks; ours do, and norms of queries tell their heads."""
  theirs, ours, back = (tmp_path / f'{name}.npz' for name in ('theirs', 'ours', 'back'))
  prefix, learnt = 'ddt_qk_same_width/params/', lambda x: {n: x[n] for n in x if 'rope' not in n}
  given = {n.removeprefix(prefix): x for n, x in golden('ddt').items() if n.startswith(prefix)}
  array_files.save(theirs, given)
  flags = {'input': theirs, 'output': ours}
  assert _run(**flags) == 2 and 'give --decoder_depth' in capsys.readouterr().err
  assert _run(**flags, decoder_depth=3) == 2
  assert '--decoder_depth=3 of 3 blocks: expected 1 to 2' in capsys.readouterr().err
  head = 'model.head.depth=1 model.head.width=24 model.head.heads=2'
  assert _run(**flags, decoder_depth=1) == 0 and head in capsys.readouterr().out
  assert _run(input=ours, output=back, to='torch', grid=3, patch_size=1) == 0
  assert head in capsys.readouterr().out
  found = learnt(array_files.load(back))
  del found['pos_embed']  # Which this network does not have.
  _assert_same(found, learnt(given))


def test_errors_are_one_line(tmp_path, checkpoint, capsys):
  existing = tmp_path / 'existing.npz'
  existing.write_text('precious')
  cases = {
    'exists and is not overwritten': {'output': existing},
    "does not fit family 'reg'": {'family': 'reg'},
    'cannot hold our weights': {'output': tmp_path / 'a.pt'},
    '--patch_size is for --to=torch': {'patch_size': 2},
    'not expected': {'to': 'torch'},
    '--decoder_depth is for networks with a wide head, families raev2 and ddt': {
      'decoder_depth': 2
    },
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
  assert (
    done.returncode == 0 and done.stdout.startswith("read        took 'ema'") and not done.stderr
  )
