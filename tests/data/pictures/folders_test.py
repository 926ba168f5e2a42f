"""Folders: links, loops, what cannot be read, and names of any bytes."""

import os

from helpers import malformed
import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import folders


def skipped(listing):
  return {s.name: s.reason for s in listing.skipped}


def test_names_of_any_bytes_can_be_listed_read_and_digested(tmp_path):
  folder = os.path.join(os.fsencode(tmp_path), b'\xff')
  os.mkdir(folder)
  with open(os.path.join(folder, b'\xfe.png'), 'wb') as file:
    file.write(b'7')
  collection = folders.open_folder(tmp_path)
  assert collection.read(0) == b'7' and len(collection.listing.digest()) == 64


def test_the_digest_sees_names_labels_sizes_and_classes(tmp_path):
  root = malformed.write_folder(tmp_path / 'r', {'a/1.png': b'', 'b/2.png': b''})
  digests = {folders.open_folder(root).listing.digest()}
  digests.add(folders.open_folder(root, ('b', 'a')).listing.digest())
  digests.add(folders.open_folder(root, ('a', 'b', 'c')).listing.digest())
  (root / 'a/1.png').write_bytes(b'1')
  digests.add(folders.open_folder(root).listing.digest())
  (root / 'a/1.png').rename(root / 'a/3.png')
  digests.add(folders.open_folder(root).listing.digest())
  assert len(digests) == 5


def test_links_are_followed_and_loops_end(tmp_path):
  malformed.write_folder(tmp_path / 'store', {'x/1.png': b'1', 'y/2.png': b'22'})
  root = malformed.write_folder(tmp_path / 'root', {'cat/0.png': b''})
  (root / 'dog').symlink_to('../store/x')
  (root / 'cat/9.png').symlink_to(tmp_path / 'store/y/2.png')
  (root / 'cat/self').symlink_to('.')
  (root / 'cat/up').symlink_to(tmp_path)
  (root / 'cat/gone.png').symlink_to('nowhere.png')
  collection = folders.open_folder(root, ('cat', 'dog'))
  found = dict(zip(collection.listing.names, map(collection.read, range(5)), strict=True))
  up = {'cat/up/store/x/1.png': b'1', 'cat/up/store/y/2.png': b'22'}
  assert found == {'cat/0.png': b'', 'cat/9.png': b'22', 'dog/1.png': b'1'} | up
  assert skipped(collection.listing) == {
    'cat/self/': 'a link to a folder that it lies in',
    'cat/up/root/': 'a link to a folder that it lies in',
    'cat/gone.png': 'a link that cannot be followed: No such file or directory',
  }
  (root / 'gone').symlink_to('nowhere')
  with pytest.raises(types.UserError, match="in 'gone' can be listed .a link that cannot be foll"):
    folders.open_folder(root)


def test_what_cannot_be_read_is_named(tmp_path, monkeypatch):
  root = malformed.write_folder(tmp_path, {'a/1.png': b'', 'a/2.png': b'', 'b/2.png': b''})
  os.mkfifo(root / 'a/pipe.png')
  scandir, denied = os.scandir, 'b'

  def refuse(path):
    if os.path.basename(os.path.normpath(path)) == denied:
      raise PermissionError(13, 'Permission denied', path)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  monkeypatch.setattr(os, 'access', lambda path, _: not path.endswith('2.png'))
  with pytest.raises(types.UserError, match="in 'b' can be listed .cannot be read: Permission den"):
    folders.open_folder(root)
  listing = folders.open_folder(root, ('a', 'b')).listing
  assert list(listing.names) == ['a/1.png']
  assert skipped(listing) == {
    'a/2.png': 'cannot be read: Permission denied',
    'a/pipe.png': 'neither a file nor a folder',
    'b/': 'cannot be read: Permission denied',
  }
  denied = root.name
  with pytest.raises(types.UserError, match='cannot be read: Permission denied'):
    folders.open_folder(root)
