"""Reading and writing flat sets of arrays."""

import sys

from helpers import torch_zip
import ml_dtypes
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.weights import array_files

_X = np.arange(6, dtype=np.float32).reshape(2, 3)


def _assert_equal(found, expected):
  assert set(found) == set(expected)
  for name, array in expected.items():
    assert found[name].dtype == array.dtype and found[name].shape == array.shape
    np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize('suffix', ['.npz', '.safetensors'])
def test_round_trip(tmp_path, suffix):
  arrays = {
    'model/a/kernel': _X,
    'model/a/bias': _X[0].astype(np.float16),
    'file': _X.T,  # A view that does not lie in order, under a name that np.savez trips over.
    'scalar': np.array(2.5),
    'empty': np.zeros((0, 3), np.int64),
  }
  array_files.save(tmp_path / f'a{suffix}', arrays)
  _assert_equal(array_files.load(tmp_path / f'a{suffix}'), arrays)


def test_bfloat16_needs_safetensors(tmp_path):
  arrays = {'x': _X.astype(ml_dtypes.bfloat16)}
  array_files.save(tmp_path / 'a.safetensors', arrays)
  _assert_equal(array_files.load(tmp_path / 'a.safetensors'), arrays)
  with pytest.raises(types.UserError, match=r'\.npz cannot hold bfloat16 \(x\)'):
    array_files.save(tmp_path / 'a.npz', arrays)
  assert not (tmp_path / 'a.npz').exists()
  np.savez(tmp_path / 'raw.npz', **arrays)
  with pytest.raises(types.UserError, match='x as raw bytes'):
    array_files.load(tmp_path / 'raw.npz')


def test_files_that_cannot_be_read(tmp_path):
  (tmp_path / 'text.npz').write_text('text')
  (tmp_path / 'text.safetensors').write_text('text of some length')
  np.savez(tmp_path / 'pickled.npz', x=np.array([{}], dtype=object))
  for name, reason in {
    'none.npz': 'no file',
    'a.ckpt': r"suffix '\.ckpt'; use one of \.npz, \.safetensors, \.pt, \.pth",
    'text.npz': r'text\.npz is not an archive of plain arrays',
    'pickled.npz': 'not an archive of plain arrays',
    'text.safetensors': 'not a safetensors file',
  }.items():
    with pytest.raises(types.UserError, match=reason):
      array_files.load(tmp_path / name)


def test_files_that_cannot_be_written(tmp_path):
  path = tmp_path / 'a.npz'
  path.write_text('precious')
  with pytest.raises(types.UserError, match='exists and is not overwritten'):
    array_files.save(path, {'x': _X})
  assert path.read_text() == 'precious'
  with pytest.raises(types.UserError, match='no folder'):
    array_files.save(tmp_path / 'folder' / 'a.npz', {'x': _X})


def test_parts_of_a_checkpoint(tmp_path):
  part = lambda factor: torch_zip.tensors({'x': factor * _X})
  checkpoint = {'model': part(1), 'ema': part(2), 'other': part(3), 'steps': 7}

  def loaded(names, key):
    path = tmp_path / f'{"-".join(names)}-{key}.pt'
    torch_zip.write(path, {name: checkpoint[name] for name in names})
    return array_files.load(path, key=key)['x'][0, 1]

  assert loaded(['model', 'ema', 'steps'], None) == 2
  assert loaded(['model', 'ema', 'steps'], 'model') == 1
  assert loaded(['model', 'other', 'steps'], None) == 1
  assert loaded(['other', 'steps'], 'other') == 3
  with pytest.raises(types.UserError, match="no part 'ema'; its parts: 'model', 'other'"):
    loaded(['model', 'other', 'steps'], 'ema')
  with pytest.raises(types.UserError, match="besides 0 tensors it holds 'other', 'steps'"):
    loaded(['other', 'steps'], None)
  array_files.save(tmp_path / 'a.npz', {'x': _X})
  with pytest.raises(types.UserError, match='has no parts'):
    array_files.load(tmp_path / 'a.npz', key='ema')


def test_names_of_wrappers_are_stripped(tmp_path):
  names = ['module.a', '_orig_mod.b', 'module._orig_mod.c', 'd._orig_mod.weight', 'e.module.weight']
  array_files.save(tmp_path / 'a.npz', dict.fromkeys(names, _X))
  found = ['a', 'b', 'c', 'd.weight', 'e.module.weight']
  assert list(array_files.load(tmp_path / 'a.npz')) == found
  array_files.save(tmp_path / 'b.npz', {'a': _X, 'module.a': _X})
  with pytest.raises(types.UserError, match='has a twice'):
    array_files.load(tmp_path / 'b.npz')


def test_unflatten_inverts_named_leaves():
  tree = {'model': {'a': {'kernel': _X}, 'b': _X}, 'heads': {'repa': {'0': _X}}}
  flat = trees.named_leaves(tree)
  assert array_files.unflatten(flat) == tree
  for names in (['a', 'a/b'], ['a/b', 'a']):
    with pytest.raises(types.UserError, match='would lie inside'):
      array_files.unflatten(dict.fromkeys(names, _X))


def test_writing_pt_without_pytorch(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)  # What makes `import torch` fail.
  with pytest.raises(types.UserError, match=r'pip install diversedit_jax\[torch\]'):
    array_files.save(tmp_path / 'a.pt', {'x': _X})
  assert not (tmp_path / 'a.pt').exists()


def test_writing_pt_with_pytorch(tmp_path):
  torch = pytest.importorskip('torch')
  arrays = {'x': _X, 'view': _X.T, 'half': _X.astype(ml_dtypes.bfloat16), 'scalar': np.array(1.5)}
  array_files.save(tmp_path / 'a.pt', arrays)
  _assert_equal(array_files.load(tmp_path / 'a.pt'), arrays)
  theirs = torch.load(tmp_path / 'a.pt', weights_only=True)
  assert list(theirs) == ['ema']
  assert theirs['ema']['half'].dtype == torch.bfloat16
  for name, array in arrays.items():
    np.testing.assert_array_equal(theirs['ema'][name].double().numpy(), array.astype('float64'))
