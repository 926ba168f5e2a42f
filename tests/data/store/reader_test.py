"""A finished store gives back what was written, in any order; whatever is damaged is named."""

from concurrent import futures
import json
import os
import pathlib
import pickle
import shutil

from helpers import store_files
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data.store import layout, reader, writer

ROOT = pathlib.Path(__file__).parents[3]
EXAMPLES = 5
MOMENTS = np.stack([store_files.moments(i) for i in range(EXAMPLES)])  # [5, 2, *shape]
PIXELS = np.concatenate([store_files.pixels(i) for i in range(EXAMPLES)])


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  root = tmp_path_factory.mktemp('written') / 'store'
  store_files.write(root)
  return root


@pytest.fixture
def copy(written, tmp_path):
  """A store that a test may damage."""
  return shutil.copytree(written, tmp_path / 'store')


def refusal(root):
  with pytest.raises(types.UserError) as error:
    reader.Store(root)
  return str(error.value)


@pytest.mark.parametrize('indices', [[4], [4, 3, 2, 1, 0], [3, 0, 3, 3, 1, 4, 0], []], ids=str)
def test_any_indices_in_any_order_are_what_was_written(written, indices):
  store, indices = reader.Store(written), np.array(indices, np.int64)
  np.testing.assert_array_equal(store.labels, store_files.LABELS)
  assert [store.key(i) for i in range(EXAMPLES)] == ['0', '1', '3', '4', '5']
  moments, pixels = store.read('moments', indices), store.read('pixels', indices)
  assert moments.dtype == np.float16 and pixels.dtype == np.uint8
  np.testing.assert_array_equal(moments, MOMENTS[indices, 0])
  np.testing.assert_array_equal(pixels, PIXELS[indices])
  moments[:] = 0  # What was read may be written to.
  flips = np.arange(len(indices)) % 3 != 1
  found = store.read('moments', indices, flips)
  np.testing.assert_array_equal(found, MOMENTS[indices, flips.astype(int)])
  # There are no twins of pixels, and what has none is read as it is.
  np.testing.assert_array_equal(store.read('pixels', indices, flips), PIXELS[indices])


def test_several_threads_read_the_same(written):
  pickled = pickle.dumps(reader.Store(written))
  assert len(pickled) < 5000  # No open files, no records.
  store = pickle.loads(pickled)
  rng = np.random.default_rng(0)
  asked = [(rng.integers(0, EXAMPLES, 6), rng.integers(0, 2, 6) == 1) for _ in range(200)]
  with futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda pair: store.read('moments', *pair), asked))
  for (indices, flips), moments in zip(asked, found, strict=True):
    np.testing.assert_array_equal(moments, MOMENTS[indices, flips.astype(int)])


def test_a_shard_without_examples_is_none(tmp_path):
  layout.write_json(tmp_path / 'plan.json', store_files.PLAN)
  writer.write_shard(tmp_path, store_files.PLAN, 0, [store_files.SKIPPED] * 4)
  writer.write_shard(tmp_path, store_files.PLAN, 1, store_files.results(1))
  assert writer.finish(tmp_path, store_files.PLAN, (), {}).counts == (0, 2)
  store = reader.Store(tmp_path)
  assert len(store) == 2
  np.testing.assert_array_equal(store.read('pixels', np.array([1, 0])), PIXELS[[4, 3]])


def test_what_is_no_finished_store_of_this_version_is_refused(copy, tmp_path):
  assert refusal(tmp_path) == f'{tmp_path} is no store: it has no plan.json'
  path = copy / 'manifest.json'
  manifest = json.loads(path.read_text())
  path.write_text('{')
  assert refusal(copy).startswith(f'{path}: damaged, not JSON: ')
  path.write_text('{"plan": {}}')
  assert refusal(copy).startswith(f'{path}: expected the entries ')
  manifest['plan']['version'] = 2
  path.write_text(json.dumps(manifest))
  assert refusal(copy) == f'{path}: the store has version 2; this program reads version 1'
  writer.reopen(copy, 1)
  assert f'{copy} is unfinished: 1 of 2 shards are done' in refusal(copy)


