"""Buckets as TensorStore opens them; objects that are only written if they are what was seen."""

import os
from typing import NamedTuple

import tensorstore


def opened(url: str, context: tensorstore.Context | None = None) -> tensorstore.KvStore:
  """The objects below 'SCHEME://BUCKET/FOLDER/'.

  AWS_ENDPOINT_URL names storage that is not Amazon's, as for Amazon's own libraries.
  """
  spec, endpoint = url, os.environ.get('AWS_ENDPOINT_URL_S3') or os.environ.get('AWS_ENDPOINT_URL')
  scheme, _, rest = url.partition('://')
  if scheme == 's3' and endpoint:
    bucket, _, path = rest.partition('/')
    region = os.environ.get('AWS_REGION') or os.environ.get('AWS_DEFAULT_REGION') or 'us-east-1'
    spec = {'driver': 's3', 'bucket': bucket, 'path': path}
    spec |= {'endpoint': endpoint, 'aws_region': region}
  return tensorstore.KvStore.open(spec, context=context).result()


class Seen(NamedTuple):
  """What was there: its bytes, None for nothing, and which generation of the object it was."""

  value: bytes | None
  generation: bytes


class Object:
  """An object in a bucket, or a file: of two that write what they saw, one does.

  Errors are those of TensorStore: ValueError if there is no such bucket, or no right to it.
  """

  def __init__(self, url: str):
    folder, _, self._key = url.rpartition('/')
    self._store = opened(f'{folder}/')

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
