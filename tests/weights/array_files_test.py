"""Reading and writing flat sets of arrays."""

import pickle
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


def test_content_decides_and_not_the_suffix(tmp_path):
  arrays = {'x': _X, 'y': _X[0]}
  for suffix in ('.npz', '.safetensors'):
    array_files.save(tmp_path / f'a{suffix}', arrays)
  torch_zip.write(tmp_path / 'a.pt', torch_zip.tensors(arrays))
  (tmp_path / 'old.pt').write_bytes(torch_zip.legacy(torch_zip.tensors(arrays)))
  (tmp_path / 'a.pkl').write_bytes(pickle.dumps(arrays))
  for file in sorted(tmp_path.iterdir()):
    for name in ('weights', 'a.ckpt', 'a.bin', 'model.pth.tar', 'step=9.pt.zip'):
      renamed = file.rename(tmp_path / name)
      _assert_equal(array_files.load(renamed), arrays)
      renamed.rename(file)


@pytest.mark.parametrize(
  ('name', 'data', 'reason'),
  [
    ('a.pt', None, 'no file'),
    ('a.npz', b'text', "begins with b'text'. Known are .safetensors, .npz, the files of"),
    ('a.pt', b'', 'is empty'),
    ('a.safetensors', b'\x10\0\0\0\0\0\0\0{"x": 1', 'not a safetensors file'),
    ('a.ckpt', b'version https://git-lfs.github.com/spec/v1\noid', 'git lfs pull'),
    ('a.bin', b'\n<!DOCTYPE html><html>', 'is a web page'),
    ('a.pth', b'\x1f\x8b\x08', 'is compressed'),
    ('a.pth.tar', b'x'.ljust(257, b'\0') + b'ustar', 'is a tar archive'),
    ('a.json', b'{"a": 1}', 'no "weight_map"'),
  ],
)
def test_files_that_cannot_be_read(tmp_path, name, data, reason):
  if data is not None:
    (tmp_path / name).write_bytes(data)
  with pytest.raises(types.UserError) as error:
    array_files.load(tmp_path / name)
  assert reason in str(error.value) and str(tmp_path / name) in str(error.value)


def test_archives_of_objects_are_not_read(tmp_path):
  np.savez(tmp_path / 'pickled.npz', x=np.array([{}], dtype=object))
  with pytest.raises(types.UserError, match='not an archive of plain arrays'):
    array_files.load(tmp_path / 'pickled.npz')


def test_files_that_cannot_be_written(tmp_path):
  path = tmp_path / 'a.npz'
  path.write_text('precious')
  with pytest.raises(types.UserError, match='exists and is not overwritten'):
    array_files.save(path, {'x': _X})
  assert path.read_text() == 'precious'
  with pytest.raises(types.UserError, match='no folder'):
    array_files.save(tmp_path / 'folder' / 'a.npz', {'x': _X})


def test_unflatten_inverts_named_leaves():
  tree = {'model': {'a': {'kernel': _X}, 'b': _X}, 'heads': {'repa': {'0': _X}}}
  flat = trees.named_leaves(tree)
  assert array_files.unflatten(flat) == tree
  for names in (['a', 'a/b'], ['a/b', 'a']):
    with pytest.raises(types.UserError, match='would lie inside'):
      array_files.unflatten(dict.fromkeys(names, _X))


def test_writing_pt_without_pytorch(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)  # What makes `import torch` fail.
  with pytest.raises(types.UserError, match=r'pip install .diversedit_jax\[torch\]'):
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
