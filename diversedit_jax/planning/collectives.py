"""What a compiled program sends between devices, read from its text (HLO)."""

import re
from typing import Any

from diversedit_jax.planning import hlo

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')

_CHANNEL = re.compile(r'channel_id=(\d+)')


def collectives(text: str) -> dict[str, dict[str, Any]]:
  """Counts the collectives of each kind, and the bytes of their results.

  A collective in a loop counts once for each turn. The compiler for TPUs spreads one collective
  over several fusions with the same channel, so a channel counts once. An asynchronous collective
  counts where it ends, because only there is its type that of the result alone.

  Returns:
    {'count', 'bytes', 'bytes by dtype'} by kind, for the kinds that occur; bytes on one device.
  """
  program, channels = hlo.parse(text), set()
  found = {kind: {'count': 0, 'bytes': 0, 'bytes by dtype': {}} for kind in KINDS}
  for name, times in program.runs(inside=True).items():
    for instruction in program.computations[name]:
      kind = instruction.opcode.removesuffix('-done')
      channel = _CHANNEL.search(instruction.attributes)
      if kind not in found or (channel and channel[1] in channels):
        continue
      channels |= {channel[1]} if channel else set()
      sums = found[kind]
      sums['count'] += times
      for dtype, size in hlo.arrays(instruction.shape):
        sums['bytes'] += times * size
        sums['bytes by dtype'][dtype] = sums['bytes by dtype'].get(dtype, 0) + times * size
  return {kind: sums for kind, sums in found.items() if sums['count']}
