"""Parameters chosen by pattern, as in `optimizer.freeze` and `init.new`.

  blocks/*                     all of the blocks
  label_embed                  all below a name
  */bias,heads/repa/*          several, with commas
  *,!final/*,!label_embed/*    all but these: a later pattern wins, and ! leaves out

A pattern is a shell's, over the parameter's whole path with or without its first name 'model'; `*`
takes slashes too. Blocks are stored as one array for each of their parameters, so no pattern names
a single block.
"""

from collections.abc import Iterable
import difflib
import fnmatch

from diversedit_jax import types


def matching(patterns: str, names: Iterable[str], key: str) -> frozenset[str]:
  """The names that comma-separated patterns choose; none for ''.

  Args:
    patterns: see above. names: paths, as 'model/final/linear/bias'. key: for the message.

  Raises:
    UserError: a pattern is of no name; near ones are named. Or it leaves out of nothing.
  """
  names, chosen = list(names), set()
  for pattern in filter(None, (part.strip() for part in patterns.split(','))):
    found = {name for name in names if _is_of(pattern.removeprefix('!'), name)}
    if not found:
      raise types.UserError(f'{key}: {pattern!r} matches no parameter; {_near(pattern, names)}')
    if pattern.startswith('!') and not chosen:
      raise types.UserError(f"{key}: {pattern!r} leaves out of nothing; put '*,' before it for all")
    chosen = chosen - found if pattern.startswith('!') else chosen | found
  return frozenset(chosen)


def of(names: Iterable[str], among: Iterable[str]) -> str:
  """The shortest patterns, with commas between, that choose these names and no others."""
  names, among = set(names), list(among)

  def shortest(name):
    parts = name.split('/')
    parents = ('/'.join(parts[:end]) for end in range(2, len(parts)))
    inside = lambda parent: {other for other in among if other.startswith(f'{parent}/')}
    return next((parent for parent in parents if inside(parent) <= names), name)

  return ','.join(sorted({shortest(name).removeprefix('model/') for name in names}))


def _is_of(pattern, name):
  return any(
    fnmatch.fnmatchcase(path, whole)
    for path in (name, name.removeprefix('model/'))
    for whole in (pattern, f'{pattern.rstrip("/")}/*')
  )


def _near(pattern, names):
  """What may be meant: near names and parents of names, or all first ones."""
  parts = [name.removeprefix('model/').split('/') for name in names]
  known = {'/'.join(path[:end]) for path in parts for end in range(1, len(path) + 1)}
  asked = pattern.strip('!*/').removeprefix('model/')
  near = difflib.get_close_matches(asked, sorted(known), n=3, cutoff=0.6)
  if not near:
    top = dict.fromkeys('/'.join(path[:2] if path[0] == 'heads' else path[:1]) for path in parts)
    return f'there are {", ".join(f"{name}/*" for name in top)}'
  return f'did you mean {" or ".join(repr(name) for name in near)}?'
