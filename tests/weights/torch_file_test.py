"""Files of torch.save: read equal, and never run."""

import argparse
import collections
from collections import OrderedDict
import datetime
import functools
import io
import itertools
import pathlib
import pickle
import tracemalloc
import zipfile

from helpers import bad_files, torch_zip
import ml_dtypes
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.weights import array_files

_X = np.arange(6, dtype=np.float32)


def _values(dtype):
  return np.array([0, 1, 1, 0, 3, 100], 'float32').reshape(2, 3).astype(dtype)


@pytest.mark.parametrize('changes', [{}, {'order': 'big'}, {'byteorder': None}])
@pytest.mark.parametrize('dtype', torch_zip.STORAGES)
def test_every_dtype_and_byte_order(tmp_path, dtype, changes):
  """Files without the record of the byte order are little-endian."""
  array = _values(np.dtype(getattr(ml_dtypes, dtype, dtype)))
  torch_zip.write(tmp_path / 'a.pt', {'x': torch_zip.tensor(array)}, **changes)
  read = array_files.load(tmp_path / 'a.pt')['x']
  assert read.dtype == array.dtype
  np.testing.assert_array_equal(read, array)


def test_views_of_one_storage(tmp_path):
  base = np.arange(24, dtype=np.float32)
  storage = torch_zip.Storage(base)
  views = {
    'all': (base, 0, (1,)),
    'transposed': (base.reshape(4, 6).T, 0, (1, 6)),
    'offset': (base[5:9], 5, (1,)),
    'every_other': (base[1::2], 1, (2,)),
    'scalar': (base[7].reshape(()), 7, ()),
    'expanded': (np.broadcast_to(base[3], (2, 5)), 3, (0, 0)),
    'last': (base[23:], 23, (1,)),
    'empty': (np.zeros((3, 0, 2), np.float32), 0, (2, 2, 1)),
  }
  contents = {
    name: torch_zip.tensor(array, storage=storage, offset=offset, strides=strides)
    for name, (array, offset, strides) in views.items()
  }
  torch_zip.write(tmp_path / 'a.pt', contents)
  read = array_files.load(tmp_path / 'a.pt')
  assert list(read) == list(views)
  for name, (array, _, _) in views.items():
    assert read[name].shape == array.shape
    np.testing.assert_array_equal(read[name], array)
    if array.size:
      assert np.shares_memory(read[name], read['all'])
      assert not read[name].flags.writeable


def test_parameters_sizes_and_dict_attributes(tmp_path):
  array = _values('float32')
  call = functools.partial(torch_zip.Call, 'torch._utils')
  x, y, hooks = torch_zip.tensor(array), torch_zip.tensor(array[0]), OrderedDict()
  state_dict = OrderedDict(
    weight=call('_rebuild_parameter', x, True, hooks),
    bias=call('_rebuild_parameter_with_state', y, True, hooks, {'tag': 1}),
  )
  state_dict._metadata = OrderedDict({'': {'version': 1}})
  contents = {'model': state_dict, 'size': torch_zip.Call('torch', 'Size', (2, 3))}
  torch_zip.write(tmp_path / 'a.pt', contents)
  read = array_files.load(tmp_path / 'a.pt')
  np.testing.assert_array_equal(read['weight'], array)
  np.testing.assert_array_equal(read['bias'], array[0])


def test_only_the_chosen_part_is_read(tmp_path):
  """The bytes of model and optimizer are missing from this file, and nobody asks for them."""
  array = _values('float32')
  contents = {
    'model': torch_zip.tensors({'x': array}),
    'ema': torch_zip.tensors({'x': 2 * array}),
    'opt': {'state': {0: torch_zip.tensors({'exp_avg': array})}, 'param_groups': [{'lr': 1e-4}]},
    'args': argparse.Namespace(model='SiT-XL/2', results_dir='results', betas=(0.9, 0.999)),
    'steps': 400_000,
  }
  path = tmp_path / 'a.pt'
  torch_zip.write(path, contents, **{'data/0': None, 'data/2': None})
  np.testing.assert_array_equal(array_files.load(path)['x'], 2 * array)
  with pytest.raises(types.UserError, match=r'a\.pt is damaged.*archive/data/0 is missing'):
    array_files.load(path, key='model')


