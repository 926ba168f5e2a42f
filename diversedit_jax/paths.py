"""One rule for all paths that people write: `~` is expanded, all else counts from where one stands.

Shells leave the `~` of `--flag=~/x` and of `folder:~/x` as it is, so each flag, option and spec of
data that names a path comes through here. So do paths in buckets, gs://BUCKET/PATH and
s3://BUCKET/PATH: whatever takes them gets an `epath.Path`, and whatever cannot refuses them here.
"""

import importlib.util
import os
import pathlib
import re
import sys
from typing import Any

from diversedit_jax import types

_PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}  # By the scheme of a bucket: what `epath` reads it with.
_EXTRAS = {'gs': 'gcs', 's3': 's3'}
# Where TensorFlow is installed, `epath` would take it instead, which knows s3:// by yet another
# package; it looks once, when the first path of any kind is used.
os.environ.setdefault('EPATH_USE_TF', 'false')
# Other processes write in buckets too, so what a listing said may be old. `fsspec` reads this
# when it is imported: a library may open a bucket before any path comes through here.
for _protocol in ('GCS', 'S3'):
  os.environ.setdefault(f'FSSPEC_{_protocol}_USE_LISTINGS_CACHE', 'false')
if 'fsspec' in sys.modules:
  sys.modules['fsspec'].config.set_conf_env(sys.modules['fsspec'].config.conf)
# With one slash it is a slip of the pen, or a URL that `pathlib` has seen; no folder is named so.
_URL = re.compile(r'[a-zA-Z][\w+.-]+://|(gs|s3):/')
_KIND = re.compile(r'(?P<kind>\w{2,}:)?(?P<path>~.*)', re.DOTALL)


def expanded(text: str | os.PathLike[str]) -> str:
  """A path, or 'KIND:PATH', with a home folder for a leading `~` or `~NAME`.

  Raises:
    UserError: the home folder is unknown: HOME is not set, or there is no such user.
  """
  text = os.fspath(text)
  found = _KIND.fullmatch(text)
  if found is None:
    return text
  path = os.path.expanduser(found['path'])
  if path.startswith('~'):
    known = 'set HOME, or give' if found['path'].partition('/')[0] == '~' else 'give'
    raise types.UserError(f'{text}: that home folder is not known; {known} the path without ~')
  return (found['kind'] or '') + path


def is_bucket(path: str | os.PathLike[str]) -> bool:
  """Whether a path lies in a bucket, and not on a disk."""
  scheme, colon, _ = str(path).partition('://')
  return bool(colon) and scheme in _PACKAGES


def path(text: str | os.PathLike[str], *, bucket: bool = False) -> pathlib.Path:
  """`expanded`, as a path; an `epath.Path` if it lies in a bucket.

  bucket: whether it may.

  Raises:
    UserError: it is a URL, but for one of a bucket if it may be; or the package that reads the
      bucket is not installed.
  """
  text = expanded(text)
  if not is_bucket(text):
    if _URL.match(text):
      way_on = ', or one in a bucket: gs://BUCKET/FOLDER' if bucket else ''
      raise types.UserError(f'{text} is a URL, expected a path on a disk{way_on}')
    return pathlib.Path(text)
  if not bucket:
    raise types.UserError(
      f'{text} lies in a bucket, expected a path on a disk: copy it, or mount the bucket (gcsfuse, '
      'say) and give the path of the mount'
    )
  return _in_bucket(text)


def absolute(path: pathlib.Path) -> pathlib.Path:
  """The path from the root; one in a bucket, which `epath` would look for below the folder, is."""
  return path if is_bucket(path) else path.absolute()


def system(path: pathlib.Path) -> Any:
  """What knows the bucket that a path lies in: a file system of `fsspec`."""
  import fsspec

  return fsspec.core.url_to_fs(str(path))[0]


def _in_bucket(text):
  from etils import epath  # Here, for it takes a moment that few commands need.

  scheme, _, rest = text.partition('://')
  bucket, _, name = rest.partition('/')
  if not bucket or not name.strip('/'):
    raise types.UserError(f'{text} names no folder of a bucket: give {scheme}://BUCKET/FOLDER')
  if importlib.util.find_spec(_PACKAGES[scheme]) is None:
    raise types.UserError(
      f'{text}: this needs the package {_PACKAGES[scheme]}, which is not installed: pip install '
      f"'diversedit_jax[{_EXTRAS[scheme]}]'"
    )
  return epath.Path(text)


def utf8(path: pathlib.Path) -> pathlib.Path:
  """The path itself, for libraries that take text alone, such as Orbax and ArrayRecord.

  Raises:
    UserError: its name is not UTF-8, or Python was told to read it as something else.
  """
  try:
    str(path).encode()
  except UnicodeEncodeError as error:
    raise types.UserError(
      f'{ascii(str(path))} is no name in UTF-8, which is needed here; set PYTHONUTF8=1 (or '
      'LC_ALL=C.UTF-8) if it is one, or choose another'
    ) from error
  return path


def user_cache() -> pathlib.Path | None:
  """$XDG_CACHE_HOME or ~/.cache; None for a user without a home, as containers have them."""
  given = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  found = os.path.expanduser(given)
  return pathlib.Path(found) if os.path.isabs(found) else None
