"""Folders: links, loops, what cannot be read, and names of any bytes."""

import os

from helpers import malformed
import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import folders

pytestmark = pytest.mark.filterwarnings('error')


def skipped(listing):
  return {s.name: s.reason for s in listing.skipped}


def test_links_to_files_and_folders_are_followed(tmp_path):
  malformed.write_folder(tmp_path / 'store', {'x/1.png': b'1', 'y/2.png': b'22'})
  root = malformed.write_folder(tmp_path / 'root', {'cat/0.png': b''})
  (root / 'dog').symlink_to(tmp_path / 'store/x')
  (root / 'eel').symlink_to('../store/x')
  (root / 'cat/9.png').symlink_to(tmp_path / 'store/y/2.png')
  collection = folders.open_folder(root)
  assert list(collection.listing.names) == ['cat/0.png', 'cat/9.png', 'dog/1.png', 'eel/1.png']
  assert [collection.read(i) for i in range(4)] == [b'', b'22', b'1', b'1']


def test_loops_end_and_are_named(tmp_path):
  root = malformed.write_folder(tmp_path / 'root', {'a/1.png': b'', 'b/2.png': b''})
  (root / 'a/self').symlink_to('.')
  (root / 'a/up').symlink_to('../..')
  (root / 'a/to_b').symlink_to('../b')
  (root / 'b/to_a').symlink_to('../a')
  (root / 'a/me.png').symlink_to('me.png')
  (root / 'a/gone.png').symlink_to('nowhere.png')
  (root / 'gone').symlink_to('nowhere')
  with pytest.raises(types.UserError, match="of 'gone' can be listed .a link that leads nowhere"):
    folders.open_folder(root)
  listing = folders.open_folder(root, ('a', 'b')).listing
  assert {'a/1.png', 'b/2.png', 'a/to_b/2.png', 'b/to_a/1.png'} == set(listing.names)
  back, nowhere = 'a link to a folder that it lies in', 'a link that leads nowhere'
  found = skipped(listing)
  assert found['a/self/'] == found['a/to_b/to_a/'] == found['b/to_a/to_b/'] == back
  assert found['gone'] == found['a/gone.png'] == nowhere
  assert found['a/me.png'] == 'a link that leads to itself'


def test_a_link_above_the_root_ends_where_it_meets_the_root(tmp_path):
  root = malformed.write_folder(tmp_path / 'root', {'a/1.png': b''})
  (root / 'a/up').symlink_to(tmp_path)
  listing = folders.open_folder(root).listing
  assert list(listing.names) == ['a/1.png']
  assert skipped(listing) == {'a/up/root/': 'a link to a folder that it lies in'}


def test_folders_that_cannot_be_read_are_named(tmp_path, monkeypatch):
  root = malformed.write_folder(tmp_path, {'a/1.png': b'', 'b/2.png': b''})
  scandir = os.scandir

  def refuse(path):
    if os.path.basename(os.path.normpath(path)) == denied:
      raise PermissionError(13, 'Permission denied', path)
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  denied = 'b'
  with pytest.raises(types.UserError, match="of 'b' can be listed .cannot be read: Permission den"):
    folders.open_folder(root)
  listing = folders.open_folder(root, ('a', 'b')).listing
  assert list(listing.names) == ['a/1.png']
  assert skipped(listing) == {'b/': 'cannot be read: Permission denied'}
  denied = root.name
  with pytest.raises(types.UserError, match='cannot be read: Permission denied'):
    folders.open_folder(root)


def test_what_is_no_file_is_named(tmp_path):
  root = malformed.write_folder(tmp_path, {'a/1.png': b''})
  os.mkfifo(root / 'a/pipe.png')
  (root / 'b').mkdir()
  found = skipped(folders.open_folder(root, ('a', 'b')).listing)
  assert found == {'a/pipe.png': 'neither a file nor a folder', 'b/': 'an empty folder'}


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


def test_missing_and_empty_roots_are_errors(tmp_path):
  with pytest.raises(types.UserError, match='no such folder; found nothing there'):
    folders.open_folder(tmp_path / 'none')
  (tmp_path / 'file').write_bytes(b'')
  with pytest.raises(types.UserError, match='no such folder; found a file there'):
    folders.open_folder(tmp_path / 'file')
  with pytest.raises(types.UserError, match='holds no pictures .*file: not named as a picture'):
    folders.open_folder(tmp_path)
