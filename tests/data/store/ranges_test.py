"""Records found in ranges of bytes are those that ArrayRecord wrote, and its hashes are ours."""

from array_record.python import array_record_module
import numpy as np
import pytest

from diversedit_jax.data.store import ranges, writer


def write(path, size, count):
  records = np.random.default_rng(size).integers(0, 256, (count, size), np.uint8)
  file = array_record_module.ArrayRecordWriter(str(path), writer.RECORD_OPTIONS)
  for record in records:
    file.write(record.tobytes())
  file.close()
  return records


def read(path, size, first, count):
  begin, end = ranges.span(size, first, count)
  return ranges.chunks(path.read_bytes()[begin:end], size, first, count)


# The rests of 32 that the hash tells apart; records shorter and longer than a block of 64 KiB, and
# chunks that begin and end at one (the stream of a block has 65,512 bytes = 40 + 5 + 65,467).
@pytest.mark.parametrize('size', [1, 2, 13, 15, 16, 28, 29, 100, 127, 128, 16384, 65467, 196608])
def test_any_record_is_found_and_its_hashes_agree(tmp_path, size):
  path = tmp_path / 'x.array_record'
  written = write(path, size, 9)
  for first, count in ((0, 9), (0, 1), (8, 1), (3, 4)):
    chunks = read(path, size, first, count)
    assert ranges.sound(chunks, size).all()
    np.testing.assert_array_equal(ranges.records(chunks, size), written[first : first + count])


def test_each_changed_byte_is_found_in_its_record_alone(tmp_path):
  path = tmp_path / 'x.array_record'
  write(path, 48, 4)
  chunks = read(path, 48, 0, 4)
  for place in range(chunks.shape[1]):
    changed = chunks.copy()
    changed[2, place] ^= 1 << (place % 8)
    assert ranges.sound(changed, 48).tolist() == [True, True, False, True]


def test_sound_bytes_of_another_kind_are_no_record(tmp_path):
  """Records of another size, several in a chunk, or compressed, whose hashes are right."""
  path = tmp_path / 'x.array_record'
  for options in ('group_size:4,uncompressed', 'group_size:1,zstd'):
    file = array_record_module.ArrayRecordWriter(str(path), options)
    for _ in range(4):
      file.write(bytes(48))
    file.close()
    assert not ranges.sound(read(path, 48, 0, 1), 48).any()
  write(path, 48, 4)
  assert not ranges.sound(read(path, 47, 0, 4), 47).any()


def test_fewer_bytes_are_refused():
  with pytest.raises(ValueError, match='found 10 bytes, expected 93'):
    ranges.chunks(bytes(10), 50, 1, 1)
