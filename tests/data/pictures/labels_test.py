"""Names of classes: from files, and those of ImageNet."""

import importlib.util

import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import labels


def test_imagenet_has_its_thousand_ids_in_order(monkeypatch):
  names = labels.read_classes('imagenet')
  assert len(names) == 1000 and list(names) == sorted(names)
  # Tench, tabby and toilet tissue.
  assert (names[0], names[281], names[999]) == ('n01440764', 'n02123045', 'n15075141')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(types.UserError, match='tensorflow-datasets, which is not installed'):
    labels.read_classes('imagenet')


@pytest.mark.parametrize('text', ['b\na c\n', ' b \r\na c\r\n', '\ufeffb\na c'])
def test_files_keep_their_order(tmp_path, text):
  (tmp_path / 'classes.txt').write_bytes(text.encode())
  assert labels.read_classes(tmp_path / 'classes.txt') == ('b', 'a c')


@pytest.mark.parametrize(
  'data,message',
  [
    (b'', 'the file is empty'),
    (b'a\n\nb\n', ':2: the line is empty'),
    (b'a\nb\na\n', ":3: 'a' is there twice, first in line 1"),
    (b'\xff\xfe', 'not UTF-8'),
    (None, "No such file.*or 'imagenet'"),
  ],
)
def test_errors_name_the_line(tmp_path, data, message):
  if data is not None:
    (tmp_path / 'classes.txt').write_bytes(data)
  with pytest.raises(types.UserError, match=message):
    labels.read_classes(tmp_path / 'classes.txt')
