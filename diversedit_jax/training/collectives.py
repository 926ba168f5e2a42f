"""What a compiled program sends between devices, read from its text (HLO)."""

from collections.abc import Iterator
import math
import re
from typing import Any

KINDS = ('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all', 'collective-permute')
ITEM_BYTES = {
  'f64': 8, 's64': 8, 'f32': 4, 's32': 4, 'u32': 4, 'bf16': 2, 'f16': 2, 's8': 1, 'u8': 1,
  'pred': 1,
}  # fmt: skip

# An asynchronous collective counts where it ends: only there is its type the result's alone.
_COLLECTIVE = re.compile(rf'= (.*?) ({"|".join(KINDS)})(?:-done)?\(')
_CHANNEL = re.compile(r'channel_id=(\d+)')
_NAME = re.compile(r'(?:ENTRY )?%?([\w.-]+) \(')
_LOOP = re.compile(r'condition=%?([\w.-]+), body=%?([\w.-]+)')
_CALLED = re.compile(r'(?:calls|to_apply|true_computation|false_computation)=%?([\w.-]+)')
_BRANCHES = re.compile(r'(?:branch_computations|called_computations)=\{([^}]*)\}')
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_BOUND = re.compile(r'= s32\[\]\S* constant\((\d+)\)')


def collectives(text: str) -> dict[str, dict[str, Any]]:
  """Number and bytes, in all and of each dtype, of the results of each kind of collective.

  What stands in a loop counts as often as it turns, as its condition says. The compiler for TPUs
  spreads a collective over several fusions, all of one channel: a channel counts once.

  Returns:
    By kind, those that occur: {'count', 'bytes', 'bytes by dtype'}; bytes are of one device.
  """
  computations, channels = dict(_computations(text)), set()
  found = {kind: {'count': 0, 'bytes': 0, 'bytes by dtype': {}} for kind in KINDS}
  for name, times in _times(computations).items():
    for line in computations[name]:
      match, channel = _COLLECTIVE.search(line), _CHANNEL.search(line)
      if match is None or (channel and channel[1] in channels):
        continue
      channels |= {channel[1]} if channel else set()
      sums = found[match[2]]
      sums['count'] += times
      for dtype, dims in re.findall(r'(\w+)\[([\d,]*)\]', match[1]):
        if dtype in ITEM_BYTES:
          size = times * ITEM_BYTES[dtype] * math.prod(int(n) for n in dims.split(',') if n)
          sums['bytes'] += size
          sums['bytes by dtype'][dtype] = sums['bytes by dtype'].get(dtype, 0) + size
  return {kind: sums for kind, sums in found.items() if sums['count']}


def _computations(text) -> Iterator[tuple[str, list[str]]]:
  """Names and lines; the entry's name is ''."""
  for block in re.split(r'\n(?=\S)', text):
    head, *lines = block.splitlines() or ['']
    name = _NAME.match(head)
    if name:
      yield '' if head.startswith('ENTRY') else name[1], lines


def _times(computations):
  """How often each computation runs; each branch of a choice as if it were taken."""
  times = dict.fromkeys(computations, 0)

  def visit(name, count):
    if name not in times:
      return
    times[name] += count
    for line in computations[name]:
      if loop := _LOOP.search(line):
        visit(loop[2], count * _turns(line, computations.get(loop[1], ())))
      for called in _CALLED.findall(line):
        visit(called, count)
      for branches in _BRANCHES.findall(line):
        for called in branches.split(','):
          visit(called.strip().lstrip('%'), count)

  visit('', 1)
  return {name: count for name, count in times.items() if count}


def _turns(line, condition):
  """Of a loop: what the compiler notes of it, or the one bound of its condition; else 1."""
  if known := _TURNS.search(line):
    return int(known[1])
  bounds = _BOUND.findall('\n'.join(condition))
  return int(bounds[0]) if len(bounds) == 1 else 1
