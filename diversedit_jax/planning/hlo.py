"""The text of a compiled program (HLO): computations, instructions, and how often they run.

XLA's `cost_analysis` counts the body of a loop once, and says nothing about a program that was
compiled for a device that is not here. The text has it all.

  program = hlo.parse(compiled.as_text())
  for name, times in program.runs().items():
    for instruction in program.computations[name]: ...
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import re

_BYTES = {'pred': 1, 'bf16': 2, 'c64': 8, 'c128': 16}
_ARRAY = re.compile(r'([a-z][a-z0-9]*)\[([0-9,]*)\]')
_NAMES = re.compile(r'%([\w.\-]+)')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\{$')
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COUNT = re.compile(r'[su]\d+\[\]')
_BODIES = ('body', 'branch_computations', 'true_computation', 'false_computation')
_INSIDE = ('calls', 'to_apply', 'called_computations')


@dataclasses.dataclass(frozen=True)
class Instruction:
  """An instruction, in parts of its text.

  name, shape, opcode: as they stand in the text.
  arguments: the text between the parentheses.
  attributes: the text after them.
  root: whether it is the result of its computation.
  """

  name: str
  shape: str
  opcode: str
  arguments: str
  attributes: str
  root: bool = False

  @property
  def operands(self) -> tuple[str, ...]:
    """Names of the instructions whose results it takes."""
    return tuple(_NAMES.findall(self.arguments))

  def called(self, role: str) -> list[str]:
    """Names the computations of an attribute such as 'body', 'calls' or 'to_apply'."""
    found = re.search(rf'\b{role}=(?:\{{([^}}]*)\}}|(%?[\w.\-]+))', self.attributes)
    names = (found[1] or found[2] or '').split(',') if found else ()
    return [name.strip().lstrip('%') for name in names if name]


@dataclasses.dataclass(frozen=True)
class Program:
  """A program.

  computations: instructions of each computation by its name, in the order of the text.
  entry: name of the computation that is run; '' if there is none.
  """

  computations: Mapping[str, Sequence[Instruction]]
  entry: str

  def runs(self, *, inside: bool = False) -> dict[str, int]:
    """Counts how often each computation runs, as if every branch of a choice were taken.

    inside: whether to count what runs inside fusions, reductions and the like too; these are not
      launched by themselves.
    """
    times = dict.fromkeys(self.computations, 0)

    def visit(name, count):
      if name not in times:
        return
      times[name] += count
      for instruction in self.computations[name]:
        turns = self.turns(instruction) if instruction.opcode == 'while' else 1
        roles = _INSIDE if inside else ('to_apply',) if instruction.opcode == 'call' else ()
        for role in (*_BODIES, *roles):
          for called in instruction.called(role):
            visit(called, count * turns)

    visit(self.entry, 1)
    return {name: count for name, count in times.items() if count}

  def turns(self, loop: Instruction) -> int:
    """Turns of a loop: those the compiler notes, else the one number in its condition, else 1."""
    if noted := _TURNS.search(loop.attributes):
      return int(noted[1])
    bounds = [
      instruction.arguments
      for name in loop.called('condition')
      for instruction in self.computations.get(name, ())
      if instruction.opcode == 'constant' and _COUNT.match(instruction.shape)
    ]
    return int(bounds[0]) if len(bounds) == 1 and bounds[0].isdigit() else 1


def arrays(shape: str) -> Iterator[tuple[str, int]]:
  """Yields dtype and bytes of an array, or of each array in a tuple; a token has no size."""
  for dtype, dims in _ARRAY.findall(shape):
    if item := _item_bytes(dtype):
      yield dtype, item * math.prod(int(n) for n in dims.split(',') if n)


def size(shape: str) -> int:
  """Sums the bytes of an array, or of all arrays in a tuple."""
  return sum(count for _, count in arrays(shape))


def _item_bytes(dtype):
  """Bytes by the bits in the name, as in 's16' and 'f8e4m3fn'; 0 for a token."""
  bits = re.search(r'\d+', dtype)
  return _BYTES.get(dtype) or (max(int(bits[0]) // 8, 1) if bits else 0)


def parse(text: str) -> Program:
  """Parses the text of a program; any other text gives a program without computations."""
  computations, entry, current = {}, '', None
  for line in text.splitlines():
    if found := _COMPUTATION.match(line):
      current = computations.setdefault(found[2], [])
      entry = found[2] if found[1] else entry
    elif line.startswith('}'):
      current = None
    elif current is not None and ' = ' in line:
      current.append(_instruction(line.strip()))
  return Program(computations, entry)


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
  """Position just behind the parenthesis that closes the first one of the text."""
  depth = 0
  for at, char in enumerate(text):
    depth += (char == '(') - (char == ')')
    if not depth:
      return at + 1
  raise ValueError(f'unbalanced parentheses in {text[:80]!r}')
