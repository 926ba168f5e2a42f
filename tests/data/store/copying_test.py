"""A copy of a store: whole, verified and made once, whatever ends a copier or spoils its bytes."""

import collections
import dataclasses
import errno
import filecmp
import threading

from helpers import store_files
import numpy as np
import pytest

from diversedit_jax import locks, types
from diversedit_jax.data import files
from diversedit_jax.data.store import copying, layout, places, reader, verify

COLUMNS = ('moments', 'pixels')
RECORDS = {f'shards/{c}-0000{s}.array_record' for c in COLUMNS for s in (0, 1)}
FACTS = {'shards/00000.json', 'shards/00001.json'}


@pytest.fixture
def root(tmp_path):
  root = tmp_path / 'there' / 'small'
  store_files.write(root)
  return root


@pytest.fixture
def cache(tmp_path):
  return tmp_path / 'cache'


@pytest.fixture
def reads(monkeypatch):
  """How often each file of a store was read, by its path in the store."""
  counts, pieces = collections.Counter(), places.pieces

  def counted(path, size):
    if '/small/' in str(path):  # Not of the copy, which is verified.
      counts[str(path).partition('/small/')[2]] += 1
    return pieces(path, size)

  monkeypatch.setattr(places, 'pieces', counted)
  return counts


def copy(root, cache, columns=COLUMNS):
  return copying.copy(root, layout.read_manifest(root), columns, cache)


def names(folder):
  return {p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()}


@pytest.mark.parametrize('url', ['', 'file://'])
def test_a_copy_is_the_store_and_is_made_once(root, cache, reads, url):
  there = places.Place(f'{url}{root}') if url else root
  folder = copy(there, cache)
  assert folder == copy(there, cache) and set(reads.values()) == {1}
  assert names(folder) == names(root)
  assert filecmp.cmpfiles(folder, root, names(root), shallow=False)[1:] == ([], [])
  assert not verify.verify(folder).faults


def test_columns_are_copied_as_they_are_wanted(root, cache, reads):
  folder = copy(root, cache, ('moments',))
  assert names(folder) == FACTS | {name for name in RECORDS if 'moments' in name}
  with pytest.raises(types.UserError, match='is no store'):  # Nothing takes a part for the whole.
    reader.Store(folder)
  copy(root, cache)
  assert names(folder) == names(root) and set(reads.values()) == {1}


class Killed(BaseException):
  """Ends a copier at once."""


def test_a_killed_copy_goes_on_with_what_is_missing(root, cache, reads, monkeypatch):
  monkeypatch.setattr(copying, '_THREADS', 1)
  pieces = places.pieces

  def killed(path, size):
    for piece in pieces(path, size):
      yield piece[:10]
      if path.name == 'pixels-00000.array_record':
        raise Killed
      yield piece[10:]

  with monkeypatch.context() as there:
    there.setattr(places, 'pieces', killed)
    with pytest.raises(Killed):
      copy(root, cache)
  (folder,) = cache.iterdir()
  assert names(folder) == FACTS | {'shards/moments-00000.array_record'}
  left = folder / 'shards' / '.pixels-00000.0123456789ab.array_record'  # As `kill -9` leaves it.
  left.write_bytes(b'half')
  copy(root, cache)
  assert names(folder) == names(root) and not verify.verify(folder).faults
  again = {name for name, count in reads.items() if count > 1}
  assert again == {'shards/pixels-00000.array_record'}


@pytest.mark.parametrize('name', ['shards/moments-00001.array_record', 'shards/00001.json'])
def test_other_bytes_are_read_again_once_and_then_refused_by_name(root, cache, monkeypatch, name):
  pieces, bad = places.pieces, []

  def spoiled(path, size):
    for piece in pieces(path, size):
      wrong = str(path).endswith(name) and len(bad) < times
      if wrong:
        bad.append(path)
      yield bytes([piece[0] ^ 1]) + piece[1:] if wrong else piece

  monkeypatch.setattr(places, 'pieces', spoiled)
  times = 2
  with pytest.raises(types.UserError, match=f'{root / name}: found .* SHA-256 .* read twice'):
    copy(root, cache)
  assert len(bad) == 2 and name not in names(next(cache.iterdir()))
  times = 3  # One is left.
  assert not verify.verify(copy(root, cache)).faults
  assert len(bad) == 3


