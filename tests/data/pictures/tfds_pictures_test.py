"""TFDS: a small dataset, prepared here as ArrayRecord files, without TensorFlow."""

import io
import pathlib
import pickle
import subprocess
import sys

from helpers import malformed
import pytest
import tensorflow_datasets as tfds

from diversedit_jax import types
from diversedit_jax.data import pictures

ROOT = pathlib.Path(__file__).parents[3]
FILES = {name: data for name, data in malformed.tree().items() if not name.startswith('eel')}
NAMES = ('dog', 'cat', 'none')


class Menagerie(tfds.core.GeneratorBasedBuilder):
  """The tree's pictures: 'train' with all, 'test' with one, 'unlabelled' with one of label -1."""

  VERSION = tfds.core.Version('1.2.0')
  label = tfds.features.ClassLabel(names=NAMES)

  def _info(self):
    features = {'image': tfds.features.Image(), 'label': self.label, 'key': tfds.features.Text()}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    del dl_manager
    return {
      'train': self._generate_examples(len(FILES)),
      'test': self._generate_examples(1),
      'unlabelled': self._generate_examples(1, -1),
    }

  def _generate_examples(self, n, label=None):
    for name, data in list(FILES.items())[:n]:
      own = name.partition('/')[0] if label is None else label
      yield name, {'image': io.BytesIO(data), 'label': own, 'key': name}


class Numbered(Menagerie):
  """Classes without names."""

  label = tfds.features.ClassLabel(num_classes=3)

  def _generate_examples(self, n, label=None):
    for name, example in super()._generate_examples(n, label):
      yield name, {**example, 'label': NAMES.index(name.partition('/')[0])}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  root = tmp_path_factory.mktemp('tfds')
  tfds.disable_progress_bar()
  config = tfds.download.DownloadConfig(try_download_gcs=False)
  for builder in (Menagerie, Numbered):
    builder(data_dir=root, file_format='array_record').download_and_prepare(download_config=config)
  return root


@pytest.fixture(autouse=True)
def there(data_dir, monkeypatch):
  monkeypatch.setenv('TFDS_DATA_DIR', str(data_dir))


def contents(collection):
  """(class, bytes) of all: TFDS shuffles."""
  listing = collection.listing
  return sorted(
    (listing.label_names[label], collection.read(i)) for i, label in enumerate(listing.labels)
  )


def test_pictures_labels_and_keys():
  collection = pictures.open_pictures('tfds:menagerie')
  listing = collection.listing
  assert contents(collection) == sorted((n.partition('/')[0], d) for n, d in FILES.items())
  assert list(listing.keys) == [f'{i:08d}' for i in range(len(FILES))]
  assert listing.label_names == NAMES and not listing.skipped
  assert listing.sizes.tolist() == [len(collection.read(i)) for i in range(len(FILES))]
  assert collection.name == 'tfds/menagerie/train'


@pytest.mark.parametrize(
  'spec,split,count',
  [
    ('menagerie:test', 'train', 1),
    ('menagerie', 'test', 1),
    ('menagerie:1.2.0:train[:2]', 'train', 2),
    ('menagerie:{split}[1:4]', 'train', 3),
  ],
)
def test_splits(spec, split, count):
  assert len(pictures.open_pictures(f'tfds:{spec}', split=split).listing) == count


def test_given_classes_are_met_by_name_or_by_number():
  expected = contents(pictures.open_pictures('tfds:menagerie'))
  classes = ('ant', 'cat', 'dog')
  assert contents(pictures.open_pictures('tfds:menagerie', classes=classes)) == expected
  assert pictures.open_pictures('tfds:numbered').listing.label_names == ('0', '1', '2')
  assert contents(pictures.open_pictures('tfds:numbered', classes=NAMES)) == expected
  with pytest.raises(types.UserError, match='not one of the 1 classes'):
    pictures.open_pictures('tfds:menagerie', classes=('cat',))


@pytest.mark.parametrize(
  'spec,message',
  [
    ('menagerie:valid', "Unknown split 'valid'"),
    ('menagerie:9.9.9', 'there are 1.2.0; take one of these'),
    ('menagerie:unlabelled', 'examples without labels'),
    ('cifar10', r"builder\('cifar10', file_format='array_record'\).download_and_prepare\(\)"),
    ('imagenet2012', 'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar'),
  ],
)
def test_what_cannot_be_opened_says_what_to_do(spec, message):
  with pytest.raises(types.UserError, match=message):
    pictures.open_pictures(f'tfds:{spec}')


def test_another_format_is_told_and_configurations_are_named(data_dir, tmp_path, monkeypatch):
  """TensorFlow would be needed for TFRecord files."""
  folder = tmp_path / 'menagerie/small/1.2.0'
  folder.mkdir(parents=True)
  for path in (data_dir / 'menagerie/1.2.0').iterdir():
    text = path.read_bytes().replace(b'array_record', b'tfrecord')
    (folder / path.name.replace('array_record', 'tfrecord')).write_bytes(text)
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  with pytest.raises(types.UserError, match='configurations .*: small; .* tfds:menagerie/small'):
    pictures.open_pictures('tfds:menagerie')
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path / 'menagerie'))
  with pytest.raises(types.UserError, match='has no array_record files'):
    pictures.open_pictures('tfds:small')


def test_damaged_files_are_an_error_when_listed_and_later(data_dir, tmp_path, monkeypatch):
  folder = tmp_path / 'menagerie/1.2.0'
  folder.mkdir(parents=True)
  for path in (data_dir / 'menagerie/1.2.0').iterdir():
    (folder / path.name).write_bytes(path.read_bytes())
  monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
  later = pickle.loads(pickle.dumps(pictures.open_pictures('tfds:menagerie')))
  (file,) = folder.glob('*train.array_record*')
  data = bytearray(file.read_bytes())
  for position in range(200, len(data), 100):
    data[position] ^= 0xFF
  file.write_bytes(data)
  with pytest.raises(types.UserError, match='cannot be read'):
    pictures.open_pictures('tfds:menagerie')
  with pytest.raises(OSError, match='hash mismatch'):
    for i in range(len(later.listing)):
      later.read(i)


def test_another_process_reads_the_same_without_tensorflow(tmp_path):
  collection = pictures.open_pictures('tfds:menagerie')
  before = pickle.dumps(collection)
  collection.read(0)
  assert pickle.dumps(collection) == before  # No open file travels.
  (tmp_path / 'pickled').write_bytes(pickle.dumps(collection))
  code = (
    'import pickle, sys\n'
    'c = pickle.load(open("pickled", "rb"))\n'
    'data = [c.read(i) for i in range(len(c.listing))]\n'
    'pickle.dump(data, open("read", "wb"))\n'
    'sys.exit("tensorflow" in sys.modules)\n'
  )
  done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env={'PYTHONPATH': str(ROOT)})
  assert done.returncode == 0
  read = pickle.loads((tmp_path / 'read').read_bytes())
  assert read == [collection.read(i) for i in range(len(collection.listing))]
