"""Parquet files as the package `datasets` writes them."""

import json
import pickle

from helpers import malformed
import pyarrow as pa
from pyarrow import parquet
import pytest

from diversedit_jax import types
from diversedit_jax.data import pictures

DATA = [malformed.encode(malformed.noise(8, 8, seed=k)) for k in range(6)]
NAMES = ('cat', 'dog', 'eel')


def table(data, labels=None, names=NAMES, form='struct', label='label', **more):
  """A table of pictures: structs of bytes and path, or bytes; labels by number or by name."""
  images = [{'bytes': d, 'path': None} for d in data] if form == 'struct' else data
  kind = pa.struct({'bytes': pa.binary(), 'path': pa.string()}) if form == 'struct' else pa.binary()
  columns = {'image': pa.array(images, kind)}
  features = {'image': {'_type': 'Image'}}
  if labels is not None:
    columns[label] = pa.array(labels)
    kind = {'_type': 'ClassLabel', 'names': list(names)} if names else {'_type': 'Value'}
    features[label] = kind
  for name, values in more.items():
    columns[name] = pa.array(values)
    features[name] = {'_type': 'ClassLabel', 'names': list(NAMES)}
  made = pa.table(columns)
  if form != 'struct':
    return made
  return made.replace_schema_metadata({'huggingface': json.dumps({'info': {'features': features}})})


@pytest.fixture
def write(tmp_path):
  def make(name, *args, **more):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table(*args, **more), path, row_group_size=2)
    return path

  return make


def opened(spec, **more):
  """(class, bytes) of all pictures in their order."""
  collection = pictures.open_pictures(spec, **more)
  names = collection.listing.label_names
  return [(names[y], collection.read(i)) for i, y in enumerate(collection.listing.labels)]


def test_a_file_several_and_a_folder_of_them(write, tmp_path):
  first = write('hub/data/train-00000-of-00002.parquet', DATA[:3], [2, 0, 1])
  second = write('hub/data/train-00001-of-00002.parquet', DATA[3:], [0, 0, 2])
  expected = list(zip(('eel', 'cat', 'dog', 'cat', 'cat', 'eel'), DATA, strict=True))
  for spec in (tmp_path / 'hub', f'parquet:{tmp_path}/hub/data', f'parquet:{first.parent}/train-*'):
    assert opened(spec) == expected
  assert opened(second) == expected[3:]
  collection = pictures.open_pictures(tmp_path / 'hub')
  assert collection.name == 'parquet/hub' and list(collection.listing.names)[3:5] == [
    'train-00001-of-00002/0000000',
    'train-00001-of-00002/0000001',
  ]
  other = pickle.loads(pickle.dumps(collection))
  assert [other.read(i) for i in (5, 0, 4, 2)] == [DATA[i] for i in (5, 0, 4, 2)]
  write('hub/data/test-00000-of-00001.parquet', DATA[:1], [1])
  with pytest.raises(
    types.UserError, match=r'the splits test, train; name one, as in .*/test\*.par'
  ):
    opened(tmp_path / 'hub')
  assert opened(f'parquet:{tmp_path}/hub/data/{{split}}-*.parquet', split='test') == [
    ('dog', DATA[0])
  ]
  second.write_bytes(first.read_bytes())
  with pytest.raises(types.UserError, match='has changed since its pictures were listed'):
    pickle.loads(pickle.dumps(collection)).read(3)


@pytest.mark.parametrize(
  'labels,names,more,expected',
  [
    ([2, 0, 1], NAMES, {}, ['eel', 'cat', 'dog']),
    ([2, 0, 1], NAMES, {'classes': ('dog', 'cat', 'eel')}, ['eel', 'cat', 'dog']),
    (['x', 'y', 'x'], None, {}, ['x', 'y', 'x']),
    ([1.0, 0.0, 10.0], None, {}, ['1', '0', '10']),
    ([2, 0, 1], NAMES, {'labels': 'none'}, ['all'] * 3),
    ([-1, -1, -1], NAMES, {'labels': 'any', 'classes': NAMES}, ['all'] * 3),
    (None, None, {}, ['all'] * 3),
    ([0, 1, 0], None, 'fine_label', ['0', '1', '0']),
    (['x', 'y', 'x'], None, 'species class', ['x', 'y', 'x']),
    (['x', 'y', 'x'], None, 'caption', ['all'] * 3),
    ([[0], [1], [0]], None, 'class_boxes', ['all'] * 3),
  ],
)
@pytest.mark.parametrize('form', ['struct', 'bytes'])
def test_labels(write, labels, names, more, expected, form):
  more, column = ({}, more) if isinstance(more, str) else (more, 'label')
  if form == 'bytes' and names is not None and 'labels' not in more:
    expected = [str(label) for label in labels]  # Plain Parquet has no names of classes.
    more = {}
  path = write('x.parquet', DATA[:3], labels, names, form, column)
  assert opened(path, **more) == list(zip(expected, DATA[:3], strict=True))


@pytest.mark.parametrize('form', ['struct', 'bytes'])
def test_columns_that_may_be_meant_are_named(write, form):
  path = write('x.parquet', DATA[:2], [0, 1], form=form, label='fine_label', coarse_label=[1, 1])
  with pytest.raises(
    types.UserError, match="'fine_label', 'coarse_label' may be the label; name one by"
  ):
    opened(path)
  second = 'dog' if form == 'struct' else '1'
  assert [name for name, _ in opened(path, labels='coarse_label')] == [second] * 2
  with pytest.raises(types.UserError, match='--labels=label: .* has the columns image, fine_label'):
    opened(path, labels='label')
  path = write('y.parquet', DATA[:2], [0, 1], label='label', split=[1, 1])
  assert [name for name, _ in opened(path)] == ['cat', 'dog']


def test_no_column_of_labels_names_the_way_on(write, caplog):
  path = write('x.parquet', DATA[:2])
  opened(path)
  assert 'none of its columns image is named as labels are; --labels=COLUMN' in caplog.text
  with pytest.raises(types.UserError, match='named as labels are; --labels=COLUMN'):
    opened(path, classes=NAMES)


def test_files_whose_classes_differ_are_no_collection(write):
  write('d/a.parquet', DATA[:2], [0, 1])
  path = write('d/b.parquet', DATA[2:4], [0, 1], NAMES[::-1])
  with pytest.raises(types.UserError, match='b.parquet has other columns .* names of classes, tha'):
    opened(path.parent)


@pytest.mark.parametrize(
  'labels,names,message',
  [
    ([0, -1], NAMES, 'row 1: the label is -1; take another split, or --labels=none'),
    ([0, None], NAMES, 'row 1: the label is missing'),
    (['cat', 'dog'], NAMES, 'row 0: the label is cat; take another split'),
    ([0.0, float('nan')], None, 'row 1: the label is missing .nan'),
  ],
)
def test_rows_without_a_label_are_named(write, labels, names, message):
  with pytest.raises(types.UserError, match=message):
    opened(write('x.parquet', DATA[:2], labels, names))


def test_a_picture_of_which_only_the_path_is_there_is_bad(write):
  collection = pictures.open_pictures(write('x.parquet', [DATA[0], None], [0, 1]))
  with pytest.raises(pictures.BadPicture, match='its bytes are not in the file'):
    collection.read(1)
