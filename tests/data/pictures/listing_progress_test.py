"""A long listing logs how far it is."""

import re

from helpers import malformed
import pytest

from diversedit_jax import progress
from diversedit_jax.data import pictures


@pytest.mark.parametrize('kind', ['folder', 'tar', 'tar of tars', 'zip'])
def test_every_kind_of_listing_logs_where_it_is(monkeypatch, caplog, tmp_path, kind):
  """A second passes at every look at the clock, ten of them between two lines."""
  seconds = iter(range(10**6))
  monkeypatch.setattr(progress.time, 'monotonic', lambda: next(seconds))
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
  found = [text for text in caplog.messages if text.startswith(f'listing {path}: ')]
  assert len(found) >= 2
  form = r'.*\d+ files so far.*' if kind == 'folder' else r'.*0.0 of 0.0 GB .*'
  assert all(re.fullmatch(form, line) for line in found)
