"""Collections of encoded pictures: their listing, reading one picture, and reporting a bad one.

A collection is listed once and completely before anything is decoded: the pictures in the order of
their keys and, by name, everything else that it holds, so that nothing is lost silently. Opening a
collection never writes.
"""

import abc
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib

import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.data.pictures import kinds

# What reads files of other kinds.
_OTHERS = {
  '.parquet': 'parquet:PATH reads such files',
  '.tar': 'tar:PATH reads such files',
  '.zip': 'zip:FILE reads such a file',
  '.csv': 'csv:FILE reads such a table of paths and labels',
  '.tsv': 'csv:FILE reads such a table of paths and labels',
  '.npz': 'arrays:FILE.npz reads arrays as a source of training',
  '.arrow': 'of what `datasets` saved, `datasets.load_from_disk(DIR).to_parquet(FILE)` in Python '
  'makes a file for parquet:FILE',
  '.array_record': 'tfds:NAME reads a dataset that TFDS has prepared',
  '.tfrecord': "tfds:NAME reads a dataset that TFDS has prepared with file_format='array_record'",
}
# A larger integer label is a mistake, and a name for each class would fill the memory.
_MAX_CLASSES = 2**20


class BadPicture(ValueError):
  """The bytes of one picture cannot be used; the message is the reason, without its name."""


@dataclasses.dataclass(frozen=True)
class Skipped:
  """Something in a collection that does not become an example.

  name: its name in the collection.
  reason: why it is left out.
  bad: True if it is an unusable picture or may hold pictures; False if it is none, as a README.
  """

  name: str
  reason: str
  bad: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
  """What a collection holds.

  keys: sorted and unique; the POSIX path of each picture without its suffix, its lasting identity.
  names: names with suffix, in the order of the keys.
  labels: int32 [n].
  sizes: bytes of each encoded picture, int64 [n].
  label_names: names of all classes; label k is the k-th.
  named: whether the collection says classes by their names, not by labels.
  skipped: everything that is not listed.
  """

  keys: Sequence[str]
  names: Sequence[str]
  labels: np.ndarray
  sizes: np.ndarray
  label_names: tuple[str, ...]
  named: bool
  skipped: tuple[Skipped, ...] = ()

  def __len__(self) -> int:
    return len(self.keys)

  def digest(self) -> str:
    """SHA-256 over names, labels, sizes and classes: the same listing, the same digest."""
    hashed = hashlib.sha256()
    for name, label, size in zip(self.names, self.labels, self.sizes, strict=True):
      hashed.update(f'{name}\0{label}\0{size}\n'.encode('utf-8', 'surrogateescape'))
    hashed.update('\n'.join(self.label_names).encode('utf-8', 'surrogateescape'))
    return hashed.hexdigest()


class Pictures(abc.ABC):
  """A collection of pictures. It can be pickled: each process opens files when it reads them.

  name: name for messages and cards, without the machine's path, such as 'folder/photographs'.
  listing: what the collection holds.
  """

  name: str
  listing: Listing

  @abc.abstractmethod
  def read(self, index: int) -> bytes:
    """The encoded picture at a position of the listing; safe from several threads.

    Raises:
      BadPicture: its bytes are damaged in the collection.
      OSError: it is gone, or cannot be read now; see `loading`.
    """


def make_listing(
  found: Iterable[tuple[str, str | int, int]],
  skipped: Iterable[Skipped],
  classes: Sequence[str] | None,
  where: str,
) -> tuple[Listing, np.ndarray]:
  """The sorted listing of (name, label, bytes) triples, and the order that sorts them.

  A string label is the name of a class; without `classes` the classes are the names found, in their
  `class_order`.
  An integer label is an index, which must lie below the number of classes if these are given.

  Raises:
    UserError: two files have one key, a label is outside the classes, or there is no picture.
  """
  found, skipped = list(found), tuple(skipped)
  if not found:
    raise types.UserError(f'{where} holds no pictures{_first_reasons(skipped)}{_way_on(skipped)}')
  named = isinstance(found[0][1], str)
  for name, label, _ in found:
    if isinstance(label, str) != named:
      raise types.UserError(
        f'{where}: the label of {name} is {label!r}, but that of {found[0][0]} is {found[0][1]!r}; '
        'labels are all numbers or all names'
      )
  label_names = tuple(classes) if classes is not None else _label_names(found, named, where)
  index = {name: k for k, name in enumerate(label_names)}
  if len(index) != len(label_names):
    raise types.UserError(f'{where}: a class is named twice among {len(label_names)}')
  keys = [kinds.stem(name) for name, _, _ in found]
  order = np.array(sorted(range(len(found)), key=keys.__getitem__), np.int64)
  _check_unique(keys, found, order, where)
  labels = np.array([_label(*found[i][:2], index, where) for i in order], np.int32)
  listing = Listing(
    keys=[keys[i] for i in order],
    names=[found[i][0] for i in order],
    labels=labels,
    sizes=np.array([found[i][2] for i in order], np.int64),
    label_names=label_names,
    named=named,
    skipped=skipped,
  )
  return listing, order


def class_order(names: Iterable[str]) -> list[str]:
  """Names of classes in order: by their numbers if all are whole numbers, else by their letters."""
  names = sorted(names)
  return sorted(names, key=int) if are_numbers(names) else names


def are_numbers(names: Iterable[str]) -> bool:
  """Whether all names are whole numbers in the digits 0 to 9."""
  return all(name.isascii() and name.isdecimal() for name in names)


def _label_names(found, named, where):
  labels = {label for _, label, _ in found}
  if named:
    return tuple(class_order(labels))
  if max(labels) >= _MAX_CLASSES:
    raise types.UserError(
      f'{where}: the largest label is {max(labels)}, expected a label below {_MAX_CLASSES}; labels '
      'are counted from 0, without gaps'
    )
  return tuple(str(k) for k in range(max(labels) + 1))


def _check_unique(keys, found, order, where):
  for a, b in zip(order[:-1], order[1:], strict=True):
    if keys[a] == keys[b]:
      raise types.UserError(
        f'{where} has two files for one key, {found[a][0]!r} and {found[b][0]!r}: keys are names '
        'without their suffix; rename or remove one'
      )


def _label(name: str, label: str | int, index: Mapping[str, int], where: str) -> int:
  if isinstance(label, str):
    if label not in index:
      raise types.UserError(
        f'{where}: {name} is of class {label!r}, which is not one of the {len(index)} classes'
        f'{trees.did_you_mean(label, index)}'
      )
    return index[label]
  if not 0 <= label < len(index):
    raise types.UserError(
      f'{where}: {name} has label {label}, expected [0, {len(index)}), the number of classes'
    )
  return label


def _first_reasons(skipped):
  if not skipped:
    return ''
  shown = '; '.join(f'{s.name}: {s.reason}' for s in skipped[:3])
  more = '; ...' if len(skipped) > 3 else ''
  return f'; left out are {len(skipped)} files ({shown}{more})'


def _way_on(skipped):
  """What reads the files that were found instead of pictures; '' if nothing does."""
  for suffix, way in _OTHERS.items():
    if any(suffix in s.name.lower() for s in skipped):
      return f'; {way}'
  return ''
