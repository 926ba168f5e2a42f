"""Where a record lies in a file of a store, and the records in some of its bytes, checked.

ArrayRecord's files are Riegeli's (google/riegeli, doc/riegeli_records_file_format.md). A header of
24 bytes stands at the start of every block of 64 KiB; between the headers lies one stream

  signature (40 bytes), chunk 0, chunk 1, ...                                                (1)

Ours are written record by record without compression, and all records of a file have S bytes, so

  chunk = hash of the next 32 bytes, size, hash of the data, kind and count, S: 8 bytes each,
          0, length of varint(S), varint(S), record                                          (2)

and all chunks have one length. The two hashes tell whether this holds of the bytes that were read.
"""

import functools

import numpy as np

from diversedit_jax.data.store import highway

_BLOCK, _BLOCK_HEADER = 65536, 24
_STREAM = _BLOCK - _BLOCK_HEADER  # Bytes of the stream in a block.
_SIGNATURE = _CHUNK_HEADER = 40
_KIND = ord('r') + (1 << 8)  # One record.
_KEY = (0x2F696C6567656952, 0x0A7364726F636572) * 2  # 'Riegeli/records\n', twice.
_AT_ONCE = 256  # Chunks whose hashes are computed together.


def span(size: int, first: int, count: int) -> tuple[int, int]:
  """Positions in the file, begin and end, of `count` chunks from that of record `first` on.

  size: bytes of a record.
  """
  begin = _SIGNATURE + first * _length(size)
  return _in_file(begin), _in_file(begin + count * _length(size) - 1) + 1


def chunks(data: bytes, size: int, first: int, count: int) -> np.ndarray:
  """The chunks in the bytes of `span`, uint8 [count, length], not checked.

  Raises:
    ValueError: there are more or fewer bytes.
  """
  begin, end = span(size, first, count)
  if len(data) != end - begin:
    raise ValueError(f'found {len(data)} bytes, expected {end - begin}')
  bytes_ = np.frombuffer(data, np.uint8)
  parts, position = [], begin
  while position < end:
    block_end = (position // _BLOCK + 1) * _BLOCK
    stream_begin = max(position, block_end - _STREAM)
    parts.append(bytes_[stream_begin - begin : block_end - begin])
    position = block_end
  return np.concatenate(parts).reshape(count, _length(size))


def sound(chunks_NL: np.ndarray, size: int) -> np.ndarray:
  """Whether each chunk is as (2) says and its hashes are those of its bytes, bool [N]."""
  found = [
    _sound(chunks_NL[start : start + _AT_ONCE], size)
    for start in range(0, len(chunks_NL), _AT_ONCE)
  ]
  return np.concatenate(found) if found else np.zeros(0, bool)


def records(chunks_NL: np.ndarray, size: int) -> np.ndarray:
  """The records in chunks, uint8 [N, size]."""
  return chunks_NL[:, chunks_NL.shape[1] - size :]


def _sound(chunks_NL, size):
  head = np.ascontiguousarray(chunks_NL[:, :_CHUNK_HEADER])
  data = chunks_NL[:, _CHUNK_HEADER:]
  header_hash, data_size, data_hash, kind, decoded = head.view('<u8').T
  before = _before(size)
  return (
    (header_hash == highway.hash64(head[:, 8:], _KEY))
    & (data_hash == highway.hash64(data, _KEY))
    & (data_size == data.shape[1])
    & (kind == _KIND)
    & (decoded == size)
    & (data[:, : len(before)] == before).all(axis=1)
  )


@functools.cache
def _before(size):
  """What stands before the record in the data of its chunk."""
  varint, rest = [], size
  while rest >= 128:
    varint.append(rest % 128 + 128)
    rest //= 128
  varint.append(rest)
  return np.array([0, len(varint), *varint], np.uint8)


def _length(size):
  return _CHUNK_HEADER + len(_before(size)) + size


def _in_file(position):
  """Position in the file of one in the stream."""
  return position + _BLOCK_HEADER * (position // _STREAM + 1)
