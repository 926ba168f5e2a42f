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


def user_cache() -> pathlib.Path | None:
  """$XDG_CACHE_HOME or ~/.cache; None for a user without a home, as containers have them."""
  given = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  found = os.path.expanduser(given)
  return pathlib.Path(found) if os.path.isabs(found) else None
