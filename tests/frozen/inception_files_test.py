"""Files of Inception: both ports' names and layouts, digests, refusals; a short network."""

import hashlib
import pickle

from helpers import torch_zip
import jax
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.frozen import inception, inception_files
from diversedit_jax.weights import array_files

STEM = 'Conv2d_1a_3x3'
PTH, _, PICKLE = inception_files.FILES


@pytest.fixture(autouse=True)
def short(monkeypatch):
  """One convolution, one block and a head: 3 kB of weights instead of 95 MB."""
  conv = inception.Conv
  block = inception.Fork('Mixed_5b', ((conv('branch1x1', 2),), (conv('branch5x5_2', 3, 1, 5),)))
  monkeypatch.setattr(inception, 'NETWORK', (conv(STEM, 4, 3, 3), block))
  monkeypatch.setattr(inception, 'WIDTH', 5)
  monkeypatch.setattr(inception, 'CLASSES', 7)


@pytest.fixture
def source(short):
  return inception_files.random(3)


@pytest.fixture
def arrays(short):
  return inception_files.random_arrays(3)


def flax_tree(arrays):
  """The same weights as the port to Flax nests and lays them out."""
  leaves = {'running_mean': 'mean', 'running_var': 'var', 'weight': 'scale', 'bias': 'bias'}
  tree = {}
  for name, array in arrays.items():
    *folders, kind, leaf = name.split('.')
    if kind in ('conv', 'fc') and leaf == 'weight':
      leaf = 'kernel'
      array = np.transpose(array, (2, 3, 1, 0)[-array.ndim :] if array.ndim == 4 else (1, 0))
    node = tree
    for folder in (*folders, kind):
      node = node.setdefault(folder, {})
    node[leaves.get(leaf, leaf)] = np.ascontiguousarray(array)
  return tree


@pytest.fixture
def publish(monkeypatch):
  """Makes a file the published one."""

  def of(path):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setattr(inception_files, 'PUBLISHED_SHA256', digest)
    return path

  return of


def write(path, arrays):
  if path.suffix == '.pickle':
    path.write_bytes(pickle.dumps(flax_tree(arrays)))
  elif path.suffix == '.pth':
    torch_zip.write(path, torch_zip.tensors(arrays))
  else:
    array_files.save(path, arrays)
  return path


def equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
  assert found.sha256 == expected.sha256


def test_a_file_is_what_its_name_says_or_refused(tmp_path, arrays):
  """Its name ends with the first digits of the digest of the real file, which this one is not."""
  path = write(tmp_path / PTH, arrays)
  with pytest.raises(types.UserError, match=rf'{PTH} is damaged or another .* expected 6726825d'):
    inception_files.load(path)
  assert not inception_files.load(path.rename(tmp_path / 'own.pth')).verified


@pytest.mark.parametrize('name', [*inception_files.FILES, 'a.npz'])
def test_every_format_gives_the_same_network(tmp_path, source, arrays, publish, name):
  publish(write(tmp_path / name, arrays))
  found = inception_files.load(tmp_path if name in inception_files.FILES else tmp_path / name)
  equal(found, source)
  assert found.file == name and not found.random and found.verified == name.endswith('.pth')
  shapes = {key: x.shape for key, x in trees.named_leaves(inception.shapes()).items()}
  assert {key: x.shape for key, x in trees.named_leaves(found.params).items()} == shapes


def test_what_no_score_uses_is_left_out(tmp_path, source, arrays):
  extra = {
    'fc.bias': np.ones(7, np.float32),
    f'{STEM}.bn.num_batches_tracked': np.int64(3),
    'AuxLogits.conv0.conv.weight': np.ones((2, 2, 1, 1), np.float32),
  }
  equal(inception_files.from_arrays(arrays | extra), source)
  equal(inception_files.load(write(tmp_path / PICKLE, arrays | extra)), source)


def test_digests_are_the_same_in_every_version(arrays):
  """They stand beside scores, which must be compared later."""
  count = lambda x: (np.arange(x.size, dtype=np.float32) % 7).reshape(x.shape)
  found = inception_files.from_arrays({name: count(x) for name, x in arrays.items()})
  assert found.sha256[:16] == 'db351f1da2bb3dd3'


def test_a_missing_file_is_described(tmp_path):
  for path, found in ((tmp_path / 'a.pth', 'there is no'), (tmp_path, 'does not hold it')):
    with pytest.raises(types.UserError) as caught:
      inception_files.load(path)
    for part in (str(path), found, PTH, PICKLE, '95 MB', 'mseitzer/pytorch-fid', 'jax-fid'):
      assert part in str(caught.value)


def test_wrong_arrays_are_refused(tmp_path, arrays):
  variance, kernel = f'{STEM}.bn.running_var', f'{STEM}/conv/kernel'
  changes = {
    r"a\.npz: .*torchvision's own.* fc.weight has shape": {
      'fc.weight': np.ones((6, 5), np.float32)
    },
    'not expected: extra.fc.bias': {'extra.fc.bias': np.ones(1, np.float32)},
    'not finite': {variance: arrays[variance] * np.nan},
    f'negative variances: {variance}': {variance: -arrays[variance]},
    f'{STEM}.conv.weight is there twice': {kernel: np.ones((3, 3, 3, 4), np.float32)},
  }
  for message, change in changes.items():
    path = write(tmp_path / 'a.npz', arrays | change)
    with pytest.raises(types.UserError, match=message):
      inception_files.load(path)
    path.unlink()


def test_random_weights_by_name_say_that_they_are():
  found = inception_files.load('random:3')
  assert found.random and found.file == 'random-3'
  assert found.sha256 == inception_files.random(3).sha256 != inception_files.random(0).sha256
  with pytest.raises(types.UserError, match='there is no random:x'):
    inception_files.load('random:x')
