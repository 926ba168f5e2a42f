"""Pickles of NumPy arrays: read equal, and never run."""

import collections
import os
import pathlib
import pickle

from helpers import bad_files
import numpy as np
import pytest

from diversedit_jax.weights import array_files

_X = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
_TREE = {
  'layer': {'conv': {'kernel': _X, 'bias': _X[0, 0]}, 'bn': collections.OrderedDict(scale=_X[0].T)},
  'strided': _X[:, ::2, 1:],
  'axes': _X.transpose(1, 0, 2),
  'big': _X.astype('>f8'),
  'half': _X.astype(np.float16),
  'ints': np.array([[1, -2]], np.int64),
  'bytes': np.array([0, 255], np.uint8),
  'bools': np.array([True, False]),
  'empty': np.zeros((0, 3), np.float32),
  'scalar': np.array(2.5),
  'number': np.float32(1.5),
  'count': 7,
  'nothing': None,
  'raw': bytearray(b'abc'),
}


def _check(path):
  read = array_files.load(path)
  expected = {f'layer/conv/{name}': x for name, x in _TREE['layer']['conv'].items()}
  expected['layer/bn/scale'] = _TREE['layer']['bn']['scale']
  expected |= {n: np.asarray(x) for n, x in _TREE.items() if n not in ('layer', 'nothing', 'raw')}
  assert set(read) == set(expected)
  for name, array in expected.items():
    assert read[name].dtype == array.dtype and read[name].shape == array.shape, name
    np.testing.assert_array_equal(read[name], array, err_msg=name)


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(tmp_path, protocol):
  path = tmp_path / 'a.pickle'
  path.write_bytes(pickle.dumps(_TREE, protocol=protocol))
  _check(path)


@pytest.mark.parametrize('core', [b'numpy.core', b'numpy._core'])
def test_pickles_from_before_and_since_numpy_2(tmp_path, core):
  data = pickle.dumps(_TREE, protocol=3)  # Names are lines in this protocol.
  for name in (b'numpy._core', b'numpy.core'):
    data = data.replace(b'c' + name + b'.', b'c' + core + b'.')
  assert data.count(b'c' + core + b'.multiarray\n') == 2
  (tmp_path / 'a.pkl').write_bytes(data)
  _check(tmp_path / 'a.pkl')


class _Evil:
  def __init__(self, command):
    self._command = command

  def __reduce__(self):
    return os.system, (self._command,)


def test_code_is_never_run(tmp_path):
  marker, path = tmp_path / 'marker', tmp_path / 'evil.pkl'
  path.write_bytes(pickle.dumps({'x': _X, 'y': _Evil(f'mkdir {marker}')}))
  assert list(array_files.load(path)) == ['x']
  assert not marker.exists()
  pickle.loads(path.read_bytes())
  assert marker.exists(), 'the payload works where nobody guards against it'


@pytest.mark.parametrize('name', ['numpy\nfromfile', 'numpy.core.multiarray\nfrombuffer'])
def test_other_functions_of_numpy_are_not_called(tmp_path, name):
  data = f'c{name}\n(V/etc/passwd\ntR.'.encode()
  bad_files.refused(tmp_path / 'a.pkl', data, f'it holds {name}'.replace('\n', '.'))


def test_what_stands_beside_the_arrays_is_left_out(tmp_path):
  shared = {'b': _X}
  tree = {'a': shared, 'again': shared, 'text': 'a', 'objects': np.array([{}], object)}
  tree |= {'records': np.zeros(1, [('a', 'f4')]), 'folder': pathlib.PurePosixPath('a'), 7: [1]}
  tree['self'] = tree
  path = tmp_path / 'a.pkl'
  path.write_bytes(pickle.dumps(tree))
  assert set(array_files.load(path)) == {'a/b', 'again/b'}


@pytest.mark.parametrize('state', [b'}Vvalue\nI1\ns', b'N}V_function\nI1\ns\x86'])
@pytest.mark.parametrize('name', [b'numpy\ndtype', b'numpy\nndarray', b'_codecs\nencode'])
def test_a_pickle_cannot_alter_the_stand_ins(tmp_path, name, state):
  data = b'\x80\x02c' + name + b'\n' + state + b'b.'
  bad_files.refused(tmp_path / 'bad.pkl', data, 'is not a pickle of plain arrays')


def _altered(old, new):
  data = pickle.dumps({'x': np.float32([1, 2])}, protocol=2)
  assert old in data
  return data.replace(old, new)


_REFUSED = {
  'objects': (pickle.dumps({'x': np.array([{}], object)}), 'a pickle without arrays'),
  'an array alone': (pickle.dumps(_X), 'a pickle without arrays'),
  'names that meet': (pickle.dumps({'a/b': _X, 'a': {'b': _X}}), 'a/b is there twice'),
  'too few bytes': (_altered(b'K\x02\x85q', b'K\x03\x85q'), 'cannot reshape'),
  'other codings': (_altered(b'latin1', b'utf-16'), 'not made of plain numbers'),
  'out-of-band': (pickle.dumps({'x': _X}, protocol=5, buffer_callback=[].append), 'buffer'),
  'HTML': (b'<html>404</html>', 'not a pickle'),
}


@pytest.mark.parametrize('case', _REFUSED)
def test_anything_else_is_refused(tmp_path, case):
  bad_files.refused(tmp_path / 'bad.pkl', *_REFUSED[case])


def test_every_truncation_is_refused(tmp_path):
  bad_files.truncations_refused(tmp_path / 'bad.pkl', pickle.dumps({'x': _X}))
