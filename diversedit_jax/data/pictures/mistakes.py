"""Folders that would be taken for wrong classes: refused, or remarked on.

The class of each picture is `said`, None where it has none; `top` is the folder left out of names,
as 'train/', or ''; `where` names the collection in messages.
"""

from collections.abc import Collection, Sequence
import re

from absl import logging

from diversedit_jax import types
from diversedit_jax.data.pictures import base, kinds, labelling, several, system

_ILSVRC = re.compile(r'(?:.*/)?ILSVRC2012_(?:val|test)_\d{8}\.JPEG', re.IGNORECASE)


def check_splits(said: Sequence[str | None], top: str, where: str) -> None:
  """Refuses splits as classes (UserError)."""
  found = {folder: re.sub('[^a-z]', '', folder.lower()) for folder in {*said} - {None}}
  splits = sorted(folder for folder, word in found.items() if word in several.SPLITS)
  if len({found[folder] for folder in splits}) > 1:
    raise types.UserError(
      f'{where} holds the splits {", ".join(splits)}, not classes; name one split, as in '
      f'{where}/{top}{splits[-1]}, or say --labels=folders (data.labels in a config) if they are '
      'classes'
    )


def remark_on_one(names: Sequence[str], said: Sequence[str | None], top: str, where: str) -> None:
  """Warns of a single class whose folder holds nothing but folders of pictures."""
  parts = [name.removeprefix(top).split('/') for name in names]
  inside = sorted({part[1] for part in parts if len(part) > 2})
  if len({*said}) == 1 and len(inside) > 1 and all(len(part) > 2 for part in parts):
    logging.warning(
      '%s: all pictures are of one class, %r, and lie in its folders %s; if these are the classes, '
      'give %s',
      where,
      said[0],
      ', '.join([*inside[:3], '...'][: len(inside)]),
      f'{where}/{top}{said[0]}',
    )


def check_ilsvrc(
  names: Sequence[str], said: Sequence[str | None], labels: labelling.Labels, where: str
) -> None:
  """Refuses ILSVRC-2012's validation or test pictures as one class (UserError), if not wanted."""
  if labels.given == 'any' or len({*said} - {None}) != 1:
    return
  if names and all(map(_ILSVRC.fullmatch, names)):
    raise types.UserError(
      f'{where} holds validation or test pictures of ILSVRC-2012, whose names do not say their '
      'classes; give --labels=ILSVRC2012_devkit_t12.tar.gz (data.labels in a config), the '
      "development kit, or Kaggle's LOC_val_solution.csv; or --labels=none for pictures without "
      'classes'
    )


def check_lost(
  folders: Sequence[str],
  skipped: Sequence[base.Skipped],
  classes: Collection[str],
  top: str,
  where: str,
) -> None:
  """Refuses folders that may be classes, or belong to one, and of which nothing is listed.

  A folder that holds only files that are no pictures is no class, which is said.

  Raises:
    UserError: naming the first.
  """
  lost, others = {}, {}
  for s in skipped:
    name = s.name.removeprefix(top)
    folder, slash, rest = name.partition('/')
    if not s.name.startswith(top) or system.foreign(name):
      continue
    if s.bad and name.endswith('/'):
      lost[name.rstrip('/')] = s.reason  # A folder whose content is unknown.
    elif s.bad and folder not in classes and (slash or not kinds.named_as_picture(name)):
      # A name without a slash may be a broken link to a class folder.
      lost.setdefault(folder, s.reason)
    elif not name.endswith('/') and rest:
      others.setdefault(folder, s.name)
  for name in folders:
    folder = name.removeprefix(top).partition('/')[0]
    if not (name and name.startswith(top)) or system.foreign(name) or not folder:
      continue
    if folder not in classes and folder not in others:
      lost.setdefault(folder, 'an empty folder')
  if lost:
    first, more = min(lost), f' and {len(lost) - 1} more' * (len(lost) > 1)
    raise types.UserError(
      f'{where}: nothing in {top + first!r}{more} can be listed ({lost[first]}), and without it '
      'all later classes would get other labels. Repair or remove it, or name all classes by '
      "--classes (data.classes in a config): a file, or 'imagenet'"
    )
  if alone := sorted(others.keys() - classes):
    logging.warning(
      '%s: %s no class, because nothing in it is a picture, as %r; remove it, or name all classes '
      'by --classes (data.classes in a config)',
      where,
      f'{top}{alone[0]} is'
      if len(alone) == 1
      else f'{top}{alone[0]} and {len(alone) - 1} more are',
      others[alone[0]],
    )
