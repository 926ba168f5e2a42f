"""Content decides what a picture is; what is not read is named with the way on."""

import io

from helpers import malformed
import numpy as np
from PIL import Image, features
import pytest

from diversedit_jax import types
from diversedit_jax.data import pictures
from diversedit_jax.data.pictures import kinds, system

HEIC = b'\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf' + bytes(20)
JPEG, PNG, WEBP = (malformed.sound(kind) for kind in ('JPEG', 'PNG', 'WEBP'))


@pytest.fixture
def listed(tmp_path):
  def make(files, **more):
    return pictures.open_pictures(malformed.write_folder(tmp_path / 'd', files), **more)

  return make


@pytest.mark.parametrize(
  'name,data',
  [
    ('1.jfif', JPEG),
    ('1.jpe', JPEG),
    ('1.JPG_large', JPEG),
    ('photo', JPEG),
    ('1.0001', PNG),
    ('1.bin', WEBP),
    ('1.heic', PNG),
    ('1.avif', JPEG),
  ],
)
@pytest.mark.parametrize('kind', ['folder', 'tar', 'zip'])
def test_a_class_of_pictures_by_any_name_is_read(tmp_path, name, data, kind):
  """No class is lost, and none after it gets another label."""
  files = {'ant/1.png': PNG, f'bee/{name}': data, 'cat/1.png': PNG}
  path = tmp_path / kind
  if kind == 'folder':
    malformed.write_folder(path, files)
  else:
    path.write_bytes(getattr(malformed, f'{kind}_bytes')(files))
  collection = pictures.open_pictures(path)
  assert collection.listing.label_names == ('ant', 'bee', 'cat')
  assert collection.listing.labels.tolist() == [0, 1, 2]
  assert pictures.decode.decode(collection.read(1)).size == (24, 20)


def test_names_that_differ_in_what_is_no_suffix_are_two_pictures(listed):
  assert list(listed({'a/x.0001': PNG, 'a/x.0002': PNG}).listing.keys) == ['a/x.0001', 'a/x.0002']


@pytest.mark.parametrize(
  'name,data,words',
  [
    ('1.heic', HEIC, 'HEIC, which is read after `pip install pillow-heif`'),
    ('noname', HEIC, 'pip install pillow-heif'),
    ('1.jxl', b'\xff\x0a', 'JPEG XL, which is not read; convert it to PNG'),
    ('1.dng', b'II*\0', 'a negative of a camera'),
    ('1.svg', b'<svg>', 'SVG, which is not read'),
  ],
)
def test_a_class_whose_pictures_are_not_read_is_refused(listed, monkeypatch, name, data, words):
  monkeypatch.setattr(kinds, '_installed', frozenset)
  files = {'ant/1.png': PNG, f'bee/{name}': data, 'cat/1.png': PNG}
  with pytest.raises(types.UserError, match=f"nothing in 'bee' can be listed.*{words}"):
    listed(files)
  listing = listed(files, classes=('ant', 'bee', 'cat')).listing
  assert listing.labels.tolist() == [0, 2]
  assert [(s.name, s.bad) for s in listing.skipped] == [(f'bee/{name}', True)]


def test_a_folder_of_other_files_is_no_class_which_is_said(listed, caplog):
  listing = listed({'ant/1.png': PNG, 'boxes/1.xml': b'<xml>', 'cat/1.png': PNG}).listing
  assert listing.label_names == ('ant', 'cat')
  assert 'boxes is no class, because nothing in it is a picture' in caplog.text


@pytest.mark.skipif(not features.check('avif'), reason='This Pillow reads no AVIF.')
@pytest.mark.parametrize('orientation', ['exif', 'stored'])
def test_avif_is_decoded_and_turned(orientation):
  image = Image.new('RGB', (24, 16))
  image.paste((255, 0, 0), (0, 0, 12, 8))
  exif = Image.Exif()
  exif[274] = 6  # A quarter turn.
  found = pictures.decode.decode(
    malformed.encode(image, 'AVIF', quality=100, exif=exif), orientation
  )
  expected = image if orientation == 'stored' else image.transpose(Image.Transpose.ROTATE_270)
  difference = np.asarray(found, int) - np.asarray(expected, int)
  assert found.size == expected.size and np.abs(difference).mean() < 4


def test_heic_is_decoded_by_the_plugin():
  heif = pytest.importorskip('pillow_heif')
  heif.register_heif_opener()
  buffer = io.BytesIO()
  Image.new('RGB', (24, 16), (200, 10, 10)).save(buffer, 'HEIF', quality=95)
  assert kinds.by_content(buffer.getvalue()) == 'HEIF'
  found = np.asarray(pictures.decode.decode(buffer.getvalue()), int)
  assert found.shape == (16, 24, 3) and np.abs(found - (200, 10, 10)).max() < 8


@pytest.mark.parametrize(
  'name',
  [
    *('lost+found', '.DS_Store', '__MACOSX', '@eaDir', '#recycle', '$RECYCLE.BIN', '@Recycle'),
    *('System Volume Information', '.Trash-1000', '.AppleDouble', '.snapshot', '.zfs', '~snapshot'),
    *('.ipynb_checkpoints', '.nfs0001', '.git', 'FOUND.000', '__pycache__', '@Recently-Snapshot'),
  ],
)
@pytest.mark.parametrize('content', ['nothing', 'a picture', 'no permission'])
def test_what_systems_leave_behind_is_no_class(tmp_path, monkeypatch, caplog, name, content):
  files = {'ant/1.png': PNG, f'cat/{name}/1.png': PNG, 'cat/1.png': PNG}
  root = malformed.write_folder(tmp_path, files)
  (root / name).mkdir()
  if content == 'a picture':
    (root / name / '1.png').write_bytes(PNG)
  if content == 'no permission':
    (root / name).chmod(0)
  listing = pictures.open_pictures(root).listing
  assert listing.label_names == ('ant', 'cat') and list(listing.names) == ['ant/1.png', 'cat/1.png']
  assert {s.name for s in listing.skipped} == {f'{name}/', f'cat/{name}/'}
  assert not any(s.bad for s in listing.skipped) and not caplog.text.count('left out')
  packed = tmp_path / 'packed'
  packed.write_bytes(malformed.tar_bytes({f'{name}/1.png': PNG, 'ant/1.png': PNG}))
  assert pictures.open_pictures(packed).listing.label_names == ('ant',)


@pytest.mark.parametrize(
  'name',
  ['._1.jpg', 'Thumbs.db', 'desktop.ini', '1.jpg~', '1.jpg.part', '1.jpg.crdownload', '1.thm'],
)
def test_files_that_programs_leave_behind_are_no_pictures(name):
  assert system.foreign(f'cat/{name}') == f'cat/{name}'
  assert not any(map(system.foreign, ('cat/1.jpg', '../cat/1.jpg', 'cat.bak/1.jpg', 'cat.orig/')))


@pytest.mark.parametrize(
  ('name', 'stem'),
  [('a.b/1.png', 'a.b/1'), ('1.5.JPG', '1.5'), ('a/1.txt', 'a/1.txt'), ('a/.png', 'a/.png')],
)
def test_a_stem_lacks_the_suffix_of_a_picture_alone(name, stem):
  assert kinds.stem(name) == stem