def test_the_tensors_of_a_program_are_read_and_its_code_is_not(tmp_path):
  array = _values('float16')
  arrays = {'scale': array[0, 0], 'a.weight': array, 'a.0.b.bias': array[1], 'c.weight': 2 * array}
  torch_zip.write_program(tmp_path / 'a.pt', arrays)
  read = array_files.load(tmp_path / 'a.pt')
  assert set(read) == set(arrays)
  for name, expected in arrays.items():
    assert read[name].dtype == np.float16
    np.testing.assert_array_equal(read[name], expected)


# What checkpoints hold beside their tensors, as PyTorch pickles it.
_call = torch_zip.Call
_BESIDE = {
  'a scalar of NumPy': np.float64(3.2),
  'an array': np.arange(3),
  'an array of objects': np.array([{}, None], object),
  'a dtype of NumPy': np.dtype('f4'),
  'random numbers': np.random.default_rng(0),
  'a path': pathlib.PurePosixPath('/a/b'),
  'arguments': argparse.Namespace(lr=1e-4, folder=pathlib.PurePosixPath('.')),
  'a dtype': torch_zip.Global('torch', 'float16'),
  'a device': _call('torch', 'device', 'cuda', 0),
  'a layout': _call('torch.serialization', '_get_layout', 'torch.strided'),
  'a config': torch_zip.Instance('omegaconf.dictconfig', 'DictConfig', {'_content': {}}),
  'a derived dict': torch_zip.Items('easydict', 'EasyDict', {'lr': 1, 'betas': (0.9, 0.95)}),
  'keys that are objects': {_call('pathlib', 'PosixPath', 'a'): 1, (1, 2): 3},
  'a counter': collections.Counter('aab'),
  'a time': datetime.datetime(2026, 1, 1),
  'a function': torch_zip.Global('os.path', 'join'),
  'a set of objects': {pathlib.PurePosixPath('a')},
  'a tensor of another kind': _call('torch._utils', '_rebuild_sparse_tensor', 1, (2, 3)),
  'a call': _call('os', 'system', ':'),
}


@pytest.mark.parametrize('beside', _BESIDE)
def test_nothing_beside_the_tensors_is_a_reason_to_refuse(tmp_path, beside):
  array = _values('float32')
  contents = {'state_dict': torch_zip.tensors({'x': array}), 'epoch': 3, 'beside': _BESIDE[beside]}
  torch_zip.write(tmp_path / 'a.pt', contents)
  (tmp_path / 'old.pt').write_bytes(torch_zip.legacy(contents))
  for file in ('a.pt', 'old.pt'):
    read = array_files.load(tmp_path / file)
    assert list(read) == ['x']
    np.testing.assert_array_equal(read['x'], array)


def test_code_is_never_run_and_told(tmp_path):
  marker, path = tmp_path / 'marker', tmp_path / 'evil.pt'
  contents = {'x': torch_zip.tensor(_X), 'y': torch_zip.Call('os', 'system', f'mkdir {marker}')}
  torch_zip.write(path, contents)
  read = array_files.read(path)
  assert list(read.arrays) == ['x']
  assert read.notes == ('not read, and nothing of it run: os.system',)
  assert not marker.exists()
  torch_zip.write(path, contents['y'])
  with zipfile.ZipFile(path) as archive:
    pickle.loads(archive.read('archive/data.pkl'))
  assert marker.exists(), 'the payload works where nobody guards against it'


def test_what_may_be_missed_is_told(tmp_path):
  """An average that is a list without names, and a tensor of a kind that is not read."""
  sparse = torch_zip.Call('torch._utils', '_rebuild_sparse_tensor', 1)
  model = torch_zip.tensors({'x': _X}) | {'y': sparse}
  average = {'decay': 0.999, 'shadow_params': [torch_zip.tensor(_X)] * 2}
  torch_zip.write(tmp_path / 'a.pt', {'model': model, 'ema': average})
  read = array_files.read(tmp_path / 'a.pt')
  assert list(read.arrays) == ['x']
  assert read.notes[0] == (
    'left out what is no array: model.y (torch._utils._rebuild_sparse_tensor), '
    'ema.shadow_params (a list of 2 arrays without names)'
  )


