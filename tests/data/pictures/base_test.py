"""The same tree of pictures in every kind of collection: the same listing and the same bytes."""

from concurrent import futures
import hashlib
import pathlib
import pickle
import subprocess
import sys

from helpers import malformed
import pytest

from diversedit_jax.data import pictures

ROOT = pathlib.Path(__file__).parents[3]
FILES = malformed.tree()
PICTURES = sorted(name for name in FILES if not name.endswith(('.txt', '.DS_Store')))
WITH_SKIPPED = ('folder', 'wrapped', 'tar', 'dotted.tar', 'wrapped.tar', 'zip', 'stored.zip')
KINDS = (*WITH_SKIPPED, 'inner.tar/a/train', 'inner.zip/a/train', 'ilsvrc.tar', 'csv')


def _wrapped(above):
  return {f'{above}{name}': data for name, data in FILES.items()}


@pytest.fixture(scope='module')
def specs(tmp_path_factory):
  root = tmp_path_factory.mktemp('collections')
  malformed.write_folder(root / 'folder', FILES)
  malformed.write_folder(root / 'wrapped', _wrapped('train/'))
  inner = {'b.png': b'', 'a/val/cat/x.png': b'', 'c.txt': b'', **_wrapped('a/train/')}
  by_class = {}
  for name, data in FILES.items():
    label, _, rest = name.partition('/')
    by_class.setdefault(label, {})[f'./{rest}'] = data
  ilsvrc = {f'{label}.tar': malformed.tar_bytes(files) for label, files in by_class.items()}
  rows = [f'{name.partition("/")[0]},"folder/../folder/{name}",7' for name in reversed(PICTURES)]
  for name, data in {
    'tar': malformed.tar_bytes(FILES),
    'dotted.tar': malformed.tar_bytes(_wrapped('./')),
    'wrapped.tar': malformed.tar_bytes(_wrapped('./train/')),
    'inner.tar': malformed.tar_bytes(inner),
    'inner.zip': malformed.zip_bytes(inner),
    'zip': malformed.zip_bytes(FILES),
    'stored.zip': malformed.zip_bytes(FILES, 0),
    'ilsvrc.tar': malformed.tar_bytes(ilsvrc),
    'csv': '\n'.join(['label,path,other', *rows]).encode(),
  }.items():
    (root / name).write_bytes(data)
  return {kind: f'csv:{root / kind}' if kind == 'csv' else str(root / kind) for kind in KINDS}


@pytest.fixture(scope='module')
def opened(specs):
  return {kind: pictures.open_pictures(spec) for kind, spec in specs.items()}


@pytest.mark.parametrize('kind', KINDS)
def test_keys_labels_bytes_and_what_is_left_out_are_those_of_the_tree(opened, kind):
  collection, listing = opened[kind], opened[kind].listing
  prefix = 'folder/../folder/' if kind == 'csv' else ''
  assert [name.removeprefix(prefix) for name in listing.names] == PICTURES
  assert list(listing.keys) == [name.rpartition('.')[0] for name in listing.names]
  assert listing.label_names == ('cat', 'dog', 'eel')
  assert listing.labels.tolist() == [0, 0, 0, 1, 1, 2]
  assert listing.sizes.tolist() == [len(FILES[name]) for name in PICTURES]
  assert [collection.read(i) for i in range(len(listing))] == [FILES[name] for name in PICTURES]
  if kind != 'csv':
    above = 'train/' if 'wrapped' in kind else ''
    assert [(s.name, s.reason) for s in listing.skipped] == [
      (f'{above}eel/.DS_Store', 'of the system or hidden'),
      (f'{above}eel/notes.txt', 'no picture'),
    ]
    assert listing.digest() == opened['folder'].listing.digest()


@pytest.mark.parametrize('kind', ['folder', 'tar', 'zip', 'csv'])
def test_many_threads_read_the_same_bytes(specs, kind):
  collection = pickle.loads(pickle.dumps(pictures.open_pictures(specs[kind])))
  with futures.ThreadPoolExecutor(8) as pool:
    found = list(pool.map(collection.read, [0, 1, 2, 3, 4, 5] * 50))
  assert found == [FILES[name] for name in PICTURES] * 50


def test_another_process_in_another_folder_reads_the_same(specs, opened, tmp_path, monkeypatch):
  """Collections opened by a relative path too."""
  monkeypatch.chdir(pathlib.Path(specs['tar']).parent)
  relative = [pictures.open_pictures(kind) for kind in ('folder', 'tar', 'zip')]
  (tmp_path / 'pickled').write_bytes(pickle.dumps([*opened.values(), *relative]))
  code = (
    'import hashlib, pickle\n'
    'for c in pickle.load(open("pickled", "rb")):\n'
    '  data = b"".join(c.read(i) for i in range(len(c.listing)))\n'
    '  print(hashlib.sha256(data).hexdigest())\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=tmp_path,
    env={'PYTHONPATH': str(ROOT)},
    check=True,
    capture_output=True,
    text=True,
  )
  expected = hashlib.sha256(b''.join(FILES[name] for name in PICTURES)).hexdigest()
  assert done.stdout.split() == [expected] * (len(KINDS) + 3)
