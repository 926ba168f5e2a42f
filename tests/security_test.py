"""What docs/security.md promises, as far as no other test does.

Elsewhere: calls in pickles do nothing (weights/numpy_pickle_test.py, weights/torch_file_test.py);
entries that leave their archive are left out (data/pictures/archives_test.py); an index names only
files beside it (weights/folders_test.py), as a name on the hub (weights/location_test.py).
"""

import ast
import contextlib
import os
import pathlib
import subprocess
import sys

import pytest

from diversedit_jax import cli, meeting

ROOT = pathlib.Path(__file__).parents[1]
# Functions by the end of their dotted names: what runs code or a shell, writes entries of an
# archive to a disk, or listens; and where it may be.
_RUNS = ('eval', 'exec', 'os.system', 'os.popen', 'pickle.load', 'pickle.loads', 'torch.load')
_RUNS += (
  'pickle.Unpickler',
  'cloudpickle.load',
  'cloudpickle.loads',
  'joblib.load',
  'marshal.loads',
)
_RUNS += ('runpy.run_path', 'yaml.load', 'jax.export.deserialize')
_EXTRACTS = ('extractall', 'archive.extract', 'unpack_archive')
_LISTENS = ('start_server', 'HTTPServer', 'socket.bind', 'create_server', 'serve_forever', 'listen')
_MAY = {
  'config_file.py': {'exec'},  # A config that the user names.
  'meeting.py': {'socket.create_server'},  # See below.
}


def calls():
  """(file, dotted name, keyword arguments) of all calls in the package."""
  for path in sorted((ROOT / 'diversedit_jax').rglob('*.py')):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, ast.Call):
        words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        yield path.relative_to(ROOT / 'diversedit_jax').as_posix(), ast.unparse(node.func), words


def test_nothing_runs_what_it_reads_unpacks_or_listens():
  found = list(calls())
  assert len(found) > 5000  # They are looked at.
  wrong = []
  for file, name, words in found:
    if any(name == end or name.endswith(f'.{end}') for end in (*_RUNS, *_EXTRACTS, *_LISTENS)):
      known = name in _MAY.get(file, ()) or name in ('self.eval', 'jax.eval')
      wrong += [] if known else [(file, name)]
    if name in ('np.load', 'numpy.load') and words.get('allow_pickle') != 'False':
      wrong.append((file, name, 'without allow_pickle=False'))
    if words.get('shell') == 'True' or words.get('trust_remote_code') == 'True':
      wrong.append((file, name, words))
  assert not wrong


@pytest.mark.slow
def test_programs_are_kept_where_this_user_alone_can_put_them(tmp_path):
  code = 'from diversedit_jax import cli; cli.keep_programs(); import jax; '
  code += 'print(jax.config.jax_compilation_cache_dir); jax.jit(lambda x: x + 1)(1.0)'
  kept = {'JAX_COMPILATION_CACHE_DIR'}
  environment = {name: value for name, value in os.environ.items() if name not in kept}
  environment |= {'XDG_CACHE_HOME': str(tmp_path), 'JAX_PLATFORMS': 'cpu', 'HOME': '/nonexistent'}
  (tmp_path / 'diversedit_jax').mkdir(mode=0o777)
  (tmp_path / 'diversedit_jax').chmod(0o777)
  done = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True, check=True
  )
  folder = tmp_path / 'diversedit_jax' / 'xla'
  assert done.stdout.split() == [str(folder)] and any(folder.iterdir())
  assert [path.stat().st_mode & 0o777 for path in (folder, folder.parent)] == [0o700, 0o700]


@pytest.mark.skipif(os.getuid() != 0, reason='only root can give a folder away')
@pytest.mark.parametrize('whose', ['.', 'xla'])
def test_programs_of_somebody_else_are_not_run(tmp_path, whose):
  folder = tmp_path / 'diversedit_jax' / 'xla'
  folder.mkdir(parents=True)
  assert cli._made_private(folder)
  os.chown(folder.parent / whose, 65534, 65534)
  assert not cli._made_private(folder)


@pytest.mark.slow
def test_processes_of_one_host_meet_where_no_other_host_can_reach_them():
  code = """
import jax, socket
from diversedit_jax import cluster
with socket.socket() as free:
  free.bind(('127.0.0.1', 0))
  port = free.getsockname()[1]
import os
os.environ[cluster.ADDRESS] = f'127.0.0.1:{port}'
cluster.join()
for name in ('tcp', 'tcp6'):
  for line in open(f'/proc/self/net/{name}').read().splitlines()[1:]:
    _, local, _, state = line.split()[:4]
    if state == '0A' and int(local.rpartition(':')[2], 16) == port:
      print(local.rpartition(':')[0])
"""
  environment = os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_PROCESSES': '1',
    'JAX_PROCESS_ID': '0',
  }
  done = subprocess.run(
    [sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=120
  )
  # 127.0.0.1, as the kernel writes it, whole or within IPv6.
  assert done.stdout.split() in (['0100007F'], ['0000000000000000FFFF00000100007F']), done.stderr


@pytest.mark.parametrize(
  ('address', 'everywhere'),
  [
    ('localhost:1', False),
    ('127.0.0.1:1', False),
    ('[::1]:1', False),
    ('10.0.0.1:1', True),
    ('', True),
  ],
)
def test_the_first_process_waits_for_others_where_they_can_be(monkeypatch, address, everywhere):
  monkeypatch.setenv('JAX_COORDINATOR_ADDRESS', address)
  with contextlib.suppress(OSError):  # A machine without IPv6.
    with meeting.listening() as server:
      host, port = server.getsockname()[:2]
    assert port and (host in ('::', '0.0.0.0')) == everywhere
    assert everywhere or host in ('127.0.0.1', '::1')


def test_the_image_runs_as_a_user():
  lines = (ROOT / 'launch' / 'Dockerfile').read_text().splitlines()
  users = [line.split()[1] for line in lines if line.startswith('USER')]
  assert users and users[-1] not in ('root', '0')
