"""The one rule for folders and archives: which files are pictures, and what their classes are.

A picture is a file with a picture's suffix, of at most 1 GiB, that is not hidden (no part of its
name begins with a dot or is `__MACOSX`). Its class is the top folder that it lies in. Without a
folder, the class is the WordNet id that the name begins with (`n01440764_10026.JPEG`); files with
neither are skipped.

One folder above the class folders, such as `train/`, is left out of names and classes. It is
recognised if all pictures lie below it, and no picture lies directly in it unless all these are
named by WordNet ids and the folder is not. At most one folder is left out.

Two mistakes are errors. If the class folders would be splits (`train` beside `test`), somebody
would train on splits as classes. If the classes are those found and one of them is lost, all labels
after it would change.
"""

from collections.abc import Iterable, Sequence
import re

import numpy as np

from diversedit_jax import types
from diversedit_jax.data.pictures import base

SUFFIXES = (
  '.jpg',
  '.jpeg',
  '.png',
  '.webp',
  '.bmp',
  '.gif',
  '.tif',
  '.tiff',
  '.ppm',
  '.pgm',
  '.pbm',
  '.pnm',
)
MAX_BYTES = 2**30
SPLITS = frozenset(('train', 'training', 'val', 'valid', 'validation', 'test', 'testing'))
_WORDNET = re.compile(r'(n\d{8})(_.*)?')


def is_wordnet(name: str) -> bool:
  """Whether the name of a class is a WordNet id, 'n' and eight digits."""
  return bool(match := _WORDNET.fullmatch(name)) and match[2] is None


def hidden(name: str) -> bool:
  """Whether a file, or a folder that it lies in, is hidden."""
  return any(part.startswith('.') or part == '__MACOSX' for part in name.split('/'))


def refusal(name: str, size: int) -> str | None:
  """Why a file is no picture, by its name and size in bytes; None if it may be one."""
  if hidden(name):
    return 'hidden'
  if not named_as_picture(name):
    return 'not named as a picture'
  return too_large(size)


def named_as_picture(name: str) -> bool:
  """Whether a file has a picture's suffix and is not hidden."""
  return name.lower().endswith(SUFFIXES) and not hidden(name)


def skip(name: str, reason: str) -> base.Skipped:
  """The record of a file that is not listed; it is bad if it is named as a picture."""
  return base.Skipped(name, reason, bad=named_as_picture(name))


def too_large(size: int) -> str | None:
  """Why a file of this many bytes is not read; None if it is."""
  return f'{size} bytes, more than {MAX_BYTES}' if size > MAX_BYTES else None


def arrange(
  found: Sequence[tuple[str, int]],
  skipped: Iterable[base.Skipped],
  folders: Iterable[str],
  classes: Sequence[str] | None,
  where: str,
) -> tuple[base.Listing, np.ndarray, str]:
  """The listing of pictures by the rule above.

  Args:
    found: POSIX name and size in bytes of each candidate.
    skipped: files that are no candidates.
    folders: names of all folders; empty ones are skipped by name.
    classes: all classes, in order; None takes those that are found, sorted.
    where: name of the collection, for messages.

  Returns:
    The listing; the positions in `found` of its pictures; the folder left out, as 'train/', or ''.

  Raises:
    UserError: no pictures, splits for classes, two files with one key, or an unknown class;
      without `classes`, also a class folder that cannot be read or has nothing to list.
  """
  folders = list(folders)
  skipped = [*skipped, *_empty(folders, [*(name for name, _ in found), *(s.name for s in skipped)])]
  homeless = {i for i, (name, _) in enumerate(found) if _class(name) is None}
  kept = [i for i in range(len(found)) if i not in homeless]
  skipped += [skip(found[i][0], 'in no class folder') for i in sorted(homeless)]
  top = _left_out([found[i][0] for i in kept])
  entries = [(found[i][0].removeprefix(top), found[i][1]) for i in kept]
  labelled = [(name, _class(name), size) for name, size in entries]
  found_classes = {label for _, label, _ in labelled}
  if len(found_classes) > 1 and found_classes <= SPLITS:
    raise types.UserError(
      f'{where} holds the splits {", ".join(sorted(found_classes))}, not classes; name one split, '
      f'as in {where}/{top}{max(found_classes)}'
    )
  if classes is None and labelled:
    _check_lost(folders, skipped, found_classes, top, where)
  skipped.sort(key=lambda s: (s.name, s.reason))
  listing, order = base.make_listing(labelled, skipped, classes, where)
  return listing, np.array(kept, np.int64)[order], top


def _class(name):
  folder, slash, _ = name.partition('/')
  if slash:
    return folder
  match = _WORDNET.match(name)
  return match[1] if match and match[2] else None


def _left_out(names):
  tops = {name.partition('/')[0] for name in names}
  if len(tops) != 1 or not all('/' in name for name in names):
    return ''
  (top,) = tops
  inside = [name.partition('/')[2] for name in names]
  direct = [name for name in inside if '/' not in name]
  named = all(_class(name) for name in direct) and not is_wordnet(top)
  return f'{top}/' if not direct or named else ''


def _empty(folders, names):
  """Skips the folders that hold neither a file nor a folder."""
  folders = set(folders)
  holding = {folder.rpartition('/')[0] for folder in folders}
  holding |= {name.rstrip('/').rpartition('/')[0] for name in names}
  return [skip(f'{folder}/', 'an empty folder') for folder in sorted(folders - holding)]


def _check_lost(folders, skipped, classes, top, where):
  """Refuses folders that may be classes, or belong to one, and of which nothing is listed."""
  lost, others = {}, set()
  for s in skipped:
    name = s.name.removeprefix(top)
    folder, slash, rest = name.partition('/')
    if not s.name.startswith(top) or hidden(name):
      continue
    if s.bad and name.endswith('/'):
      lost[name.rstrip('/')] = s.reason  # A folder whose content is unknown.
    elif s.bad and folder not in classes and (slash or not named_as_picture(name)):
      # A name without a slash may be a broken link to a class folder.
      lost.setdefault(folder, s.reason)
    elif not name.endswith('/') and rest:
      others.add(folder)
  for name in folders:
    folder = name.removeprefix(top).partition('/')[0]
    # A folder that holds only other files is no class.
    if name.startswith(top) and not hidden(name) and folder not in classes | others:
      lost.setdefault(folder, 'an empty folder')
  if lost:
    first, more = min(lost), f' and {len(lost) - 1} more' * (len(lost) > 1)
    raise types.UserError(
      f'{where}: nothing in {top + first!r}{more} can be listed ({lost[first]}), and without it '
      'all later classes would get other labels. Repair or remove it, or name all classes by '
      "--classes (data.classes in a config): a file, or 'imagenet'"
    )
