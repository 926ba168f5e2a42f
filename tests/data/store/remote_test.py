"""A store in a bucket read by ranges: the same records, their bytes alone, and damage is found."""

import pickle
from unittest import mock

from helpers import bucket, store_files
import numpy as np
import pytest

from diversedit_jax import paths, types
from diversedit_jax.data.store import local, places, ranges, reader, remote, verify


@pytest.fixture
def root(tmp_path):
  store_files.write(tmp_path / 'small')
  return tmp_path / 'small'


@pytest.fixture
def asked(monkeypatch):
  """(name, begin, end) of what was read."""
  found, read = [], places.Place.read

  def noted(self, begin=0, end=None):
    found.append((self.name, begin, end))
    return read(self, begin, end)

  monkeypatch.setattr(places.Place, 'read', noted)
  return found


INDICES, FLIPS = np.array([3, 1, 4, 1, 0, 2]), np.array([0, 1, 1, 0, 0, 1], bool)


@pytest.mark.parametrize('run', [1, 100, 1 << 20])
def test_records_are_those_of_the_disk(root, monkeypatch, run):
  monkeypatch.setattr(remote, '_RUN', run)
  here = reader.Store(root)
  there = pickle.loads(pickle.dumps(reader.Store(places.Place(f'file://{root}'))))
  for indices, flips in ((INDICES, FLIPS), (np.arange(5), None), (np.arange(0), None)):
    for column in ('moments', 'pixels'):
      given = flips if column == 'moments' else None
      found, expected = (store.read(column, indices, given) for store in (there, here))
      assert found.dtype == expected.dtype
      np.testing.assert_array_equal(found, expected)


def test_only_the_records_asked_for_are_read(root, asked):
  store = reader.Store(places.Place(f'file://{root}'))
  del asked[:]
  store.read('pixels', np.array([4, 1, 0]))
  assert sorted(asked) == [
    ('pixels-00000.array_record', *ranges.span(48, 0, 2)),
    ('pixels-00001.array_record', *ranges.span(48, 1, 1)),
  ]


def test_a_damaged_record_is_read_again_and_then_refused(root, asked):
  store = reader.Store(places.Place(f'file://{root}'))
  path = root / 'shards' / 'moments-00001.array_record'
  sound = path.read_bytes()
  place = ranges.span(32, 2, 1)[1] - 1
  path.write_bytes(sound[:place] + bytes([sound[place] ^ 4]) + sound[place + 1 :])
  store.read('moments', np.array([3]))
  del asked[:]
  with pytest.raises(local.BadRecord, match=f'{path} cannot be read: record 2 is damaged'):
    store.read('moments', np.array([3, 4]))
  assert asked[2:] == [('moments-00001.array_record', *ranges.span(32, 2, 1))]


def test_a_bucket_that_does_not_answer_is_not_taken_for_a_wrong_file(root, monkeypatch):
  store = reader.Store(places.Place(f'file://{root}'))
  silence = types.UserError('no answer')
  monkeypatch.setattr(places.Reading, 'result', mock.Mock(side_effect=silence))
  with pytest.raises(types.UserError, match='^no answer$'):
    store.read('pixels', np.array([2]))


def test_a_record_damaged_on_its_way_is_read_again(root, monkeypatch):
  store, result, spoiled = reader.Store(places.Place(f'file://{root}')), places.Reading.result, []

  def once(self):
    data = result(self)
    if spoiled:
      return data
    spoiled.append(self)
    return data[:-1] + bytes([data[-1] ^ 1])

  monkeypatch.setattr(places.Reading, 'result', once)
  found = store.read('pixels', np.array([2]))
  np.testing.assert_array_equal(found, store_files.pixels(2))
  assert spoiled


@pytest.mark.parametrize(
  ('spoil', 'said'),
  [
    (lambda path: path.unlink(), 'No such file'),
    (lambda path: path.write_bytes(path.read_bytes()[:150]), 'found 0 bytes'),
  ],
)
def test_a_file_that_is_missing_or_short_is_named(root, spoil, said):
  store, path = (
    reader.Store(places.Place(f'file://{root}')),
    root / 'shards' / 'pixels-00000.array_record',
  )
  spoil(path)
  with pytest.raises(types.UserError, match=f'{path} cannot be read: {said}'):
    store.read('pixels', np.array([2]))


def test_what_is_no_store_is_refused(tmp_path, root):
  with pytest.raises(types.UserError, match='https://x/y: stores are read from a folder, from gs:'):
    reader.Store('https://x/y')
  with pytest.raises(types.UserError, match=f'file://{tmp_path}/other is no store'):
    reader.Store(places.Place(f'file://{tmp_path}/other'))
  (root / 'manifest.json').unlink()
  (root / 'shards' / '00001.json').unlink()
  with pytest.raises(types.UserError, match='is unfinished: 1 of 2 shards'):
    reader.Store(places.Place(f'file://{root}'))


def spoil_pixels(root):
  path = root / 'shards' / 'pixels-00001.array_record'
  data = path.read_bytes()
  path.write_bytes(data[:70] + bytes([data[70] ^ 1]) + data[71:])


def append(root):
  with open(root / 'shards' / 'moments-00000.array_record', 'ab') as file:
    file.write(b'x')


@pytest.mark.parametrize(
  'spoil',
  [
    lambda root: None,
    spoil_pixels,
    append,
    lambda root: (root / 'shards' / 'moments-00001.array_record').unlink(),
    lambda root: (root / 'shards' / 'stranger').write_text(''),
    lambda root: (root / 'manifest.json').unlink(),
    lambda root: (root / 'shards' / '00001.json').write_text('{}'),
    lambda root: (root / 'skipped.csv').write_text('name,reason\n'),
    lambda root: (root / 'labels.npy').write_bytes(b''),
  ],
)
def test_verifying_finds_what_it_finds_on_a_disk(root, spoil):
  spoil(root)
  here, there = verify.verify(root), verify.verify(places.Place(f'file://{root}'))
  there_faults = tuple((name, fault.replace('file://', '')) for name, fault in there.faults)
  assert there_faults == here.faults
  assert (there.mean, there.std, there.classes) == (here.mean, here.std, here.classes)


def test_a_store_in_a_bucket(root, tmp_path):
  """On an emulator of the storage API: read by ranges, verified, copied."""
  url = f'{bucket.new()}/small'
  there = paths.path(url, bucket=True)
  for path in root.rglob('*.*'):
    (there / path.relative_to(root).as_posix()).write_bytes(path.read_bytes())
  store, here = reader.Store(url), reader.Store(root)
  for column, flips in (('moments', FLIPS), ('pixels', None)):
    expected = here.read(column, INDICES, flips)
    np.testing.assert_array_equal(store.read(column, INDICES, flips), expected)
  assert not verify.verify(url).faults
  store.fetch(tmp_path / 'cache', ('moments', 'pixels'))
  (copy,) = (tmp_path / 'cache').iterdir()
  assert not verify.verify(copy).faults
  missing, longer = (there / 'shards' / f'moments-0000{s}.array_record' for s in (0, 1))
  missing.unlink()
  longer.write_bytes((root / 'shards' / longer.name).read_bytes() + b'x')
  assert verify.verify(url).faults == (
    (f'shards/{missing.name}', 'is missing'),
    (f'shards/{longer.name}', 'has 131073 bytes, its facts say 131072'),
  )
  with pytest.raises(types.UserError, match=f'{there}/shards/moments-00000.* No such file'):
    reader.Store(url).read('moments', np.array([0]))
