"""Objects in a bucket that are only written if they are what was seen: of two writers, one does."""

from typing import NamedTuple

import tensorstore


class Seen(NamedTuple):
  """What was there: its bytes, None for nothing, and which generation of the object it was."""

  value: bytes | None
  generation: bytes


class Object:
  """An object in a bucket, or a file.

  Errors are those of TensorStore: ValueError if there is no such bucket, or no right to it.
  """

  def __init__(self, url: str):
    folder, _, self._key = url.rpartition('/')
    self._store = tensorstore.KvStore.open(f'{folder}/').result()

  def read(self) -> Seen:
    """What is there now."""
    found = self._store.read(self._key).result()
    return Seen(found.value if found.state == 'value' else None, found.stamp.generation)

  def write(self, value: bytes | None, seen: bytes) -> bytes | None:
    """Writes, or removes with None, what is still of the generation that was seen.

    Returns:
      The generation that is there now; None if it was another, and nothing has changed.
    """
    made = self._store.write(self._key, value, if_equal=seen).result().generation
    if made:
      return made
    # An answer may get lost, whereupon the library asks again, and meets what it has written.
    now = self.read()
    return now.generation if now.value == value else None
