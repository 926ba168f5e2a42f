"""Folders of weights and indexes of shards."""

import json

from helpers import torch_zip
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.weights import array_files

_ARRAYS = {name: np.full((2, 3), i, np.float32) for i, name in enumerate(('a.x', 'b.x', 'c.x'))}


def write_shards(folder, suffix='safetensors', stem='diffusion_pytorch_model'):
  """The arrays in two files and their index, whose path comes back."""
  folder.mkdir(exist_ok=True)
  table = {}
  for i, names in enumerate((['a.x', 'b.x'], ['c.x'])):
    file = f'{stem}-{i + 1:05d}-of-00002.{suffix}'
    arrays = {name: _ARRAYS[name] for name in names}
    if suffix == 'safetensors':
      array_files.save(folder / file, arrays)
    else:
      torch_zip.write(folder / file, torch_zip.tensors(arrays))
    table |= dict.fromkeys(names, file)
  index = folder / f'{stem}.{suffix}.index.json'
  index.write_text(json.dumps({'metadata': {}, 'weight_map': table}))
  return index


def same(read):
  assert set(read) == set(_ARRAYS)
  for name, array in _ARRAYS.items():
    np.testing.assert_array_equal(read[name], array)


@pytest.mark.parametrize('suffix', ['safetensors', 'bin'])
def test_shards_are_read_as_one(tmp_path, suffix):
  index = write_shards(tmp_path / 'transformer', suffix)
  (index.parent / 'config.json').write_text('{}')
  same(array_files.load(index))
  same(array_files.load(index.parent))
  same(array_files.load(tmp_path, within=('transformer',)))


def refused(path, *reasons):
  with pytest.raises(types.UserError) as error:
    array_files.load(path)
  assert all(reason in str(error.value) for reason in (str(path), *reasons)), error.value


def test_shards_that_do_not_fit_are_told(tmp_path):
  index = write_shards(tmp_path)
  table = json.loads(index.read_text())
  shard = tmp_path / table['weight_map']['c.x']

  def changed(name, file):
    weight_map = table['weight_map'] | {name: file}
    index.write_text(json.dumps({'weight_map': weight_map}))

  changed('d.x', shard.name)
  refused(index, 'lack 1 of its 4 names: d.x')
  for file in ('../a.safetensors', '/etc/passwd', '..', '', 3, index.name, 'b.index.json'):
    changed('c.x', file)
    refused(index)
  index.unlink()
  refused(tmp_path, 'without their index')
  write_shards(tmp_path / 'other')
  (tmp_path / 'other' / shard.name).unlink()
  with pytest.raises(types.UserError, match=f'2 files, of which 1 are not beside it: {shard.name}'):
    array_files.load(tmp_path / 'other')


def test_the_file_of_a_folder(tmp_path):
  refused(tmp_path, 'has no file of weights', 'it holds nothing')
  array_files.save(tmp_path / 'mine.safetensors', _ARRAYS)
  for name in ('optimizer.bin', 'random_states_0.pkl', 'training_args.bin', 'readme.md'):
    (tmp_path / name).write_text('')
  same(array_files.load(tmp_path))
  array_files.save(tmp_path / 'other.npz', {'x': np.ones(2, np.float32)})
  refused(tmp_path, 'several files of weights: mine.safetensors, other.npz; name one')
  array_files.save(tmp_path / 'model.safetensors', _ARRAYS)
  (tmp_path / 'pytorch_model.bin').write_text('')  # The same again, as older programs read it.
  same(array_files.load(tmp_path))
  (tmp_path / 'dcp').mkdir()
  (tmp_path / 'dcp' / '__0_0.distcp').write_text('')
  refused(tmp_path / 'dcp', 'dcp_to_torch')
