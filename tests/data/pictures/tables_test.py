"""Tables: what they may say, and errors that name the line."""

from helpers import malformed
import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import tables


@pytest.fixture
def table(tmp_path):
  """Opens a table beside two pictures."""
  malformed.write_folder(tmp_path, {'a.png': b'1', 'sub/b, c.png': b'22'})

  def make(text, classes=None, labels=None):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / 'list.csv').write_bytes(data.replace(b'HERE', bytes(tmp_path)))
    return tables.open_table(tmp_path / 'list.csv', classes, labels)

  return make


@pytest.mark.parametrize(
  'text',
  [
    '\ufeffpath,label\na.png,x\n"sub/b, c.png",y',
    'label , other,path\r\n x ,1, a.png\r\n\r\ny,2,"sub/b, c.png"\r\n\r\n',
    '"path","label"\n"./a.png","x"\n"sub//b, c.png",y\n',
    'path,label\nHERE/a.png,x\n"HERE/sub/b, c.png",y\n',
    ',file_name,Class\n0,a.png,x\n1,"sub/b, c.png",y\n',  # As pandas writes it, with its index.
    'Unnamed: 0,filename,target\n0,a.png,x\n1,"sub/b, c.png",y\n',
    'image;label\na.png;x\nsub/b, c.png;y\n',
    'filepaths|fine_label\na.png|x\nsub/b, c.png|y\n',
    'image-file,label file,image_class\na.png,1,x\n"sub/b, c.png",2,y\n',
    'image\tlabel\r\na.png\tx\r\nsub\\b, c.png\ty\r\n',
    'path\tlabel\na.png\tx\nsub/b, c.png\ty\n'.encode('utf-16'),  # As Excel writes it.
  ],
)
def test_forms_of_a_table(table, text):
  collection = table(text)
  listing = collection.listing
  assert listing.label_names == ('x', 'y') and listing.labels.tolist() == [0, 1]
  assert listing.sizes.tolist() == [1, 2] and not listing.skipped
  assert [collection.read(i) for i in range(2)] == [b'1', b'22']


def test_integer_labels_are_positions(table):
  listing = table('path,label\na.png,2\n"sub/b, c.png",+00').listing
  assert listing.labels.tolist() == [2, 0] and listing.label_names == ('0', '1', '2')
  assert table('path,label\na.png,2', ('x', 'y', 'z')).listing.label_names == ('x', 'y', 'z')
  with pytest.raises(types.UserError, match=r'a.png has label 2, expected \[0, 2\)'):
    table('path,label\na.png,2', ('x', 'y'))


def test_whole_numbers_that_were_written_as_floats_are_whole_numbers(table):
  listing = table('path,label\na.png,10.0\n"sub/b, c.png",2.\n').listing
  assert listing.labels.tolist() == [10, 2] and len(listing.label_names) == 11
  assert table('path,label\na.png,1e1\n').listing.labels.tolist() == [10]


def test_a_column_may_be_named_and_labels_left_out(table):
  text = 'path,class_id,class_name\na.png,1,x\n"sub/b, c.png",0,y\n'
  with pytest.raises(
    types.UserError, match="'class_id', 'class_name' may be the label; name one by"
  ):
    table(text)
  assert table(text, labels='class_id').listing.labels.tolist() == [1, 0]
  assert table(text, labels='class_name').listing.label_names == ('x', 'y')
  for labels in ('none', 'any'):
    assert table('file\na.png\n', labels=labels).listing.label_names == ('all',)
  assert table(text.replace('_name', ''), labels='any').listing.label_names == ('all',)


def test_files_that_are_not_there_are_skipped_with_their_lines(table):
  listing = table('path,label\nnone.png,0\na.png,0\nsub,1\n').listing
  assert list(listing.names) == ['a.png']
  assert {s.name: s.reason for s in listing.skipped} == {
    'none.png': 'line 2: cannot be read: No such file or directory',
    'sub': 'line 4: not a file',
  }


@pytest.mark.parametrize(
  'text,message',
  [
    ('\n\n', 'the table is empty'),
    (
      'path,label\nnone.png,1\n',
      'none of its 1 files can be read, first none.png: line 2: .*labels=',
    ),
    ('pat,label\na.png,1\n', ":1: the column 'path' is missing; did you mean 'pat'"),
    ('path,path,label\na.png,a.png,1\n', ":1: the column 'path' is there twice"),
    ('path,label\na.png,1,2\n', ':2: 3 fields, expected 2'),
    ('path,label\n\na.png, \n', ':3: the label is empty'),
    ('path,label\na.png,1\n"sub/b, c.png",x\n', ":3: the label 'x' is a name, but line 2 has an"),
    ('path,label\na.png,-1\n', ':2: the label -1 is out of range'),
    (
      'path,label\na.png,1.0\nb.png,nan\n',
      r':3: the label is missing .nan.; give it one, or remov',
    ),
    ('path,label\na.png,x\nb.png,<NA>\n', ':3: the label is missing'),
    ('path,label\na.png,0.5\n', ':2: the label 0.5 is a number, but not a whole one'),
    ('path,fine_label,coarse_label\na.png,0,0\n', 'may be the label; name .*--labels=fine_label'),
    ('path,score\na.png,0.5\n', "the column 'label' is missing.*rename the column"),
    ('path,label\na.png,1048576\n', 'the largest label is 1048576, expected a label below 1048576'),
    ('path,label\n"a.png,1\n', ':2: bad CSV'),
    ('path,label\na.png,1\na\0.png,1\n', ':3: a NUL byte'),
    ('path,label\na.png,é\n'.encode('latin-1'), ':2: not UTF-8'),
    ('path,label\na.png,x\na.png,y\n', 'two files for one key'),
  ],
)
def test_errors_name_the_line(table, text, message):
  with pytest.raises(types.UserError, match=message):
    table(text)
