"""HighwayHash of many messages of one length at once; Riegeli's files carry it as their checksum.

Alakuijala, Cox and Wassenberg, "Fast keyed hash/pseudo-random function using SIMD multiply and
permute" (2016), arXiv:1612.06257. The state is four vectors of four 64-bit words a message.
"""

import numpy as np

# The first digits of pi, as the paper has them.
_MUL0 = (0xDBE6D5D5FE4CCE2F, 0xA4093822299F31D0, 0x13198A2E03707344, 0x243F6A8885A308D3)
_MUL1 = (0x3BD39E10CB0EF593, 0xC0ACF169B5F18A8C, 0xBE5466CF34E90C6C, 0x452821E638D01377)
# Bytes of a pair of words, as they are permuted.
_ZIPPER = np.array([3, 12, 2, 5, 14, 1, 15, 0, 11, 4, 10, 13, 9, 6, 8, 7])
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def hash64(messages: np.ndarray, key: tuple[int, int, int, int]) -> np.ndarray:
  """Hashes, uint64 [N], of messages [N, length] of bytes."""
  count, length = messages.shape
  whole, rest = divmod(length, 32)
  words = np.ascontiguousarray(messages[:, : 32 * whole]).view('<u8').reshape(count, whole, 4)
  words = np.ascontiguousarray(words.swapaxes(0, 1))
  state = _start(count, np.array(key, np.uint64))
  with np.errstate(over='ignore'):
    for packet in words:
      _update(*state, packet)
    if rest:
      _update_rest(*state, messages[:, 32 * whole :])
    v0, v1, mul0, mul1 = state
    for _ in range(4):
      _update(*state, _rotated(v0[:, [2, 3, 0, 1]], 32))
    return v0[:, 0] + v1[:, 0] + mul0[:, 0] + mul1[:, 0]


def _start(count, key):
  mul0, mul1 = (np.tile(np.array(words, np.uint64), (count, 1)) for words in (_MUL0, _MUL1))
  return mul0 ^ key, mul1 ^ _rotated(key, 32), mul0, mul1


def _update(v0, v1, mul0, mul1, packet):
  """Mixes a packet [N, 4] into the state, in place."""
  v1 += mul0
  v1 += packet
  mul0 ^= (v1 & _LOW) * (v0 >> _HALF)
  v0 += mul1
  mul1 ^= (v0 & _LOW) * (v1 >> _HALF)
  v0 += _zipped(v1)
  v1 += _zipped(v0)


def _update_rest(v0, v1, mul0, mul1, rest):
  """Mixes the last bytes in, fewer than 32."""
  count, length = rest.shape
  v0 += np.uint64((length << 32) + length)
  halves = v1.view(np.uint32)
  halves[:] = (halves << np.uint32(length)) | (halves >> np.uint32(32 - length))
  packet, whole = np.zeros((count, 32), np.uint8), length & ~3
  packet[:, :whole] = rest[:, :whole]
  if length & 16:
    packet[:, 28:] = rest[:, length - 4 :]
  elif length & 3:
    places = (whole, whole + ((length & 3) >> 1), length - 1)
    packet[:, 16:19] = rest[:, places]
  _update(v0, v1, mul0, mul1, packet.view('<u8'))


def _zipped(words):
  pairs = words.view(np.uint8).reshape(-1, 16)
  return np.take(pairs, _ZIPPER, axis=1).view(np.uint64).reshape(words.shape)


def _rotated(words, bits):
  return (words << np.uint64(bits)) | (words >> np.uint64(64 - bits))
