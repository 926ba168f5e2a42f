"""From a listed picture to its pixels, past disks and networks that fail for a moment.

What is wrong with the bytes of a picture makes it a bad one, which may be left out for ever. What
is wrong with the machine says nothing about the picture: it is tried again, then the work ends.
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
"""Errors that tell of a file, while others tell of the disk, the network or the process."""

_WAITS = (0.1, 0.5, 2.0)  # Seconds before another attempt.

_Result = TypeVar('_Result')


def load(
  collection: base.Pictures, index: int, *, size: int, rule: str, orientation: str
) -> tuple[bytes, np.ndarray]:
  """The encoded picture at a position of the listing, and its crop, uint8 [size, size, 3].

  Args:
    rule: see `crop.crop`. orientation: see `decode.decode`.

  Raises:
    BadPicture: its bytes cannot be used.
    UserError: they could not be read, or there was no memory for them, again and again.
  """

  def attempt():
    data = collection.read(index)
    return data, crop.crop(decode.decode(data, orientation), size, rule)

  return patiently(attempt, f'{collection.name}: {collection.listing.names[index]}')


def patiently(
  attempt: Callable[[], _Result], name: str, raised: frozenset[int] = frozenset()
) -> _Result:
  """What `attempt` returns, which is called again after an OSError or a MemoryError.

  Args:
    name: of what is read, for messages. raised: error numbers that are passed on at once.

  Raises:
    UserError: it failed every time.
  """
  for wait in (*_WAITS, None):
    try:
      return attempt()
    except (OSError, MemoryError) as error:
      if isinstance(error, OSError) and error.errno in raised:
        raise
      reason = _reason(error)
      if wait is None:
        raise types.UserError(
          f'{name} cannot be read: {reason}, {1 + len(_WAITS)} times. It is not left out, since '
          'that says nothing about its content; mend it and start again, or remove the file'
        ) from error
    logging.warning('%s cannot be read: %s; trying again in %g s', name, reason, wait)
    time.sleep(wait)
  raise AssertionError  # The last attempt returns or raises.


def _reason(error):
  if isinstance(error, MemoryError):
    return 'there is not enough memory'
  return error.strerror or str(error)
