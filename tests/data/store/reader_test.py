"""A finished store gives back what was written, in any order; whatever is damaged is named."""

from concurrent import futures
import json
import os
import pathlib
import pickle
import shutil
import subprocess
import sys

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


@pytest.fixture(scope='module')
def store(written):
  return reader.Store(written)


@pytest.fixture
def copy(written, tmp_path):
  """A store that a test may damage."""
  return shutil.copytree(written, tmp_path / 'store')


def refusal(root):
  with pytest.raises(types.UserError) as error:
    reader.Store(root)
  return str(error.value)


def test_facts_and_labels_are_those_written(store, written):
  assert len(store) == EXAMPLES and store.root == written
  assert store.manifest.plan == store_files.PLAN
  assert store.labels.dtype == np.int32
  np.testing.assert_array_equal(store.labels, store_files.LABELS)


@pytest.mark.parametrize(
  'indices',
  [[0], [4], [0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 3, 2], [3, 0, 3, 3, 1, 4, 0] * 3, []],
  ids=str,
)
def test_any_indices_in_any_order_are_what_was_written(store, indices):
  indices = np.array(indices, np.int64)
  moments, pixels = store.read('moments', indices), store.read('pixels', indices)
  assert moments.dtype == np.float16 and pixels.dtype == np.uint8
  np.testing.assert_array_equal(moments, MOMENTS[indices, 0])
  np.testing.assert_array_equal(pixels, PIXELS[indices])
  flips = np.arange(len(indices)) % 3 != 1
  found = store.read('moments', indices, flips)
  np.testing.assert_array_equal(found, MOMENTS[indices, flips.astype(int)])
  # There are no twins of pixels, and what has none is read as it is.
  np.testing.assert_array_equal(store.read('pixels', indices, flips), PIXELS[indices])


def test_what_was_read_may_be_written_to(store):
  first = store.read('moments', np.arange(2))
  first[:] = 0
  np.testing.assert_array_equal(store.read('moments', np.arange(2)), MOMENTS[:2, 0])


def test_several_threads_read_the_same(written):
  store = pickle.loads(pickle.dumps(reader.Store(written)))  # Whose files nobody has opened yet.
  rng = np.random.default_rng(0)
  asked = [(rng.integers(0, EXAMPLES, 6), rng.integers(0, 2, 6) == 1) for _ in range(200)]
  with futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(lambda pair: store.read('moments', *pair), asked))
  for (indices, flips), moments in zip(asked, found, strict=True):
    np.testing.assert_array_equal(moments, MOMENTS[indices, flips.astype(int)])


