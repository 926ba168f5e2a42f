"""Every kind of listing reports its progress."""

import re

from helpers import malformed
import pytest

from diversedit_jax import progress
from diversedit_jax.data import pictures


@pytest.fixture
def clock(monkeypatch):
  """A second passes at every look at the clock, ten of them between two lines."""
  seconds = iter(range(10**6))
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(seconds))


def lines(caplog):
  return [
    r.getMessage()
    for r in caplog.records
    if ' | ETA ' in r.getMessage() or ' so far' in r.getMessage()
  ]


@pytest.mark.parametrize('kind', ['folder', 'tar', 'tar of tars', 'zip'])
def test_every_kind_of_listing_tells_where_it_is(clock, caplog, tmp_path, kind):
  caplog.set_level('INFO')
  files = {f'{name}/{i}.png': b'x' for name in 'ab' for i in range(15)}
  path = tmp_path / 'x.tar'
  if kind == 'folder':
    path = malformed.write_folder(tmp_path / 'x', files)
  elif kind == 'zip':
    path.write_bytes(malformed.zip_bytes(files))
  elif kind == 'tar':
    path.write_bytes(malformed.tar_bytes(files))
  else:
    inner = malformed.tar_bytes({f'{i}.png': b'x' for i in range(15)})
    path.write_bytes(malformed.tar_bytes({'a.tar': inner, 'b.tar': inner}))
  assert len(pictures.open_pictures(path).listing) == 30
  assert f'listing {path}' in caplog.messages
  found = lines(caplog)
  assert len(found) >= 2
  form = r'\d+ files so far' if kind == 'folder' else r'0.0 of 0.0 GB .*'
  assert all(re.match(f'listing {path}: {form}', line) for line in found)


def test_a_short_listing_says_little(caplog, tmp_path):
  caplog.set_level('INFO')
  root = malformed.write_folder(tmp_path / 'x', {'a/1.png': b'x'})
  pictures.open_pictures(root)
  assert lines(caplog) == []
