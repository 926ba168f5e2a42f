"""Where weights are: a path on this machine, in a bucket, or a place on Hugging Face's hub.

  ~/weights/sit.safetensors                               '~' is the home, the rest as it stands
  hf://stabilityai/sd-vae-ft-mse                          the weights in a repository
  hf://ORG/REPO@REVISION/FOLDER/FILE#sha256=HEX           of a branch, tag or commit, with a digest
  gs://BUCKET/FOLDER/FILE, s3://...                       in a bucket; copied while the program runs

Every path of weights goes through `resolve`. What is on the hub is fetched by `huggingface_hub`
into its own cache, with its own settings: HF_ENDPOINT, HF_HOME, HF_TOKEN, HF_HUB_OFFLINE.
"""

import atexit
from collections.abc import Iterator, Sequence
import contextlib
import functools
import hashlib
import os
import pathlib
import re
import tempfile
import urllib.parse

from absl import logging

from diversedit_jax import __version__, paths, types
from diversedit_jax.weights import folders, misfits, opening

SCHEME = 'hf://'
SETTINGS = 'config.json'
_FILE = re.compile(r'.*\.(safetensors|npz|pth?|tar|bin|ckpt|pickle|pkl|json)')
_PLACE = re.compile(
  r'hf://(?P<repo>[^/@#]+/[^/@#]+)(@(?P<revision>refs/(pr|convert)/[^/#]+|[^/#]+))?'
  r'(/(?P<path>[^#]*))?(#sha256=(?P<sha256>[0-9a-f]{64}))?'
)
_PAGE = re.compile(
  r'https?://huggingface\.co/([^/]+/[^/]+)/(?:blob|resolve|tree)/([^/?]+)/?([^?]*)'
)


def resolve(
  given: str | os.PathLike[str],
  names: Sequence[str] = folders.NAMES,
  beside: Sequence[str] = (),
) -> pathlib.Path:
  """The path on this machine of weights, which are fetched first if they are on the hub.

  Args:
    given: a path, or a place on the hub; see above.
    names: files that are looked for where a place on the hub is a folder, the best first.
    beside: what else belongs to a file that is fetched, see `side`.

  Returns:
    A path, which may not exist if it was given as one, or is that of a folder in a bucket without
    such a file. A file that was fetched has `config.json` beside it, if it is there, and the parts
    that an index names.

  Raises:
    UserError: what is given is malformed or another URL, or cannot be fetched.
  """
  text = os.fspath(given)
  if '://' not in text:
    return paths.path(text)
  if paths.is_bucket(text):
    given = paths.path(text, bucket=True)
    candidates = (given, *(given / name for name in names))
    file = next((path for path in candidates if path.is_file()), None)
    return given if file is None else _copied(file, tuple(beside))
  place = _PLACE.fullmatch(text)
  if place is None:
    raise types.UserError(_malformed(text))
  inside = (place['path'] or '').strip('/')
  wanted = [f'{inside}/{name}'.lstrip('/') for name in names]
  wanted = [inside] if _FILE.fullmatch(inside) else wanted
  file = _fetch(
    text, place['repo'], urllib.parse.unquote(place['revision'] or 'main'), wanted, beside
  )
  found = digest(file)
  if place['sha256'] not in (None, found):
    raise types.UserError(f'{text} is another file: its SHA-256 is {found}')
  logging.info('%s: %.1f MB, SHA-256 %s', place_of(file), file.stat().st_size / 1e6, found)
  return file


@functools.cache
def _copied(file, more):
  """A copy of a file in a bucket, of what belongs to it too, until the program ends."""
  place = tempfile.TemporaryDirectory()
  atexit.register(place.cleanup)
  folder = pathlib.Path(place.name) / file.parent.name
  folder.mkdir()

  def get(path):
    paths.system(path).get_file(str(path), str(folder / path.name))

  get(file)
  beside = [name for name in side(file.name, more) if (file.parent / name).is_file()]
  if file.name.endswith(folders.INDEX):
    beside += sorted(set(opening.shards(folder / file.name).values()))
  for one in beside:
    get(file.parent / one)
  return folder / file.name


def side(file: str, more: Sequence[str]) -> tuple[str, ...]:
  """Names of the files that belong to one of weights, where {stem} is its name without a suffix."""
  return (SETTINGS, *(name.format(stem=file.rpartition('.')[0]) for name in more))


def name(path: pathlib.Path) -> str:
  """What cards call a file: its name, or for one of the hub its place with commit and SHA-256.

  That place can be given instead of the path, and is then the same file or an error.
  """
  place = place_of(path)
  return f'{place}#sha256={digest(path)}' if place else path.name


