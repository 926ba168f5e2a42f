"""Paths of weights: here, and on a hub that is spoken to over the loopback address."""

import hashlib
import json
import pathlib
import sys

from helpers import hub as hub_lib
from helpers import logs
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.weights import array_files, location

REPO = 'lab/sit'
ARRAYS = {'a': np.arange(6, dtype=np.float32).reshape(2, 3)}
PINNED = f'hf://{REPO}@{hub_lib.COMMIT}'


def content(folder, arrays):
  file = folder / 'x.safetensors'
  array_files.save(file, arrays)
  data = file.read_bytes()
  file.unlink()
  return data


@pytest.fixture(scope='module')
def hub(tmp_path_factory):
  folder = tmp_path_factory.mktemp('hub')
  with hub_lib.served(folder / 'home') as hub:
    index = {'weight_map': {'a': 'part-1.safetensors', 'b': 'part-2.safetensors'}}
    data = content(folder, ARRAYS)
    hub.files = {
      (REPO, path): data
      for path in ('model.safetensors', 'other.safetensors', 'deep/er/vae.safetensors')
    }
    hub.files[REPO, 'config.json'] = b'{"here": 1}'
    hub.files[REPO, 'deep/er/config.json'] = b'{"there": 2}'
    hub.files['lab/parts', 'model.safetensors.index.json'] = json.dumps(index).encode()
    hub.files |= {('lab/parts', f'part-{i}.safetensors'): data for i in (1, 2)}
    hub.files['lab/pipeline', 'transformer/diffusion_pytorch_model.safetensors'] = data
    hub.files['lab/empty', 'README.md'] = b''
    yield hub


def test_paths_here(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert location.resolve('~/w/x.npz') == tmp_path / 'w' / 'x.npz'
  assert location.resolve('w/x.npz') == pathlib.Path('w/x.npz')
  assert location.name(tmp_path / 'x.npz') == 'x.npz'


@pytest.mark.parametrize(
  ('given', 'path'),
  [
    (f'hf://{REPO}', 'model.safetensors'),
    (f'hf://{REPO}@v1', 'model.safetensors'),
    (f'hf://{REPO}@main/other.safetensors', 'other.safetensors'),
    (f'{PINNED}/deep/er/vae.safetensors', 'deep/er/vae.safetensors'),
  ],
)
def test_a_file_of_the_hub_is_read_and_named_by_commit_and_digest(hub, given, path):
  with logs.noted('info') as told:
    file = location.resolve(given)
  np.testing.assert_array_equal(array_files.load(given)['a'], ARRAYS['a'])
  digest = hashlib.sha256(hub.files[REPO, path]).hexdigest()
  name = location.name(file)
  assert name == f'{PINNED}/{path}#sha256={digest}'
  assert location.resolve(name) == file  # A card's name can be given again.
  assert told[0] == f'{PINNED}/{path}: 0.0 MB, SHA-256 {digest}'
  assert hub.tokens == {f'Bearer {hub_lib.TOKEN}'}
  assert not any(hub_lib.TOKEN in line for line in told)


def test_what_belongs_to_a_file_lies_beside_it(hub):
  file = location.resolve(f'hf://{REPO}')
  assert json.loads(file.with_name('config.json').read_text()) == {'here': 1}
  found = location.resolve(f'hf://{REPO}', ('absent.pth', 'other.safetensors'))
  assert found == file.with_name('other.safetensors')
  deep = location.resolve(f'hf://{REPO}', ('absent.pth', 'deep/er/vae.safetensors'))
  assert json.loads(deep.with_name('config.json').read_text()) == {'there': 2}
  read = array_files.read('hf://lab/pipeline', within=('transformer',))
  np.testing.assert_array_equal(read.arrays['a'], ARRAYS['a'])
  # It is asked for by commit: the branch may have moved since the weights came.
  settings = 'transformer/config.json'
  assert {at for at, path in hub.asked if path == settings} == {hub_lib.COMMIT}
  index = location.resolve('hf://lab/parts')
  assert index.name == 'model.safetensors.index.json'
  assert {p.name for p in index.parent.iterdir()} == {
    index.name,
    'part-1.safetensors',
    'part-2.safetensors',
  }


@pytest.mark.parametrize(
  ('given', 'message'),
  [
    ('hf://lab', r'malformed; expected hf://ORG/REPO\[@REVISION\]\[/PATH\]'),
    ('hf://lab/sit@main#sha256=12', 'malformed'),
    ('https://example.org/x.pth', 'is a URL, which is not read; download it'),
    (
      'https://huggingface.co/lab/sit/resolve/main/x/y.pth?download=true',
      'give hf://lab/sit@main/x/y.pth$',
    ),
    ('hf://lab/absent', 'has no repository lab/absent, or it is private.* set HF_TOKEN'),
    (
      'hf://lab/gated',
      'gated: accept its terms at http://.*/lab/gated, and set HF_TOKEN',
    ),
    (f'hf://{REPO}/../x.pth', 'cannot be fetched: '),
    ('hf://lab/-sit-', 'cannot be fetched: HFValidationError: '),
    (f'hf://{REPO}@v9', "lab/sit has no revision 'v9'"),
    (f'hf://{REPO}/x.pth', 'the repository has no x.pth'),
    ('hf://lab/empty/folder', 'the repository has none of folder/model.safetensors, folder/'),
    (f'hf://{REPO}#sha256={"0" * 64}', 'is another file: its SHA-256 is [0-9a-f]{64}'),
  ],
)
def test_what_cannot_be_had_is_told_in_a_line(hub, given, message):
  hub.gated = {'lab/gated'}
  with pytest.raises(types.UserError, match=message) as error:
    location.resolve(given)
  assert '\n' not in str(error.value) and hub_lib.TOKEN not in str(error.value)


def test_without_the_network_the_cache_of_the_hub_is_read(hub, monkeypatch):
  known = location.resolve(f'hf://{REPO}')
  monkeypatch.setattr(sys.modules['huggingface_hub'].constants, 'HF_HUB_OFFLINE', True)
  asked = len(hub.asked)
  assert location.resolve(f'hf://{REPO}') == known
  with pytest.raises(types.UserError, match=r'cache \(HF_HUB_OFFLINE is set\) has no absent.pth'):
    location.resolve(f'hf://{REPO}/absent.pth')
  assert len(hub.asked) == asked


def test_without_its_client_the_way_to_get_it_is_told(monkeypatch):
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  with pytest.raises(types.UserError, match=r"pip install 'diversedit_jax\[hub\]'"):
    location.resolve('hf://lab/sit')
