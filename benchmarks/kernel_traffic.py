"""What a compiled program does to memory, by its own text: kernels, and the bytes that each moves.

  kernels = kernel_traffic.kernels(compiled.as_text())
  sum(k.bytes * k.times for k in kernels if k.kind == 'fusion')

A kernel reads its operands once and writes its results once. Of an operand that a fusion only
slices, and of a result that it updates in place, the slice counts. Caches are not modelled.
"""

import dataclasses
import re

from diversedit_jax.planning import hlo

_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# These give other names to what lies in memory, are made at no cost within what reads them, or
# are no more than what they call.
_FREE = (
  'parameter',
  'constant',
  'tuple',
  'get-tuple-element',
  'bitcast',
  'after-all',
  'partition-id',
  'replica-id',
  'iota',
  'opt-barrier',
  'while',
  'conditional',
  'call',
)
_STARTED = ('-start', '-update')  # Suffixes of what counts where it is done.


@dataclasses.dataclass(frozen=True)
class Kernel:
  """One launch, and how often it happens.

  kind: 'product' (a matrix product or convolution), 'attention', 'collective', or the opcode, as
    'fusion', 'copy', 'transpose'. read, written: bytes of a launch. source: where it comes from.
  """

  name: str
  kind: str
  read: int
  written: int
  times: int
  source: str

  @property
  def bytes(self) -> int:
    return self.read + self.written


def kernels(text: str) -> list[Kernel]:
  """All launches of a compiled program, those of loops with their number of turns.

  Raises:
    ValueError: if the text is of no program.
  """
  program = hlo.parse(text)
  if not program.entry:
    raise ValueError('no ENTRY computation: this is not the text of a compiled program')
  found = []
  for name, times in program.runs().items():
    here = {instruction.name: instruction for instruction in program.computations[name]}
    for instruction in filter(None, (_launch(here, each) for each in here.values())):
      read, written = _moved(program.computations, here, instruction)
      source = _OP_NAME.search(instruction.attributes)
      found.append(
        Kernel(
          instruction.name, _kind(instruction), read, written, times, source[1] if source else ''
        )
      )
  return found


def _launch(here, instruction):
  """The instruction; of an asynchronous pair, at its end, the one that would be both; or None."""
  if instruction.opcode in _FREE or instruction.opcode.endswith(_STARTED):
    return None
  if not instruction.opcode.endswith('-done'):
    return instruction
  started = here[instruction.operands[0]]
  while started.opcode.endswith('-update'):
    started = here[started.operands[0]]
  if not started.opcode.endswith('-start'):  # As of a 'send', which counts itself.
    return None
  # The type of its start has the operands beside the result.
  return dataclasses.replace(
    started,
    name=instruction.name,
    shape=instruction.shape,
    opcode=instruction.opcode.removesuffix('-done'),
  )


def _kind(instruction):
  target = _TARGET.search(instruction.attributes)
  if target and 'fmha' in target.group(1):
    return 'attention'
  if instruction.opcode in ('dot', 'convolution') or target and 'blas' in target.group(1):
    return 'product'
  collective = ('all-', 'reduce-scatter', 'collective-')
  if instruction.opcode.startswith(collective):
    return 'collective'
  return instruction.opcode


def _moved(computations, here, instruction):
  """Bytes read and written by one launch."""
  sizes = [hlo.size(here[name].shape) for name in instruction.operands if name in here]
  written = hlo.size(instruction.shape)
  if instruction.opcode == 'dynamic-slice':
    return written, written
  if instruction.opcode == 'dynamic-update-slice':
    return sizes[1], sizes[1]
  if instruction.opcode != 'fusion':
    return sum(sizes), written
  inside = computations[instruction.called('calls')[0]]
  by_name = {i.name: i for i in inside}
  updated = _in_place(inside, by_name)
  read = sum(
    _read_of(inside, by_name, parameter, updated)
    for parameter in inside
    if parameter.opcode == 'parameter'
  )
  written -= sum(
    hlo.size(i.shape) - hlo.size(by_name[i.operands[1]].shape) for i in updated.values()
  )
  return read, written


def _in_place(inside, by_name):
  """The updates among the results of a fusion, by the parameter that each of them updates."""
  root = next(i for i in inside if i.root)
  results = [by_name[n] for n in root.operands] if root.opcode == 'tuple' else [root]
  found = {}
  for result in results:
    result = _behind(result, by_name)
    if result.opcode == 'dynamic-update-slice':
      found[_behind(by_name[result.operands[0]], by_name).name] = result
  return found


def _behind(instruction, by_name):
  while instruction.opcode in ('bitcast', 'copy'):
    instruction = by_name[instruction.operands[0]]
  return instruction


def _read_of(inside, by_name, parameter, updated):
  """Bytes of a parameter that a fusion reads: all, or the slices that it takes."""
  seen, total = {parameter.name}, 0
  for user in inside:  # In an order in which operands come first.
    if not any(name in seen for name in user.operands):
      continue
    if user.opcode == 'bitcast':
      seen.add(user.name)
    elif user.opcode in ('dynamic-slice', 'slice', 'gather') and user.operands[0] in seen:
      total += hlo.size(user.shape)
    elif user.opcode == 'dynamic-update-slice' and updated.get(parameter.name) is user:
      continue
    else:
      return hlo.size(parameter.shape)
  return min(total, hlo.size(parameter.shape)) if parameter.name not in updated else total
