"""Bad bytes make a bad picture; a machine that fails makes none, and is tried again."""

import errno
import os

from helpers import malformed
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import archives, base, decode, folders, loading

PNG = malformed.encode(malformed.noise(8, 8))
DISK, MEMORY = OSError(errno.EIO, 'Input/output error'), MemoryError()


class Failing(base.Pictures):
  """One picture, which the given errors keep from being read."""

  name = 'memory/one'

  def __init__(self, data, *errors):
    self.data, self.errors, self.reads = data, list(errors), 0
    self.listing, _ = base.make_listing([('a/1.png', 'a', len(data))], (), None, 'memory')

  def read(self, index):
    self.reads += 1
    if self.errors:
      raise self.errors.pop(0)
    return self.data


@pytest.fixture(autouse=True)
def waits(monkeypatch):
  """Seconds that were waited, without waiting."""
  waits = []
  monkeypatch.setattr(loading.time, 'sleep', waits.append)
  return waits


def load(collection):
  return loading.load(collection, 0, size=8, rule='exact', orientation='exif')


@pytest.mark.parametrize('error', [DISK, MEMORY], ids=repr)
def test_a_failure_that_passes_costs_only_time_and_one_that_stays_is_an_error(error, waits, caplog):
  collection = Failing(PNG, error, error)
  data, pixels = load(collection)
  assert data == PNG
  np.testing.assert_array_equal(pixels, np.asarray(decode.decode(PNG)))
  assert collection.reads == 3 and waits == [0.1, 0.5]
  assert 'a/1.png cannot be read' in caplog.text and 'trying again in 0.5 s' in caplog.text
  with pytest.raises(types.UserError, match=r'memory/one: a/1\.png cannot be read: .*, 4 times'):
    load(Failing(PNG, *[error] * 9))
  assert waits == [0.1, 0.5, 0.1, 0.5, 2.0]


def test_bad_bytes_are_bad_at_once(waits):
  collection = Failing(b'no picture')
  with pytest.raises(base.BadPicture):
    load(collection)
  assert collection.reads == 1 and not waits


@pytest.mark.parametrize(
  'error', [MEMORY, OSError('out of memory error when reading image file'), DISK], ids=repr
)
def test_a_machine_that_fails_while_decoding_is_no_damage(monkeypatch, error):
  def fail(*_):
    raise error

  monkeypatch.setattr(decode, '_load', fail)
  with pytest.raises(type(error)):
    decode.decode(PNG)


def test_a_disk_that_fails_while_it_is_listed_ends_the_listing(tmp_path, monkeypatch):
  malformed.write_folder(tmp_path, {'a/1.png': PNG, 'a/2.png': PNG})
  stat = os.stat

  def fail(path, **more):
    if os.fspath(path).endswith('2.png'):
      raise DISK
    return stat(path, **more)

  monkeypatch.setattr(os, 'stat', fail)
  with pytest.raises(types.UserError, match=r'a/2\.png cannot be read: Input/output error'):
    folders.open_folder(tmp_path)


@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_an_archive_that_fails_has_no_bad_pictures(tmp_path, monkeypatch, kind):
  path = tmp_path / f'x.{kind}'
  path.write_bytes(getattr(malformed, f'{kind}_bytes')({'a/1.png': PNG, 'a/2.png': PNG}))
  collection = getattr(archives, f'open_{kind}')(path)
  pread = os.pread
  with monkeypatch.context() as patch:  # The system may give less than it is asked for.
    patch.setattr(os, 'pread', lambda file, size, offset: pread(file, min(size, 5), offset))
    assert collection.read(1) == PNG

  def fail(*_):
    raise DISK

  with monkeypatch.context() as patch:
    patch.setattr(os, 'pread', fail)
    with pytest.raises(OSError, match='Input/output'):
      collection.read(1)
  os.truncate(path, 100)
  with pytest.raises(types.UserError, match='has changed since its pictures were listed'):
    collection.read(1)
