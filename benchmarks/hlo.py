"""What a compiled program does to memory, by its own text: kernels, and the bytes that each moves.

XLA's `cost_analysis` counts the body of a loop once, and has nothing to say of programs that were
compiled for a device that is not there. So this reads the optimised program:

  kernels = hlo.kernels(compiled.as_text())
  sum(k.bytes * k.times for k in kernels if k.kind == 'fusion')

A kernel reads its operands once and writes its results once. Of an operand that a fusion only
slices, and of a result that it updates in place, the slice counts. Caches are not modelled.
Nothing of the project is imported here.
"""

from collections.abc import Iterator
import dataclasses
import math
import re

_BYTES = {'pred': 1, 'bf16': 2, 'c64': 8, 'c128': 16, 'token': 0}
_ARRAY = re.compile(r'([a-z][a-z0-9]*)\[([0-9,]*)\]')
_NAMES = re.compile(r'%([\w.\-]+)')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_TARGET = re.compile(r'custom_call_target="([^"]+)"')
_OP_NAME = re.compile(r'op_name="([^"]*)"')
# These give other names to what lies in memory, or are made at no cost within what reads them.
_FREE = (
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'after-all', 'partition-id',
  'replica-id', 'iota', 'copy-done', 'opt-barrier',
)  # fmt: skip
_CALLED = {'while': ('body',), 'conditional': ('branch_computations',), 'call': ('to_apply',)}


@dataclasses.dataclass(frozen=True)
class Instruction:
  """name, shape and opcode as they stand in the text.

  arguments: between its parentheses. attributes: after them. root: whether it is the result.
  """

  name: str
  shape: str
  opcode: str
  arguments: str
  attributes: str
  root: bool = False

  @property
  def operands(self) -> tuple[str, ...]:
    """Names of other instructions that it takes."""
    return tuple(_NAMES.findall(self.arguments))

  def called(self, role: str) -> list[str]:
    """The computations that an attribute names: 'body', 'calls', 'to_apply'..."""
    found = re.search(rf'{role}=(\{{[^}}]*\}}|%[\w.\-]+)', self.attributes)
    return _NAMES.findall(found.group(1)) if found else []


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


def size(shape: str) -> int:
  """Bytes of an array, or of all arrays of a tuple."""
  return sum(
    math.prod(map(int, filter(None, dims.split(',')))) * _bytes(dtype)
    for dtype, dims in _ARRAY.findall(shape)
  )


def _bytes(dtype):
  if dtype in _BYTES:
    return _BYTES[dtype]
  return max(int(re.search(r'\d+', dtype).group()) // 8, 1)


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """Computations by name, and the name of the one that is run."""
  computations, entry, current = {}, '', None
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      current = computations.setdefault(found.group(2), [])
      entry = found.group(2) if found.group(1) else entry
    elif line == '}':
      current = None
    elif current is not None and ' = ' in line:
      current.append(_instruction(line.strip()))
  if not entry:
    raise ValueError('no ENTRY computation: this is not the text of a compiled program')
  return computations, entry


def _instruction(line):
  name, _, rest = line.partition(' = ')
  end = _closing(rest) if rest.startswith('(') else rest.index(' ')
  shape, rest = rest[:end], rest[end:].lstrip()
  opcode, _, _ = rest.partition('(')
  end = _closing(rest[len(opcode) :])
  inside = rest[len(opcode) : len(opcode) + end]
  root = name.startswith('ROOT ')
  name = name.removeprefix('ROOT ').lstrip('%')
  attributes = rest[len(opcode) + end :]
  return Instruction(name, shape, opcode, inside[1:-1], attributes, root)


def _closing(text):
  """Where the parenthesis that opens the text is closed, past it."""
  depth = 0
  for at, char in enumerate(text):
    depth += (char == '(') - (char == ')')
    if not depth:
      return at + 1
  raise ValueError(f'unbalanced parentheses in {text[:80]!r}')


def kernels(text: str) -> list[Kernel]:
  """All launches of a compiled program, those of loops with their number of turns."""
  computations, entry = parse(text)
  return list(_kernels(computations, entry, 1))


def _kernels(computations, name, times) -> Iterator[Kernel]:
  here = {instruction.name: instruction for instruction in computations[name]}
  for instruction in here.values():
    if roles := _CALLED.get(instruction.opcode):
      turns = _turns(computations, instruction) if instruction.opcode == 'while' else 1
      for role in roles:
        for inner in instruction.called(role):
          yield from _kernels(computations, inner, times * turns)
    elif instruction.opcode not in _FREE and not instruction.opcode.endswith('-done'):
      read, written = _moved(computations, here, instruction)
      found = _OP_NAME.search(instruction.attributes)
      yield Kernel(
        instruction.name, _kind(instruction), read, written, times, found.group(1) if found else ''
      )


def _turns(computations, loop):
  """As the compiler notes them, or as the one number of the loop's condition says."""
  if noted := _TRIPS.search(loop.attributes):
    return int(noted.group(1))
  (condition,) = loop.called('condition')
  numbers = [i.arguments for i in computations[condition] if i.opcode == 'constant']
  return int(numbers[0]) if len(numbers) == 1 and numbers[0].isdigit() else 1


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
  sizes = [size(here[name].shape) for name in instruction.operands if name in here]
  written = size(instruction.shape)
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
    _read_of(inside, by_name, parameter, updated) for parameter in inside
    if parameter.opcode == 'parameter'
  )  # fmt: skip
  written -= sum(size(i.shape) - size(by_name[i.operands[1]].shape) for i in updated.values())
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
      total += size(user.shape)
    elif user.opcode == 'dynamic-update-slice' and updated.get(parameter.name) is user:
      continue
    else:
      return size(parameter.shape)
  return min(total, size(parameter.shape)) if parameter.name not in updated else total