# What became of a shard's file.
LOST = {
  'missing': lambda path: path.unlink(),
  'half': lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
  'a byte short': lambda path: path.write_bytes(path.read_bytes()[:-1]),
  'text': lambda path: path.write_text('no records ' * 10_000),
  'a folder': lambda path: (path.unlink(), path.mkdir()),
  'another shard': lambda path: shutil.copy(path.with_stem('moments-00000'), path),
}


@pytest.mark.parametrize('what', LOST)
def test_a_shard_that_is_not_whole_is_named_when_the_store_is_opened(copy, what):
  path = layout.shard_file(copy, 'moments', 1)
  LOST[what](path)
  message = refusal(copy)
  if what == 'missing':
    assert message.startswith(f'{path} cannot be read: No such file or directory; ')
  else:
    found = '6 records' if what == 'another shard' else 'a damaged file'
    assert message.startswith(f'{path}: found {found}, expected 4 records')
  assert 'prepare again with the same arguments' in message


@pytest.mark.parametrize('number', [13, 24])
def test_a_file_that_cannot_be_opened_is_told_so(copy, monkeypatch, number):
  """ArrayRecord would call it damaged; the superuser may read all, so the system is replaced."""
  path, opened = layout.shard_file(copy, 'pixels', 1), os.open

  def refuse(file, *how, **more):
    if file == path:
      raise OSError(number, os.strerror(number))
    return opened(file, *how, **more)

  monkeypatch.setattr(os, 'open', refuse)
  message = refusal(copy)
  assert message.startswith(f'{path} cannot be read: {os.strerror(number)}')
  assert ('`ulimit -n`' in message) == (number == 24) and 'remove' not in message


def test_a_shard_of_other_records_is_named_when_it_is_read(copy):
  """The file has as many records, but of another store."""
  foreign = writer.Example(
    key='0', label=0, sha256='', columns={'pixels': np.zeros((1, 2, 2, 3), np.uint8)}
  )
  column = layout.ColumnFacts(dtype='uint8', shape=(2, 2, 3))
  plan = layout.Plan(**{**vars(store_files.PLAN), 'columns': {'pixels': column}})
  writer.write_shard(copy.parent / 'other', plan, 1, [foreign] * 2)
  path = layout.shard_file(copy, 'pixels', 1)
  shutil.copy(layout.shard_file(copy.parent / 'other', 'pixels', 1), path)
  store = reader.Store(copy)
  np.testing.assert_array_equal(store.read('pixels', np.arange(3)), PIXELS[:3])
  with pytest.raises(types.UserError) as error:
    store.read('pixels', np.array([0, 3]))
  found = f'{path} cannot be read: record 0 has 12 bytes, expected 48; '
  assert str(error.value).startswith(found)


def test_no_flipped_byte_gives_other_numbers(copy):
  """Wherever it is: the store is refused when it is opened or read, or nothing was changed."""
  path = layout.shard_file(copy, 'moments', 0)
  whole, indices = path.read_bytes(), np.repeat(np.arange(3), 2)
  flips = np.arange(6) % 2 == 1
  found = 0
  for place in np.flatnonzero(np.frombuffer(whole, np.uint8)):
    damaged = bytearray(whole)
    damaged[place] ^= 16
    path.write_bytes(damaged)
    try:
      moments = reader.Store(copy).read('moments', indices, flips)
      np.testing.assert_array_equal(moments, MOMENTS[:3].reshape(6, 2, 2, 4))
    except types.UserError as error:
      assert str(path) in str(error)
      found += 1
  assert found > 500


def test_a_shard_that_is_lost_later_is_named(copy):
  """A worker process opens the files again, when it reads."""
  store = pickle.loads(pickle.dumps(reader.Store(copy)))
  layout.shard_file(copy, 'moments', 1).unlink()
  np.testing.assert_array_equal(store.read('moments', np.array([0])), MOMENTS[:1, 0])
  with pytest.raises(types.UserError, match='moments-00001.array_record cannot be read'):
    store.read('moments', np.array([4]))


@pytest.mark.parametrize('what', ['missing', 'cut', 'another label'])
def test_labels_that_are_not_those_written_are_named(copy, what):
  path = copy / 'labels.npy'
  if what == 'missing':
    path.unlink()
  elif what == 'cut':
    path.write_bytes(path.read_bytes()[:-3])
  else:
    np.save(path, np.array([0, 2, 2, 0, 1], np.int32))
  assert refusal(copy).startswith(f'{path}: ')
