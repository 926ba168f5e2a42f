"""The text of a compiled program (HLO): computations, instructions, and how often they run.

XLA's `cost_analysis` counts the body of a loop once, and has nothing to say of programs that were
compiled for a device that is not there; their text says it all.

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
    found = re.search(rf'\b{role}=(?:\{{([^}}]*)\}}|(%?[\w.\-]+))', self.attributes)
    names = (found[1] or found[2] or '').split(',') if found else ()
    return [name.strip().lstrip('%') for name in names if name]


@dataclasses.dataclass(frozen=True)
class Program:
  """computations: by name, as in the text. entry: the one that is run, '' if there is none."""

  computations: Mapping[str, Sequence[Instruction]]
  entry: str

  def runs(self, *, inside: bool = False) -> dict[str, int]:
    """How often each computation runs, those that do; each branch of a choice as if taken.

    inside: also those that fusions, reductions and the like compute, no launches of their own.
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
    """Of a loop: as the compiler notes them, or the one number of its condition; else 1."""
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
  """dtype and bytes of an array, or of each array of a tuple; what has no size is left out."""
  for dtype, dims in _ARRAY.findall(shape):
    if item := _item_bytes(dtype):
      yield dtype, item * math.prod(int(n) for n in dims.split(',') if n)


def size(shape: str) -> int:
  """Bytes of an array, or of all arrays of a tuple."""
  return sum(count for _, count in arrays(shape))


def _item_bytes(dtype):
  """By the bits in its name, as of 's16' and 'f8e4m3fn'; 0 of a token, which is no array."""
  bits = re.search(r'\d+', dtype)
  return _BYTES.get(dtype) or (max(int(bits[0]) // 8, 1) if bits else 0)


def parse(text: str) -> Program:
  """The program of a text; of a text that is none, one without computations."""
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
  """Where the parenthesis that opens the text is closed, past it."""
  depth = 0
  for at, char in enumerate(text):
    depth += (char == '(') - (char == ')')
    if not depth:
      return at + 1
  raise ValueError(f'unbalanced parentheses in {text[:80]!r}')