def test_another_process_reads_the_same(store, tmp_path):
  store.read('moments', np.arange(2))
  (tmp_path / 'pickled').write_bytes(pickle.dumps(store))
  assert (tmp_path / 'pickled').stat().st_size < 5000  # No open files, no records.
  code = (
    'import pickle, sys, numpy as np\n'
    'store = pickle.load(open("pickled", "rb"))\n'
    'sys.stdout.buffer.write(store.read("moments", np.array([4, 0]), np.array([True, False])))\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    check=True,
    capture_output=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  found = np.frombuffer(done.stdout, np.float16).reshape(2, 2, 2, 4)
  np.testing.assert_array_equal(found, MOMENTS[[4, 0], [1, 0]])


def test_a_shard_without_examples_is_none(tmp_path):
  layout.write_json(tmp_path / 'plan.json', store_files.PLAN)
  writer.write_shard(tmp_path, store_files.PLAN, 0, [store_files.SKIPPED] * 4)
  writer.write_shard(tmp_path, store_files.PLAN, 1, store_files.results(1))
  writer.finish(tmp_path, store_files.PLAN, (), {})
  store = reader.Store(tmp_path)
  assert len(store) == 2
  np.testing.assert_array_equal(store.read('pixels', np.array([1, 0])), PIXELS[[4, 3]])


def test_a_folder_that_is_no_store_is_refused(tmp_path):
  assert refusal(tmp_path) == f'{tmp_path} is no store: it has no plan.json'
  assert 'absent is no store' in refusal(tmp_path / 'absent')


def test_an_unfinished_store_is_refused_with_how_far_it_is(copy):
  writer.reopen(copy, 1)
  message = refusal(copy)
  assert f'{copy} is unfinished: 1 of 2 shards are done' in message
  assert 'prepare` again' in message


@pytest.mark.parametrize('text', ['', '{', '[]', 'null', '{"plan": {}}'])
def test_a_damaged_manifest_is_named(copy, text):
  (copy / 'manifest.json').write_text(text)
  assert refusal(copy).startswith(f'{copy}/manifest.json: ')


def test_a_store_of_another_version_is_refused(copy):
  path = copy / 'manifest.json'
  manifest = json.loads(path.read_text())
  manifest['plan']['version'] = 2
  path.write_text(json.dumps(manifest))
  assert refusal(copy) == f'{path}: a store of version 2; this program reads version 1'


SHARDS = [(column, shard) for column in ('moments', 'pixels') for shard in (0, 1)]
# What became of a shard's file.
LOST = {
  'missing': lambda path: path.unlink(),
  'empty': lambda path: path.write_bytes(b''),
  'half': lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
  'a byte short': lambda path: path.write_bytes(path.read_bytes()[:-1]),
  'text': lambda path: path.write_text('no records ' * 10_000),
  'a folder': lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize('what', LOST)
@pytest.mark.parametrize(('column', 'shard'), SHARDS)
def test_a_shard_that_is_not_whole_is_named_when_the_store_is_opened(copy, column, shard, what):
  path = layout.shard_file(copy, column, shard)
  LOST[what](path)
  message = refusal(copy)
  if what == 'missing':
    assert message.startswith(f'{path} cannot be read: No such file or directory; ')
  else:
    assert message.startswith(f'{path}: found a damaged file, expected ')
  assert 'prepare again with the same arguments' in message


def test_a_process_that_may_open_no_more_files_is_told_so(copy):
  """And not to remove good ones."""
  code = (
    'import os, resource, sys\n'
    'from diversedit_jax.data.store import reader\n'
    'reader.Store(sys.argv[1])\n'  # It is dropped, and its files are closed.
    'free = os.open(os.devnull, os.O_RDONLY)\n'
    'os.close(free)\n'
    'resource.setrlimit(resource.RLIMIT_NOFILE, (free + 3, free + 3))\n'
    'reader.Store(sys.argv[1])\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, str(copy)],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  last = done.stderr.splitlines()[-1]
  assert 'array_record cannot be read: Too many open files; the store keeps all its 4 files' in last
  assert '`ulimit -n` raises' in last and 'remove' not in last


def test_a_file_that_may_not_be_read_is_told_so(copy, monkeypatch):
  """The superuser may read all, so it is the system that is asked to refuse."""
  path, opened = layout.shard_file(copy, 'pixels', 1), os.open

  def refuse(file, *how, **more):
    if file == path:
      raise PermissionError(13, 'Permission denied')
    return opened(file, *how, **more)

  monkeypatch.setattr(os, 'open', refuse)
  assert refusal(copy) == f'{path} cannot be read: Permission denied'


def test_a_shard_of_another_number_of_records_is_named(copy):
  path = layout.shard_file(copy, 'moments', 0)
  shutil.copy(layout.shard_file(copy, 'moments', 1), path)
  assert f'{path}: found 4 records, expected 6 records' in refusal(copy)


def test_a_shard_of_other_records_is_named_when_it_is_read(copy):
  """As many records, but of another store."""
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
  assert str(error.value) == f'{path}: a record has 12 bytes, expected 48'


@pytest.mark.parametrize('row', range(6))
def test_a_flipped_byte_is_found_when_it_is_read(copy, row):
  """Of one record; all others are still given."""
  path = layout.shard_file(copy, 'moments', 0)
  data = bytearray(path.read_bytes())
  data[data.index(MOMENTS[row // 2, row % 2].tobytes()) + 7] ^= 1
  path.write_bytes(data)
  store = reader.Store(copy)
  for other in range(6):
    read = lambda i=other: store.read('moments', np.array([i // 2]), np.array([i % 2 == 1]))
    if other == row:
      with pytest.raises(types.UserError) as error:
        read()
      assert str(error.value).startswith(f'{path} cannot be read: ')
      assert f'--verify --output={copy}' in str(error.value)
    else:
      np.testing.assert_array_equal(read()[0], MOMENTS[other // 2, other % 2])


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
  path = layout.shard_file(copy, 'moments', 1)
  path.unlink()
  np.testing.assert_array_equal(store.read('moments', np.array([0])), MOMENTS[:1, 0])
  with pytest.raises(types.UserError, match='moments-00001.array_record cannot be read'):
    store.read('moments', np.array([4]))


def save(values, dtype):
  return lambda path: np.save(path, np.array(values, dtype))


def save_npz(path):
  with open(path, 'wb') as file:
    np.savez(file, labels=np.array(store_files.LABELS, np.int32))


def flip(place):
  def damage(path):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)

  return damage


LABELS = {
  'missing': lambda path: path.unlink(),
  'a folder': lambda path: (path.unlink(), path.mkdir()),
  'empty': lambda path: path.write_bytes(b''),
  'cut in the header': lambda path: path.write_bytes(path.read_bytes()[:40]),
  'cut in the values': lambda path: path.write_bytes(path.read_bytes()[:-3]),
  'text': lambda path: path.write_text('0 2 2 0 0'),
  'a zip': lambda path: path.write_bytes(b'PK\3\4 cut short'),
  'an npz': save_npz,
  'objects': save([0, 2, 2, 0, None], object),
  'dtype': save(store_files.LABELS, np.int64),
  'fewer': save(store_files.LABELS[:-1], np.int32),
  'rank': save([store_files.LABELS], np.int32),
  'negative': save([0, 2, 2, 0, -1], np.int32),
  'too large': save([0, 2, 2, 0, 3], np.int32),
  'another label': save([0, 2, 2, 0, 1], np.int32),
  'a flipped bit of the format': flip(10),
  'a flipped bit of a label': flip(-4),
}


@pytest.mark.parametrize('what', LABELS)
def test_labels_that_are_not_those_written_are_named(copy, what):
  path = copy / 'labels.npy'
  LABELS[what](path)
  assert refusal(copy).startswith(f'{path}: ')
