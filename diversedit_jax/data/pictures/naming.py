"""The one rule for folders and archives: which files are pictures, and what their classes are.

Which files are pictures is said by `kinds`, and what is neither a picture nor a class by `system`.

Where somebody says the classes, that is what counts: a file of labels that the user names, a
`dataset.json` as EDM2's and REPA's tools write it, or a file `NAME.cls` beside each picture as in
WebDataset (see `labelling`). Otherwise the class of a picture is the top folder that it lies in.
Without a folder, the class is the WordNet id that the name begins with (`n01440764_10026.JPEG`).
If no picture has a class, all are of one, `ALL`.

One folder above the class folders, such as `train/`, is left out of names and classes. It is
recognised if all pictures lie below it, and no picture lies directly in it unless all these are
named by WordNet ids and the folder is not. At most one folder is left out.

Two mistakes are errors. If the class folders would be splits (`train` beside `test`), somebody
would train on splits as classes. If the classes are those found and one of them is lost, all labels
after it would change. Folders that only number chunks of files, as those of EDM2, are no classes.
"""

from collections.abc import Callable, Iterable, Sequence
import functools
import re

from absl import logging
import numpy as np

from diversedit_jax import types
from diversedit_jax.data.pictures import base, kinds, labelling, mistakes, system

ALL = 'all'
"""Name of the one class of pictures without classes."""

_WORDNET = re.compile(r'(n\d{8})(_.*)?')
_CHUNK = re.compile(r'(?:.*/)?(\d{5})/\D*(\d{5,})\.\w+')

Peek = Callable[[int, int], bytes]
"""Gives the first bytes of a file, by its position among those found and their number."""


def is_wordnet(name: str) -> bool:
  """Whether the name of a class is a WordNet id, 'n' and eight digits."""
  return bool(match := _WORDNET.fullmatch(name)) and match[2] is None


def skip(name: str, reason: str) -> base.Skipped:
  """The record of a file or, with '/' at the end, a folder that is not listed.

  It is bad if it is named as a picture. What the system has left is named by its uppermost part.
  """
  if foreign := system.foreign(name):
    return base.Skipped(foreign, 'of the system or hidden', bad=False)
  return base.Skipped(name, reason, bad=kinds.named_as_picture(name))


def arrange(
  found: Sequence[tuple[str, int]],
  skipped: Iterable[base.Skipped],
  folders: Iterable[str],
  classes: Sequence[str] | None,
  where: str,
  *,
  peek: Peek = lambda position, size: b'',
  labels: labelling.Labels | None = None,
  shards: bool = False,
) -> tuple[base.Listing, np.ndarray, str]:
  """The listing of pictures by the rule above.

  Args:
    found: POSIX name and size in bytes of each file.
    skipped: what is no file that can be read.
    folders: names of all folders; empty ones are skipped by name.
    classes: all classes, in order; None takes those that are found, see `base.class_order`.
    where: name of the collection, for messages.
    peek: the first bytes of a file in `found`.
    labels: who says the classes; None leaves it to the collection.
    shards: whether names begin with that of an archive, which is no class.

  Returns:
    The listing; the positions in `found` of its pictures; the folder left out, as 'train/', or ''.

  Raises:
    UserError: no pictures, splits for classes, two files with one key, or an unknown class;
      without `classes`, also a class folder that cannot be read or has nothing to list.
  """
  labels = labels or labelling.Labels()
  places, left = _pictures(found, peek)
  skipped = [*skipped, *left, *_empty(folders, found, skipped)]
  names = [found[i][0] for i in places]
  said, top, why = _said(names, found, peek, labels, where), '', 'it has no label'
  from_files = said is not None and (labels.entry or labels.given in ('', 'any'))
  if said is None:
    inner = [name.partition('/')[2] if shards else name for name in names]
    said, top = _by_folder(inner)
    why = 'in no class folder'
    if not any(said) or (labels.given != 'folders' and _are_chunks(inner)):
      said, top = _without_folders(names, found, peek, labels, classes, where), ''
      from_files, why = {*said} not in ({ALL}, set()), 'it has no label'
    else:
      if labels.given != 'folders':
        mistakes.check_splits(said, top, where)
      if not labels.given:
        mistakes.remark_on_one(inner, said, top, where)
      mistakes.check_ilsvrc(names, said, labels, where)
      if classes is None and not shards:
        mistakes.check_lost(folders, skipped, {*said} - {None}, top, where)
    top = '' if shards else top
  if from_files:
    skipped = [s for s in skipped if not labelling.says_labels(s.name)]
  if names and not any(label is not None for label in said):
    raise types.UserError(
      f'{where}: none of its {len(names)} pictures can be labelled ({names[0]}: {why}); '
      '--labels=folders takes their folders for classes, --labels=none reads them without '
      '(data.labels in a config)'
    )
  kept = [j for j, label in enumerate(said) if label is not None]
  skipped += [base.Skipped(n, why) for n, label in zip(names, said, strict=True) if label is None]
  listing, order = base.make_listing(
    [(names[j].removeprefix(top), said[j], found[places[j]][1]) for j in kept],
    sorted(set(skipped), key=lambda s: (s.name, s.reason)),
    _classes(classes, labels, said),
    where,
  )
  return listing, np.array([places[j] for j in kept], np.int64)[order], top


