"""Files of torch.save from before PyTorch 1.6: read equal, and never run."""

import pathlib
import pickle

from helpers import bad_files, torch_zip
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.weights import array_files, torch_legacy

_X = np.arange(6, dtype=np.float32)
_GOOD = {'x': torch_zip.tensor(_X)}


@pytest.mark.parametrize('dtype', ['float32', 'int64'])
def test_arrays_and_views(tmp_path, dtype):
  base = np.array([0, 1, 1, 0, 3, 100], 'float32').astype(dtype)
  storage = torch_zip.Storage(base)
  contents = {
    'base': torch_zip.tensor(base, storage=storage, strides=(1,)),
    'other': torch_zip.tensor(base[:1] + base[1:2]),
    'transposed': torch_zip.tensor(base.reshape(2, 3).T, storage=storage, strides=(1, 3)),
    'last': torch_zip.tensor(base[5:], storage=storage, offset=5, strides=(1,)),
    'empty': torch_zip.tensor(base[:0]),
  }
  path = tmp_path / 'a.pth'
  path.write_bytes(torch_zip.legacy({'model': contents, 'steps': 7}))
  assert torch_legacy.recognises(path)
  expected = {
    'base': base,
    'other': base[:1] + base[1:2],
    'transposed': base.reshape(2, 3).T,
    'last': base[5:],
    'empty': base[:0],
  }
  read = array_files.load(path)
  assert list(read) == list(expected)
  for name, array in expected.items():
    assert read[name].dtype == array.dtype and not (array.size and read[name].flags.writeable)
    np.testing.assert_array_equal(read[name], array)
  assert np.shares_memory(read['base'], read['transposed'])


def test_only_the_chosen_part_is_kept(tmp_path):
  parts = {name: {'x': torch_zip.tensor(i * _X)} for i, name in enumerate(('opt', 'model', 'ema'))}
  (tmp_path / 'a.pt').write_bytes(torch_zip.legacy(parts))
  for key, factor in ((None, 2), ('model', 1)):
    np.testing.assert_array_equal(array_files.load(tmp_path / 'a.pt', key=key)['x'], factor * _X)


def test_pickles_of_tensors_have_a_file_in_each(tmp_path):
  arrays = {'a.weight': _X.reshape(2, 3), 'b': np.arange(3)}
  path = tmp_path / 'a.pkl'
  path.write_bytes(torch_zip.pickled(arrays, hist=np.ones(2), folder=pathlib.PurePosixPath('a')))
  read = array_files.load(path)
  assert list(read) == [*arrays, 'hist']
  for name, array in arrays.items():
    np.testing.assert_array_equal(read[name], array)
  evil = torch_zip.Call('torch.storage', '_load_from_bytes', pickle.dumps(print))
  path.write_bytes(torch_zip.pickled(arrays, evil=evil))
  with pytest.raises(types.UserError, match='is damaged'):
    array_files.load(path)
  bad_files.truncations_refused(path, torch_zip.pickled({'x': _X}))


_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_REFUSED = {
  'another version': (_HEAD + pickle.dumps(1002, protocol=2), 'not begin with the version'),
  'code': (torch_zip.legacy({'x': torch_zip.Call('os', 'system', ':')}), 'x (os.system)'),
  'code among the keys': (
    torch_zip.legacy(_GOOD, keys=[torch_zip.Call('os', 'system', ':')]),
    'damaged',
  ),
  'a count that is wrong': (
    torch_zip.legacy(_GOOD, counts=[5]),
    'storage 0 has 5 elements, expected 6',
  ),
  'a storage of another name': (torch_zip.legacy(_GOOD, keys=['1']), 'damaged'),
  'one byte short': (torch_zip.legacy(_GOOD)[:-1], 'storage 0 ends after the last byte'),
}


@pytest.mark.parametrize('case', _REFUSED)
def test_damaged_files_are_refused(tmp_path, case):
  bad_files.refused(tmp_path / 'bad.pth', *_REFUSED[case])


def test_every_truncation_is_refused(tmp_path):
  bad_files.truncations_refused(tmp_path / 'bad.pth', torch_zip.legacy(_GOOD))