_CODE_ALONE = {
  'by GLOBAL': (b'cbuiltins\neval\n(V1\ntR.', 'builtins.eval'),
  'by STACK_GLOBAL': (b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01:\x85R.', 'os.system'),
  'by INST': (b'(V:\nios\nsystem\n.', 'os.system'),
  'attribute of a permitted one': (
    b'\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.',
    'collections.OrderedDict.fromkeys',
  ),
}


def test_a_number_in_a_pickle_takes_no_memory(tmp_path):
  """The number that an object is remembered by; C's unpickler makes room for as many, and twice."""
  data = _saved({}, **{'data.pkl': b'\x80\x04Nr\xff\xff\xff\0.'})
  tracemalloc.start()
  try:
    bad_files.refused(tmp_path / 'a.pt', data, 'holds no tensors')
    assert tracemalloc.get_traced_memory()[1] < 2**24
  finally:
    tracemalloc.stop()


@pytest.mark.parametrize('how', _CODE_ALONE)
def test_however_it_is_called_nothing_comes_of_code(tmp_path, how):
  pickled, name = _CODE_ALONE[how]
  data = _saved({}, **{'data.pkl': pickled})
  bad_files.refused(tmp_path / 'a.pt', data, f'holds no tensors; it holds {name}')


def test_networks_that_were_saved_whole(tmp_path):
  """Their tensors are attributes; those that `state_dict()` leaves out are left out."""
  module = functools.partial(torch_zip.Instance, 'torch.nn', 'Module')

  def made(parameters, modules=None, buffers=None):
    return module(
      {
        '_parameters': torch_zip.tensors(parameters) | {'bias': None},
        '_buffers': torch_zip.tensors(buffers or {}),
        '_non_persistent_buffers_set': {'cache'},
        '_modules': OrderedDict(modules or {}),
        'training': True,
      }
    )

  inner = made({'weight': _X}, buffers={'mean': 2 * _X, 'cache': _X})
  net = made({'scale': 3 * _X}, {'0': inner, 'final': made({'weight': 4 * _X})})
  torch_zip.write(tmp_path / 'a.pt', {'epoch': 7, 'net': net})
  read = array_files.load(tmp_path / 'a.pt')
  expected = {'scale': 3 * _X, '0.weight': _X, '0.mean': 2 * _X, 'final.weight': 4 * _X}
  assert set(read) == set(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize('state', [b'}V__code__\nVx\ns', b'N}V__defaults__\n)s\x86'])
@pytest.mark.parametrize('name', [b'torch._utils\n_rebuild_tensor_v2', b'argparse\nNamespace'])
def test_a_pickle_cannot_alter_the_stand_ins(tmp_path, name, state):
  pickled = b'\x80\x02c' + name + b'\n' + state + b'b.'
  bad_files.refused(tmp_path / 'bad.pt', _saved({}, **{'data.pkl': pickled}), 'is damaged')


def _saved(contents, **changes):
  buffer = io.BytesIO()
  torch_zip.write(buffer, contents, **changes)
  return buffer.getvalue()


_GOOD = {'x': torch_zip.tensor(_X)}
_CODE = {'constants.pkl': b'\x80\x02).'}
_module = functools.partial(torch_zip.Instance, '__torch__', 'Net')


def _doubled(times):
  """A module that holds itself twice, and so on: small, and large when taken apart."""
  module = _module({'x': torch_zip.tensor(_X)})
  for _ in range(times):
    module = _module({'a': module, 'b': module})
  return module


def _view(shape, strides, offset=0):
  array = np.broadcast_to(_X[0], (1,) * len(shape))
  call = torch_zip.tensor(array, storage=torch_zip.Storage(_X), offset=offset, strides=strides)
  func, args = call._reduced
  return {'x': torch_zip.Call(func.module, func.name, *args[:2], shape, *args[3:])}


_DAMAGED = {
  'truncated': (_saved(_GOOD)[:-30], 'is truncated'),
  'another zip': (_saved(_GOOD, **{'data.pkl': None}), 'a zip archive, but not one of torch.save'),
  'modules without end': (_saved(_doubled(40), **_CODE), 'more than 100000 entries'),
  'numbers alone': (_saved(_module({3: 4}), **_CODE), 'holds no tensors; it holds 3 (int)'),
  'half a pickle': (_saved(_GOOD, **{'data.pkl': b'\x80\x02}V'}), 'damaged'),
  'storage short': (_saved(_GOOD, **{'data/0': b'123'}), '3 bytes, expected 24'),
  'flipped bits': (_saved(_GOOD).replace(_X.tobytes(), (-_X).tobytes()), 'CRC'),
  'byte order': (_saved(_GOOD, byteorder=b'middle'), 'unknown byte order'),
  'past the storage': (_saved(_view((6,), (1,), offset=1)), 'ends after its storage'),
  'negative stride': (_saved(_view((2,), (-1,), offset=3)), 'strides'),
  'ranks differ': (_saved(_view((2, 3), (1,))), 'strides'),
  'too many elements': (_saved(_view((2**40,), (0,))), 'repeats its storage'),
  # Lists in lists, of which a message must not make a text.
  'no shape': (_saved(_view([[_X.tolist()] * 2] * 2, (1,))), 'offset do not go together'),
  'none, of a size without end': (_saved(_view((0, 2**70), (1, 1))), 'damaged'),
  'conjugate': (
    _saved({'x': torch_zip.tensor(_X, metadata={'neg': True})}),
    'it holds x (a tensor with operations that are still to be done)',
  ),
  'no tensors': (_saved([1, 'a']), 'holds no tensors; it holds 0 (int), 1 (str)'),
}


@pytest.mark.parametrize('case', _DAMAGED)
def test_damaged_and_foreign_files_are_refused(tmp_path, case):
  bad_files.refused(tmp_path / 'bad.pth', *_DAMAGED[case])


def test_every_truncation_is_refused(tmp_path):
  bad_files.truncations_refused(tmp_path / 'bad.pt', _saved(_GOOD))


def test_files_of_pytorch_itself(tmp_path):
  torch = pytest.importorskip('torch')
  base = torch.arange(24, dtype=torch.float32)
  module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4)).double()
  optimizer = torch.optim.AdamW(module.parameters())
  module(torch.ones(2, 3).double()).sum().backward()
  optimizer.step()
  tagged = torch.nn.Parameter(base[:2].clone())
  tagged.note = 'kept by PyTorch as state of the parameter'
  tensors = {
    **{str(d): base.to(d) for d in (torch.float16, torch.bfloat16, torch.float32, torch.float64)},
    **{str(d): base.to(d) for d in (torch.int64, torch.int32, torch.int16, torch.uint8)},
    'int8': base.to(torch.int8),
    'bool': base > 5,
    'transposed': base.view(4, 6).T,
    'slice': base[3:9:2],
    'shared': base,
    'expanded': base[2].expand(3, 2),
    'scalar': torch.tensor(1.5),
    'empty': torch.empty(0, 3),
    'parameter': torch.nn.Parameter(base.view(2, 12)),
    'tagged': tagged,
  }
  contents = {
    'model': module.state_dict(),
    'ema': tensors,
    'opt': optimizer.state_dict(),
    'args': argparse.Namespace(lr=1e-4),
    'steps': 7,
  }
  torch.save(contents, tmp_path / 'a.pt')
  torch.save(contents, tmp_path / 'old.pt', _use_new_zipfile_serialization=False)
  parts = (('ema', tensors), ('model', module.state_dict()))
  for file, (key, expected) in itertools.product(('a.pt', 'old.pt'), parts):
    read = array_files.load(tmp_path / file, key=key)
    assert list(read) == list(expected)
    for name, x in expected.items():
      assert str(x.dtype).removeprefix('torch.') == read[name].dtype.name
      assert tuple(x.shape) == read[name].shape
      np.testing.assert_array_equal(read[name].astype('float64'), x.detach().double().numpy())
  traced = torch.jit.trace(module.eval(), torch.ones(2, 3).double())
  traced.save(tmp_path / 'program.pt')
  read = array_files.load(tmp_path / 'program.pt')
  assert set(read) == set(module.state_dict())
  for name, x in module.state_dict().items():
    np.testing.assert_array_equal(read[name], x.numpy())
