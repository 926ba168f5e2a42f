"""Reads and decodes a listed picture, in spite of disks and networks that fail for a moment.

Damaged bytes make a picture bad, and it may be left out for ever. A machine that fails says nothing
about the picture: reading is tried again a few times, and then the program ends.
"""

from collections.abc import Callable
import errno
import time
from typing import TypeVar

from absl import logging
import numpy as np

from diversedit_jax import types
from diversedit_jax.data.pictures import base, crop, decode

LASTING = frozenset(
  (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EACCES, errno.EPERM)
)
"""Errors that are facts about a file; all others come from the disk, the network or the process."""

_WAITS = (0.1, 0.5, 2.0)  # Seconds before another attempt.

_Result = TypeVar('_Result')


def load(
  collection: base.Pictures, index: int, *, size: int, rule: str, orientation: str
) -> tuple[bytes, np.ndarray]:
  """The encoded picture at a position of the listing, and its crop, uint8 [size, size, 3].

  Args:
    collection: the pictures.
    index: position in the listing.
    size: side of the crop.
    rule: rule of the crop, see `crop.crop`.
    orientation: see `decode.decode`.

  Raises:
    BadPicture: its bytes cannot be used.
    UserError: every attempt to read it failed, or memory ran out every time.
  """

  def attempt():
    data = collection.read(index)
    return data, crop.crop(decode.decode(data, orientation), size, rule)

  return patiently(attempt, f'{collection.name}: {collection.listing.names[index]}')


def patiently(
  attempt: Callable[[], _Result], name: str, raised: frozenset[int] = frozenset()
) -> _Result:
  """Returns `attempt()`, trying again after an OSError or a MemoryError.

  Args:
    attempt: reads something.
    name: name of what is read, for messages.
    raised: error numbers that are raised at once instead.

  Raises:
    UserError: every attempt failed.
  """
  for wait in (*_WAITS, None):
    try:
      return attempt()
    except (OSError, MemoryError) as error:
      reason = 'there is not enough memory'
      if isinstance(error, OSError):
        if error.errno in raised:
          raise
        reason = error.strerror or str(error)
      if wait is None:
        raise types.UserError(
          f'{name} cannot be read: {reason}, {1 + len(_WAITS)} times. The file may be sound, so it '
          'is not left out; repair the disk or remove the file, and run the same command again'
        ) from error
    logging.warning('%s cannot be read: %s; trying again in %g s', name, reason, wait)
    time.sleep(wait)
  raise AssertionError  # The last attempt returns or raises.
