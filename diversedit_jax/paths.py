"""One rule for all paths that people write: `~` is expanded, all else counts from where one stands.

Shells leave the `~` of `--flag=~/x` and of `folder:~/x` as it is, so each flag, option and spec of
data that names a path comes through here.
"""

import os
import pathlib
import re

from diversedit_jax import types

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


def path(text: str | os.PathLike[str]) -> pathlib.Path:
  """`expanded`, as a path."""
  return pathlib.Path(expanded(text))


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