def test_a_read_that_fails_for_a_moment_is_tried_again(root, cache, monkeypatch):
  pieces, failures = places.pieces, [errno.ESTALE]

  def failing(path, size):
    if failures and path.name == 'pixels-00000.array_record':
      raise OSError(failures.pop(), 'said so', str(path))
    return pieces(path, size)

  monkeypatch.setattr(places, 'pieces', failing)
  assert not verify.verify(copy(root, cache, COLUMNS)).faults and not failures
  for again in ([errno.ESTALE, errno.ESTALE], [errno.EACCES]):
    failures[:] = again
    (next(cache.iterdir()) / 'shards' / 'pixels-00000.array_record').unlink()
    with pytest.raises(OSError, match='said so'):
      copy(root, cache)
    assert not failures
    copy(root, cache)


@pytest.mark.parametrize('url', ['', 'file://'])
def test_a_shorter_file_is_refused(root, cache, url):
  path = root / 'shards' / 'pixels-00001.array_record'
  path.write_bytes(path.read_bytes()[:100])
  with pytest.raises(types.UserError, match=f'{path}: found 1?0?0 bytes .* says 131072 of'):
    copy(places.Place(f'{url}{root}') if url else root, cache)


def test_too_little_room_is_told_before_anything_is_copied(root, cache, reads, monkeypatch):
  other = cache / 'old-0123'
  other.mkdir(parents=True)
  monkeypatch.setattr(files, 'free_space', lambda _: 3 * 131072)
  with pytest.raises(
    types.UserError, match=r'needs 0.001 GB .* has 0.000 GB free .*holds old-0123'
  ):
    copy(root, cache)
  assert set(reads) == FACTS
  copy(root, cache, ('moments',))
  copy(root, cache)  # What is there needs no room.


def test_a_file_in_place_of_the_cache_is_refused(root, cache):
  cache.write_text('')
  with pytest.raises(types.UserError, match=f'data.cache={cache} cannot be written'):
    copy(root, cache)


def test_processes_of_a_host_copy_once(root, cache, reads):
  found, waiting = [], threading.Barrier(3)

  def work():
    manifest = layout.read_manifest(root)
    waiting.wait()
    found.append(copying.copy(root, manifest, COLUMNS, cache))

  threads = [threading.Thread(target=work) for _ in range(3)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert len(set(found)) == 1 and len(found) == 3 and set(reads.values()) == {1}


def test_one_waits_for_another_that_copies(root, cache, reads, monkeypatch, caplog):
  caplog.set_level('INFO')
  folder = copy(root, cache, ('moments',))
  with locks.lock(folder / '.copy.lock', wait=False):
    thread = threading.Thread(target=copy, args=(root, cache))
    thread.start()
    thread.join(0.2)
    assert thread.is_alive() and not any('pixels' in name for name in reads)
  thread.join()
  assert names(folder) == names(root)
  assert f'{folder} is copied by another process; waiting for it' in caplog.text


def test_a_damaged_copy_is_told_with_the_way_on(root, cache):
  folder, path = copy(root, cache), 'shards/moments-00001.array_record'
  (folder / 'shards' / '00001.json').write_text('{}')
  data = (folder / path).read_bytes()
  (folder / path).write_bytes(data[:70] + bytes([data[70] ^ 1]) + data[71:])  # In its first record.
  store = reader.Store(root)
  store.fetch(cache, COLUMNS)
  assert filecmp.cmp(
    folder / 'shards' / '00001.json', root / 'shards' / '00001.json', shallow=False
  )
  with pytest.raises(types.UserError, match=f'{folder / path} cannot be read: .*; remove it, and'):
    store.read('moments', np.array([3]))
  (folder / path).unlink()
  again = reader.Store(root)
  again.fetch(cache, COLUMNS)
  np.testing.assert_array_equal(again.read('moments', np.array([3]))[0], store_files.moments(3)[0])


def test_another_version_of_a_store_has_a_folder_of_its_own(root, cache):
  first = copy(root, cache)
  manifest = layout.read_manifest(root)
  layout.write_json(root / 'manifest.json', dataclasses.replace(manifest, versions={'jax': '2'}))
  second = copy(root, cache)
  assert first != second and {first, second} == set(cache.iterdir())


def test_a_store_reads_its_copy_once_it_was_fetched(root, cache):
  store = reader.Store(places.Place(f'file://{root}'))
  before = store.read('pixels', np.arange(5))
  store.fetch(cache, ('pixels',))
  for path in root.rglob('*.array_record'):
    path.unlink()
  np.testing.assert_array_equal(store.read('pixels', np.arange(5)), before)
