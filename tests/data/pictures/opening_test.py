"""Specs: kinds by name and by what is there, splits, classes, and what is malformed."""

from absl import logging
from helpers import malformed
import pytest

from diversedit_jax import types
from diversedit_jax.data import pictures

FILES = {'n00000001/a.png': b'1', 'n00000002/b.png': b'2'}


@pytest.fixture
def root(tmp_path):
  for split in ('train', 'test'):
    malformed.write_folder(tmp_path / 'folder' / split, {**FILES, f'n00000001/{split}.png': b''})
    (tmp_path / f'{split}.data').write_bytes(malformed.tar_bytes(FILES))
  (tmp_path / 'z').write_bytes(malformed.zip_bytes(FILES))
  (tmp_path / 'list.CSV').write_text('path,label\nfolder/train/n00000001/a.png,cat\n')
  files = {'empty.tar': b'', 'empty.csv': b'', 'text.dat': b'text', 'nothing/text.txt': b''}
  malformed.write_folder(tmp_path, files | {'none.tar': malformed.tar_bytes({})})
  return tmp_path


@pytest.mark.parametrize(
  'spec,name',
  [
    ('{}/folder/train', 'folder/train'),
    ('folder:{}/folder/train/', 'folder/train'),
    ('{}/train.data', 'tar/train.data'),
    ('{}/z', 'zip/z'),
    ('zip:{}/z', 'zip/z'),
    ('{}/list.CSV', 'csv/list'),
  ],
)
def test_kinds_by_name_and_by_what_is_there(root, spec, name):
  assert pictures.open_pictures(spec.format(root)).name == name


def test_splits_take_their_place(root):
  for spec in (f'folder:{root}/folder/{{split}}', f'{root}/folder/{{split}}'):
    for split in ('train', 'test'):
      listing = pictures.open_pictures(spec, split=split).listing
      assert f'n00000001/{split}.png' in listing.names
  assert pictures.open_pictures(f'tar:{root}/{{split}}.data', split='test').name == 'tar/test.data'


def test_what_is_one_split_cannot_be_another(root):
  for spec in (f'folder:{root}/folder/train', f'{root}/z'):
    with pytest.raises(types.UserError, match="the split 'train' alone; to read the split 'test'"):
      pictures.open_pictures(spec, split='test')


@pytest.mark.parametrize(
  'spec,message',
  [
    ('', 'have no name'),
    ('folder:', 'malformed; expected one of folder:PATH'),
    ('foldr:/x', "did you mean 'folder'"),
    ('gs://bucket/x', 'unknown kind'),
    ('{}/none', 'no such file; found nothing there'),
    ('folder:{}/none', 'no such folder; found nothing there'),
    ('zip:{}/folder', 'no such file; found a folder'),
    ('tar:{}/z', 'is no tar'),
    ('zip:{}/train.data', 'is no zip'),
    ('folder:{}/z', 'found a file there'),
    ('csv:{}/none.csv', 'No such file'),
    ('tfds::', 'malformed'),
    ('{}/empty.tar', 'is no tar'),
    ('{}/empty.csv', 'table is empty'),
    ('{}/text.dat', 'neither a folder nor a tar, zip or csv'),
    ('{}/none.tar', 'holds no pictures'),
    ('{}/nothing', 'holds no pictures; left out are 1 files .text.txt: not named as a picture'),
  ],
)
def test_what_cannot_be_opened_says_why(root, spec, message):
  with pytest.raises(types.UserError, match=message):
    pictures.open_pictures(spec.format(root))


@pytest.fixture
def warned(monkeypatch):
  said = []
  monkeypatch.setattr(logging, 'warning', lambda text, *args: said.append(text % args))
  return said


def test_a_part_of_imagenet_without_its_classes_is_told_once(root, warned):
  spec = f'{root}/train.data'
  assert pictures.open_pictures(spec).listing.labels.tolist() == [0, 1]
  assert len(warned) == 1
  assert '2 classes named by WordNet ids' in warned[0] and "classes='imagenet'" in warned[0]
  pictures.open_pictures(spec, classes=['n00000002', 'n00000001'])
  pictures.open_pictures(f'{root}/list.CSV')
  assert len(warned) == 1


def test_classes_by_names_by_file_and_by_imagenet(root, warned):
  spec = f'{root}/train.data'
  (root / 'classes').write_text('n00000003\nn00000002\nn00000001\n')
  for classes in (('n00000003', 'n00000002', 'n00000001'), str(root / 'classes')):
    assert pictures.open_pictures(spec, classes=classes).listing.labels.tolist() == [2, 1]
  with pytest.raises(types.UserError, match="class 'n00000001', which is not one of the 1000"):
    pictures.open_pictures(spec, classes='imagenet')
  (root / 'train.data').write_bytes(malformed.tar_bytes({'n02123045_1.JPEG': b''}))
  listing = pictures.open_pictures(spec, classes='imagenet').listing
  assert listing.labels.tolist() == [281] and len(listing.label_names) == 1000
  assert not warned