def _pictures(found, peek):
  """Positions of the pictures in `found`, and what the other files are."""
  places, left = [], []
  for i, (name, size) in enumerate(found):
    if system.foreign(name):
      left.append(skip(name, ''))
      continue
    try:
      refused = kinds.refusal(name, size, functools.partial(peek, i, kinds.HEAD))
    except base.BadPicture as error:  # Damaged in its archive.
      refused = str(error), True
    if refused:
      left.append(base.Skipped(name, *refused))
    else:
      places.append(i)
  return places, left


def _said(names, found, peek, labels, where):
  """The label of each picture where somebody says it; None if nobody does."""
  if labels.given == 'none':
    return [ALL] * len(names)
  if labels.given == 'prefix':
    parts = [name.rpartition('/')[2].partition('_') for name in names]
    return [before if sign else None for before, sign, _ in parts]
  if labels.file:
    return labels.of(names, where)
  if labels.given == 'folders' or not names:
    return None
  if labels.entry:
    return labelling.in_json(names, found, peek, where, labels.entry)
  said = labelling.in_collection(names, found, peek, where)
  return [ALL] * len(names) if labels.given == 'any' and said and None in said else said


def _classes(classes, labels, said):
  """All classes in order as far as they are known."""
  if classes is None or (labels.given == 'any' and set(said) == {ALL}):
    return labels.classes
  return classes


def _by_folder(names):
  """The class of each picture by its folder or its own name, or None; and the folder left out."""
  top = _left_out([name for name in names if _class(name) is not None])
  return [_class(name.removeprefix(top)) for name in names], top


def _without_folders(names, found, peek, labels, classes, where):
  """The label of each picture that lies in no class folder: by JSON beside it, or `ALL`."""
  try:
    if said := labelling.in_json(names, found, peek, where):
      return said
  except types.UserError:
    if labels.given != 'any':
      raise
  said = [ALL] * len(names)
  mistakes.check_ilsvrc(names, said, labels, where)
  if labels.given == 'any' or not names:
    return said
  if classes is not None:
    if len(classes) == 1:
      return [classes[0]] * len(names)
    raise types.UserError(
      f'{where}: its pictures lie in no class folder, so nothing says which of the {len(classes)} '
      'classes they are of; give --labels=FILE (data.labels in a config), or leave out --classes '
      'and they are of one class'
    )
  logging.warning(
    '%s has no class folders: its %d pictures are of one class, %r. --labels=FILE (data.labels in '
    "a config) says their classes, --labels=prefix takes what is before '_' in their names, "
    '--labels=none says that they have none',
    where,
    len(names),
    ALL,
  )
  return said


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


def _are_chunks(names):
  """Whether folders of five digits only number chunks of pictures, as EDM2, FFHQ and others do."""
  parts = [match.groups() for name in names if (match := _CHUNK.fullmatch(name))]
  if not names or len(parts) != len(names):
    return False
  numbers = [(int(folder), int(file)) for folder, file in parts]
  rules = (lambda n: n // 1000, lambda n: n // 1000 * 1000, lambda n: n // 10000)
  return any(all(rule(n) == folder for folder, n in numbers) for rule in rules)


def _empty(folders, found, skipped):
  """Skips the folders that hold neither a file nor a folder."""
  folders = {folder for folder in folders if folder}
  holding = {folder.rpartition('/')[0] for folder in folders}
  holding |= {name.rpartition('/')[0] for name, _ in found}
  holding |= {s.name.rstrip('/').rpartition('/')[0] for s in skipped}
  return [skip(f'{folder}/', 'an empty folder') for folder in sorted(folders - holding)]
