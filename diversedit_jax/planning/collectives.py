"""What a compiled program sends between devices, read from its text (HLO)."""

import re
from typing import Any

from diversedit_jax.planning import hlo

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')

_CHANNEL = re.compile(r'channel_id=(\d+)')


def collectives(text: str) -> dict[str, dict[str, Any]]:
  """Number and bytes, in all and of each dtype, of the results of each kind of collective.

  What stands in a loop counts as often as it turns, as its condition says. The compiler for TPUs
  spreads a collective over several fusions, all of one channel: a channel counts once. An
  asynchronous collective counts where it ends: only there is its type the result's alone.

  Returns:
    By kind, those that occur: {'count', 'bytes', 'bytes by dtype'}; bytes are of one device.
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
