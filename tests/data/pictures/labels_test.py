"""Names of classes: from files, and those of ImageNet."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import labels, naming

ROOT = pathlib.Path(__file__).parents[3]


def test_imagenet_has_its_thousand_ids_in_order():
  names = labels.read_classes('imagenet')
  assert len(names) == 1000 and list(names) == sorted(names)
  # Positions that everybody knows: tench, goldfish, tabby, toilet tissue.
  assert (names[0], names[1], names[281], names[999]) == (
    'n01440764',
    'n01443537',
    'n02123045',
    'n15075141',
  )
  assert all(naming.is_wordnet(name) for name in names)


def test_imagenet_is_read_without_importing_its_package():
  code = (
    'import sys\n'
    'from diversedit_jax.data import pictures\n'
    'pictures.read_classes("imagenet")\n'
    'sys.exit("tensorflow_datasets" in sys.modules)\n'
  )
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0


def test_without_its_package_imagenet_is_an_error(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(types.UserError, match='tensorflow-datasets, which is not installed'):
    labels.read_classes('imagenet')


@pytest.mark.parametrize('text', ['b\na c\n', 'b\r\na c\r\n', ' b \na c', '\ufeffb\na c\n'])
def test_files_keep_their_order(tmp_path, text):
  (tmp_path / 'classes.txt').write_bytes(text.encode())
  assert labels.read_classes(tmp_path / 'classes.txt') == ('b', 'a c')


@pytest.mark.parametrize(
  'data,message',
  [
    (b'', 'the file is empty'),
    (b'a\n\nb\n', ':2: an empty line'),
    (b'\n', ':1: an empty line'),
    (b'a\nb\na\n', ":3: 'a' again, as in line 1"),
    (b'\xff\xfe', 'not UTF-8'),
    (b'a\n\n', ':2: an empty line'),
  ],
)
def test_errors_name_the_line(tmp_path, data, message):
  (tmp_path / 'classes.txt').write_bytes(data)
  with pytest.raises(types.UserError, match=message):
    labels.read_classes(tmp_path / 'classes.txt')


def test_a_file_that_is_not_there(tmp_path):
  with pytest.raises(types.UserError, match="No such file.*or 'imagenet'"):
    labels.read_classes(tmp_path / 'imagnet')
