"""A hub on the loopback address, which speaks what `huggingface_hub` asks of one for a file."""

import contextlib
import hashlib
import http.server
import os
import re
import sys
import threading

import pytest

TOKEN = 'hf_secretOfTheTest'
COMMIT = '0123456789abcdef0123456789abcdef01234567'
_REQUEST = re.compile(r'/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)')


class Hub:
  """What a hub has, and what it was asked.

  files: bytes by (repository, path), of every revision in `revisions`.
  tokens: the values of the header 'Authorization' that came with requests of files.
  asked: (revision, path) of what was asked for.
  """

  def __init__(self):
    self.files, self.tokens, self.asked = {}, set(), []
    self.revisions, self.gated = ('main', 'v1', COMMIT), set()

  def answer(self, line):
    """Status, headers and body for the path of a request."""
    match = _REQUEST.fullmatch(line)
    repo, revision, path = match.groups() if match else ('', '', '')
    self.asked.append((revision, path))
    if repo in self.gated:
      return 403, {'X-Error-Code': 'GatedRepo'}, b''
    if repo not in {one for one, _ in self.files}:
      return 404, {'X-Error-Code': 'RepoNotFound'}, b''
    if revision not in self.revisions:
      return 404, {'X-Error-Code': 'RevisionNotFound'}, b''
    facts = {'X-Repo-Commit': COMMIT}
    if (repo, path) not in self.files:
      return 404, facts | {'X-Error-Code': 'EntryNotFound'}, b''
    body = self.files[repo, path]
    large = path.endswith(('.safetensors', '.pth'))
    digest = hashlib.sha256(body) if large else hashlib.sha1(b'blob %d\0' % len(body) + body)
    return 200, facts | {'ETag': f'"{digest.hexdigest()}"'}, body


@contextlib.contextmanager
def served(folder):
  """A running `Hub`, with the client set up for it as a user does, by the environment.

  folder: the client's home, where its cache is.
  """
  hub = Hub()

  class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
      if '/resolve/' in self.path:
        hub.tokens.add(self.headers.get('Authorization'))
      status, headers, body = hub.answer(self.path)
      self.send_response(status)
      for key, value in {**headers, 'Content-Length': str(len(body))}.items():
        self.send_header(key, value)
      self.end_headers()
      if self.command == 'GET':
        self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_):
      pass

  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  hub.environment = {
    'HF_ENDPOINT': f'http://127.0.0.1:{server.server_port}',
    'HF_HOME': str(folder),
    'HF_TOKEN': TOKEN,
    'NO_PROXY': '127.0.0.1',
  }
  with pytest.MonkeyPatch.context() as patch:
    for key in [key for key in os.environ if key.startswith(('HF_', 'HUGGINGFACE_'))]:
      patch.delenv(key)
    for key, value in hub.environment.items():
      patch.setenv(key, value)
    with _imported_anew():
      yield hub
  server.shutdown()
  server.server_close()


@contextlib.contextmanager
def _imported_anew():
  """The client reads the environment when it is imported."""
  ours = lambda: [name for name in sys.modules if name.partition('.')[0] == 'huggingface_hub']
  before = {name: sys.modules.pop(name) for name in ours()}
  try:
    yield
  finally:
    for name in ours():
      del sys.modules[name]
    sys.modules.update(before)
