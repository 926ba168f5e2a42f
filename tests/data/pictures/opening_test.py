"""Specs: kinds by name and by what is there, splits, classes, and what is malformed."""

from helpers import logs, malformed
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
  for name in ('tabs.tsv', 'table.txt'):
    (tmp_path / name).write_text('path\tlabel\nfolder/train/n00000001/a.png\tcat\n')
  files = {
    'list.txt': b'folder/train/n00000001/a.png 0',
    'empty.tar': b'',
    'empty.csv': b'',
    'text.dat': b'text',
    'packed.rar': b'Rar!',
    'hub/x/a.parquet': b'',
    'saved/data-00000-of-00001.arrow': b'',
    'nothing/text.txt': b'',
  }
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
    ('{}/tabs.tsv', 'csv/tabs'),
    ('{}/table.txt', 'csv/table'),
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
    ('gs://bucket/x', 'lie behind a URL, expected a path: copy them to a disk'),
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
    ('{}/text.dat', 'neither a folder nor a tar, zip, csv or parquet'),
    ('{}/list.txt', 'neither a folder .*; a list .* goes with its pictures, as --source=DIR --lab'),
    ('{}/none.tar', 'holds no pictures'),
    ('folder:{}/saved', r'holds no pictures.*load_from_disk.DIR..to_parquet'),
    ('{}/hub', 'holds no pictures.*parquet:PATH reads such files'),
    ('{}/packed.rar', 'unpack it with `unrar x FILE`'),
    ('parquet:{}/folder', 'found a folder without any .parquet file'),
    ('parquet:{}/text.dat', 'no Parquet file, damaged'),
    ('tar:{}/folder', 'found a folder without any .tar file'),
    ('{}/nothing', 'holds no pictures; left out are 1 files .text.txt: no picture'),
  ],
)
def test_what_cannot_be_opened_says_why(root, spec, message):
  with pytest.raises(types.UserError, match=message):
    pictures.open_pictures(spec.format(root))


@pytest.fixture
def warned():
  with logs.noted() as lines:
    yield lines


def test_a_part_of_imagenet_without_its_classes_is_told_once(root, warned):
  spec = f'{root}/train.data'
  assert pictures.open_pictures(spec).listing.labels.tolist() == [0, 1]
  assert len(warned) == 1
  assert '2 classes named by WordNet ids' in warned[0] and "classes='imagenet'" in warned[0]
  pictures.open_pictures(spec, classes=['n00000002', 'n00000001'])
  pictures.open_pictures(f'{root}/list.CSV')
  assert len(warned) == 1


@pytest.mark.parametrize(
  'names,expected,said',
  [
    ('0 1 2 10 11', '0 1 2 10 11', 'numbers that are not their labels: 0 is'),
    ('0 1 2 3', '0 1 2 3', ''),
    ('00 01 02', '00 01 02', ''),
    ('1 2 10', '1 2 10', "0 is '1', 1 is '2', 2 is '10'; --classes=FILE"),
    ('007 1 10', '1 007 10', "1 is '007'"),
    ('1 10 2 x', '1 10 2 x', ''),
    ('a b', 'a b', ''),
  ],
)
def test_classes_named_by_numbers_are_in_the_order_of_the_numbers(
  tmp_path, warned, names, expected, said
):
  files = {f'{name}/{name}.png': b'' for name in names.split()}
  path = malformed.write_folder(tmp_path / 'numbers', files)
  listing = pictures.open_pictures(path).listing
  assert listing.label_names == tuple(expected.split())
  assert all(
    listing.label_names[y] == n[:-4].split('/')[0]
    for n, y in zip(listing.names, listing.labels, strict=True)
  )
  assert len(warned) == bool(said) and said in ''.join(warned)
  # The order of versions before 0.3, to go on with a run or a store of theirs.
  before = pictures.open_pictures(path, classes='alphabetical').listing
  assert before.label_names == tuple(sorted(names.split()))
  assert (
    before.digest() == pictures.open_pictures(path, classes=before.label_names).listing.digest()
  )


def test_labels_by_number_have_no_letters_to_be_sorted_by(tmp_path):
  malformed.write_folder(tmp_path, {f'{k}.png': b'' for k in (2, 10)})
  (tmp_path / 'x.csv').write_text('path,label\n2.png,2\n10.png,10\n')
  listing = pictures.open_pictures(tmp_path / 'x.csv', classes='alphabetical').listing
  assert listing.labels.tolist() == [10, 2] and listing.label_names == tuple(map(str, range(11)))


def test_labels_that_begin_at_one_are_remarked_on(tmp_path, warned):
  malformed.write_folder(tmp_path, {f'{k}.png': b'' for k in (1, 2)})
  for first in (1, 0):
    text = ''.join(f'{k}.png,{k - 1 + first}\n' for k in (1, 2))
    (tmp_path / 'x.csv').write_text('path,label\n' + text)
    pictures.open_pictures(tmp_path / 'x.csv')
  assert len(warned) == 1 and 'labels begin at 1' in warned[0] and 'subtract' in warned[0]


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