def place_of(path: pathlib.Path) -> str:
  """The place on the hub, with its commit, of a file in the hub's cache; '' for other files."""
  # models--ORG--REPO/snapshots/COMMIT/FOLDER/FILE
  parts = path.parts
  for i in range(1, len(parts) - 2):
    if parts[i] == 'snapshots' and parts[i - 1].startswith('models--'):
      repo = parts[i - 1].removeprefix('models--').replace('--', '/', 1)
      return f'{SCHEME}{repo}@{"/".join(parts[i + 1 :])}'
  return ''


def _malformed(text):
  if page := _PAGE.match(text):
    repo, revision, path = page.groups()
    return f'{text} is a page: give {SCHEME}{repo}@{revision}{path and "/"}{path}'
  if text.startswith(SCHEME):
    expected = f'{SCHEME}ORG/REPO[@REVISION][/PATH], as {SCHEME}stabilityai/sd-vae-ft-mse'
    return f'{text} is malformed; expected {expected}'
  return f'{text} is a URL, which is not read; download it and give the path, or give {SCHEME}'


def _fetch(text, repo, revision, wanted, more) -> pathlib.Path:
  """The first file that a repository has of those wanted, with what belongs to it."""
  hub = _import_hub()
  get = functools.partial(
    hub.hf_hub_download, repo, library_name='diversedit_jax', library_version=__version__
  )

  def first(names, revision) -> pathlib.Path | None:
    for one in names:
      with contextlib.suppress(hub.errors.RemoteEntryNotFoundError):
        try:
          return pathlib.Path(get(one, revision=revision))
        except hub.errors.LocalEntryNotFoundError as error:
          if not isinstance(error.__cause__, hub.errors.OfflineModeIsEnabled):
            raise
    return None

  with _told(hub, text, repo, revision):
    file = first(wanted, revision)
    if file is None:
      offline = hub.constants.HF_HUB_OFFLINE
      where = "the hub's cache (HF_HUB_OFFLINE is set)" if offline else 'the repository'
      none = 'no' if len(wanted) == 1 else 'none of'
      raise types.UserError(f'{text}: {where} has {none} {misfits.first_few(wanted)}')
    # The commit of the file, not the branch, which may move meanwhile.
    commit, _, inside = place_of(file).partition('@')[2].partition('/')
    beside = lambda one: f'{inside.rpartition("/")[0]}/{one}'.lstrip('/')
    for one in side(file.name, more):
      first([beside(one)], commit)
    if file.name.endswith(folders.INDEX):
      for part in sorted(set(opening.shards(file).values())):
        get(beside(part), revision=commit)
  return file


@contextlib.contextmanager
def _told(hub, text, repo, revision) -> Iterator[None]:
  """Tells in a line why the hub gave nothing; its own messages are long, and may change."""
  endpoint, errors = hub.constants.ENDPOINT, hub.errors
  try:
    yield
  except types.UserError:
    raise
  except errors.GatedRepoError as error:
    why = f'accept its terms at {endpoint}/{repo}, and set HF_TOKEN or run `hf auth login`'
    raise types.UserError(f'{text} is gated: {why}') from error
  except errors.RepositoryNotFoundError as error:
    why = 'or it is private: check the name, and set HF_TOKEN or run `hf auth login`'
    raise types.UserError(f'{text}: {endpoint} has no repository {repo}, {why}') from error
  except errors.RevisionNotFoundError as error:
    raise types.UserError(f'{text}: {repo} has no revision {revision!r}') from error
  except errors.LocalEntryNotFoundError as error:
    why = type(error.__cause__ or error).__name__
    raise types.UserError(
      f'{text}: {endpoint} gives no answer ({why}), and the cache of the hub does not have it'
    ) from error
  except Exception as error:  # A broken connection, a full disk: the hub raises many types.
    reason = ' '.join(str(error).split())[:200]
    raise types.UserError(f'{text} cannot be fetched: {type(error).__name__}: {reason}') from error


def digest(path: pathlib.Path) -> str:
  """SHA-256 of a file, in hex; of one that did not change it is remembered."""
  facts = path.stat()
  return _digest(str(path), facts.st_size, facts.st_mtime_ns)


@functools.lru_cache
def _digest(path, size, changed) -> str:
  del size, changed  # What the answer stands for.
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()


def _import_hub():
  try:
    import huggingface_hub  # noqa: PLC0415 (an extra of its own)
    import huggingface_hub.constants
    import huggingface_hub.errors
  except ImportError as error:
    raise types.UserError(
      "hf:// needs the hub's client: pip install 'diversedit_jax[hub]', or pip install "
      'huggingface_hub'
    ) from error
  return huggingface_hub
