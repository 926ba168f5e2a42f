"""Files of torch.save: read equal, and never run."""

import argparse
from collections import OrderedDict
import functools
import io
import itertools
import pickle
import zipfile

from helpers import bad_files, torch_zip
import ml_dtypes
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.weights import array_files


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


def test_code_is_refused_and_not_run(tmp_path):
  marker, path = tmp_path / 'marker', tmp_path / 'evil.pt'
  contents = {'x': torch_zip.Call('os', 'system', f'mkdir {marker}')}
  torch_zip.write(path, contents)
  with pytest.raises(types.UserError, match=r"evil\.pt asks for 'os\.system'"):
    array_files.load(path)
  assert not marker.exists()
  with zipfile.ZipFile(path) as archive:
    pickle.loads(archive.read('archive/data.pkl'))
  assert marker.exists(), 'the payload works where nobody guards against it'


_FORBIDDEN = {
  'by GLOBAL': (b'cbuiltins\neval\n(V1\ntR.', 'builtins.eval'),
  'by STACK_GLOBAL': (b'\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x01:\x85R.', 'os.system'),
  'by INST': (b'(V:\nios\nsystem\n.', 'os.system'),
  'attribute of a permitted one': (
    b'\x80\x04\x8c\x0bcollections\x8c\x14OrderedDict.fromkeys\x93.',
    'collections.OrderedDict.fromkeys',
  ),
  'class of a program': (b'c__torch__.net\nNet\n.', '__torch__.net.Net'),
}


@pytest.mark.parametrize('how', _FORBIDDEN)
def test_any_other_global_is_refused(tmp_path, how):
  pickled, name = _FORBIDDEN[how]
  bad_files.refused(tmp_path / 'a.pt', _saved({}, **{'data.pkl': pickled}), f"asks for '{name}'")


@pytest.mark.parametrize('state', [b'}V__code__\nVx\ns', b'N}V__defaults__\n)s\x86'])
@pytest.mark.parametrize('name', [b'torch._utils\n_rebuild_tensor_v2', b'argparse\nNamespace'])
def test_a_pickle_cannot_alter_the_stand_ins(tmp_path, name, state):
  pickled = b'\x80\x02c' + name + b'\n' + state + b'b.'
  bad_files.refused(tmp_path / 'bad.pt', _saved({}, **{'data.pkl': pickled}), 'is damaged')


def _saved(contents, **changes):
  buffer = io.BytesIO()
  torch_zip.write(buffer, contents, **changes)
  return buffer.getvalue()


_X = np.arange(6, dtype=np.float32)
_GOOD = {'x': torch_zip.tensor(_X)}
_CODE = {'constants.pkl': b'\x80\x02).'}
_module = functools.partial(torch_zip.Instance, '__torch__', 'Net')
_SHARED = _module({'x': torch_zip.tensor(_X)})


def _view(shape, strides, offset=0):
  array = np.broadcast_to(_X[0], (1,) * len(shape))
  call = torch_zip.tensor(array, storage=torch_zip.Storage(_X), offset=offset, strides=strides)
  func, args = call._reduced
  return {'x': torch_zip.Call(func.module, func.name, *args[:2], shape, *args[3:])}


_DAMAGED = {
  'truncated': (_saved(_GOOD)[:-30], 'is truncated'),
  'text': (b'<html>404</html>', 'not a file of torch.save'),
  'another zip': (_saved(_GOOD, **{'data.pkl': None}), 'a zip archive, but not one of torch.save'),
  'no module': (_saved(_GOOD, **_CODE), 'TorchScript program without a module'),
  'a shared module': (_saved(_module({'a': _SHARED, 'b': _SHARED}), **_CODE), 'in two places'),
  'a nameless part': (_saved(_module({3: 4}), **_CODE), 'without a name'),
  'half a pickle': (_saved(_GOOD, **{'data.pkl': b'\x80\x02}V'}), 'damaged'),
  'storage short': (_saved(_GOOD, **{'data/0': b'123'}), '3 bytes, expected 24'),
  'flipped bits': (_saved(_GOOD).replace(_X.tobytes(), (-_X).tobytes()), 'CRC'),
  'byte order': (_saved(_GOOD, byteorder=b'middle'), 'unknown byte order'),
  'past the storage': (_saved(_view((6,), (1,), offset=1)), 'ends after its storage'),
  'negative stride': (_saved(_view((2,), (-1,), offset=3)), 'strides'),
  'ranks differ': (_saved(_view((2, 3), (1,))), 'strides'),
  'too many elements': (_saved(_view((2**80,), (0,))), 'damaged'),
  'conjugate': (_saved({'x': torch_zip.tensor(_X, metadata={'neg': True})}), 'lazy operations'),
  'no dict': (_saved([1, 2]), 'does not hold a state dict'),
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
