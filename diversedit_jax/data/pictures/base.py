"""Collections of encoded pictures: what they list, how one is read, how a bad one is named.

A collection is listed once, completely, before anything is decoded: its pictures in the order of
their keys, and by name everything that it holds and that is no picture, so that nothing is lost in
silence. Opening one is cheap to undo and never writes.
"""

import abc
from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import hashlib

import numpy as np

from diversedit_jax import trees, types

# Beyond it an integer is no label but a mistake, and its names would fill the memory.
_MAX_CLASSES = 2**20


class BadPicture(ValueError):
  """The bytes of one picture cannot be used; the message is the reason, without its name."""


@dataclasses.dataclass(frozen=True)
class Skipped:
  """Something in a collection that does not become an example.

  name: as it is found there. bad: whether it is a picture that cannot be used, or may hold some;
  if not, it is no picture, such as a README.
  """

  name: str
  reason: str
  bad: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Listing:
  """What a collection holds.

  keys: sorted and unique; a POSIX path without its suffix, by which a picture is known for ever.
  names: as they are found, with suffix, in the order of the keys. labels: int32 [n].
  sizes: bytes of each encoded picture, int64 [n]; -1 where that is not known without reading it.
  label_names: of all classes, label k being the k-th. skipped: what is not listed.
  """

  keys: Sequence[str]
  names: Sequence[str]
  labels: np.ndarray
  sizes: np.ndarray
  label_names: tuple[str, ...]
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
  """A collection. Travels to other processes by pickling; files are opened where they are read.

  name: for messages and cards, without the machine's path: 'folder/photographs'.
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
  """The sorted listing of (name, label, bytes), and the order that sorts what was given.

  A label that is a string is the name of its class; without `classes`, the names found, sorted, are
  the classes. An integer label is an index, below the number of classes if they are given.

  Raises:
    UserError: two files for one key, a label outside the classes, no picture at all.
  """
  found, skipped = list(found), tuple(skipped)
  if not found:
    raise types.UserError(f'{where} holds no pictures{_first_reasons(skipped)}')
  named = isinstance(found[0][1], str)
  label_names = tuple(classes) if classes is not None else _label_names(found, named, where)
  index = {name: k for k, name in enumerate(label_names)}
  if len(index) != len(label_names):
    raise types.UserError(f'{where}: a class is named twice among {len(label_names)}')
  keys = [_key(name) for name, _, _ in found]
  order = np.array(sorted(range(len(found)), key=keys.__getitem__), np.int64)
  _check_unique(keys, found, order, where)
  labels = np.array([_label(*found[i][:2], index, where) for i in order], np.int32)
  listing = Listing(
    keys=[keys[i] for i in order],
    names=[found[i][0] for i in order],
    labels=labels,
    sizes=np.array([found[i][2] for i in order], np.int64),
    label_names=label_names,
    skipped=skipped,
  )
  return listing, order


def _key(name: str) -> str:
  folder, slash, file = name.rpartition('/')
  stem, dot, _ = file.rpartition('.')
  return folder + slash + (stem if dot and stem else file)


def _label_names(found, named, where):
  labels = {label for _, label, _ in found}
  if named:
    return tuple(sorted(labels))
  if max(labels) >= _MAX_CLASSES:
    raise types.UserError(
      f'{where}: the largest label is {max(labels)}, expected one below {_MAX_CLASSES}: labels are '
      'counted from 0, without gaps'
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
  shown = '; '.join(f'{s.name}: {s.reason}' for s in skipped[:3])
  return f' ({len(skipped)} files are none: {shown}{"; ..." if len(skipped) > 3 else ""})' * bool(
    skipped
  )
