"""What a compiler says about a program for devices that are not here: memory, and whether it fits.

Nothing runs. A program that does not fit is an answer too, with its numbers.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import time
from typing import Any

import jax

from diversedit_jax import types
from diversedit_jax.planning import collectives, devices

_REFUSALS = ('INVALID_ARGUMENT', 'UNIMPLEMENTED', 'RESOURCE_EXHAUSTED')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
  """What the compiler says; bytes are those on each device.

  target: name of the target.
  kind: name that its devices give themselves.
  devices: number of devices.
  memory, share: see `devices.Target`.
  seconds: time that compiling took.
  peak: bytes that the program needs at once.
  arguments, temporaries: bytes of these parts; None where the compiler gave up, which tells the
    peak alone.
  results: bytes of the results that do not take the place of an argument; None likewise.
  beside: bytes that stay in memory beside the program.
  collectives: see `collectives.collectives`.
  """

  target: str
  kind: str
  devices: int
  memory: float
  share: float
  seconds: float
  peak: float
  arguments: int | None = None
  temporaries: int | None = None
  results: int | None = None
  beside: int = 0
  collectives: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

  @property
  def needed(self) -> float:
    """Bytes of the program and what stays beside it."""
    return self.peak + self.beside

  @property
  def usable(self) -> float:
    """Bytes that a program may use."""
    return self.share * self.memory

  @property
  def fits(self) -> bool:
    """Whether the device has room, and the compiler did not give up."""
    return self.arguments is not None and self.needed <= self.usable


def compile_for(target: devices.Target, lowered: jax.stages.Lowered, *, beside: int = 0) -> Report:
  """Compiles a program that was lowered for a mesh of the target's devices.

  Args:
    target: devices to compile for.
    lowered: the lowered program.
    beside: bytes that stay on every device beside the program.

  Raises:
    UserError: if the compiler refuses the program for anything but its size.
    JaxRuntimeError: if the compiler itself fails.
  """
  facts = dict(
    target=target.name,
    kind=target.kind,
    devices=len(target.devices),
    memory=target.memory,
    share=target.share,
    beside=beside,
  )
  started = time.perf_counter()
  try:
    with devices.uncached():
      program = lowered.compile(compiler_options=dict(target.options))
  except jax.errors.JaxRuntimeError as error:
    seconds = time.perf_counter() - started
    found = devices.out_of_memory(str(error))
    if found is None and not str(error).startswith(_REFUSALS):
      raise
    if found is None:
      raise types.UserError(
        f'{target.name} cannot run this program: {str(error).splitlines()[0]}'
      ) from error
    return Report(**facts, seconds=seconds, peak=found[0])
  seconds, memory = time.perf_counter() - started, program.memory_analysis()
  return Report(
    **facts,
    seconds=seconds,
    peak=peak_bytes(program),
    arguments=memory.argument_size_in_bytes,
    temporaries=memory.temp_size_in_bytes,
    results=memory.output_size_in_bytes - memory.alias_size_in_bytes,
    collectives=collectives.collectives(program.as_text()),
  )


def peak_bytes(program: jax.stages.Compiled) -> int:
  """Sums arguments, temporaries and the results that do not take the place of an argument."""
  memory = program.memory_analysis()
  return (
    memory.argument_size_in_bytes
    + memory.temp_size_in_bytes
    + memory.output_size_in_bytes
    - memory.alias_size_in_bytes
  )


def rows(report: Report) -> Sequence[tuple[str, str]]:
  """Returns the report in words, as rows of a name and a text."""
  usable = _gib(report.usable)
  if report.share < 1:
    usable += f', {report.share:.0%} of {_gib(report.memory)}'
  if report.arguments is None:
    parts = 'where the compiler gave up'
  else:
    parts = (
      f'{_gib(report.arguments)} arguments + {_gib(report.temporaries)} temporaries + '
      f'{_gib(report.results)} results'
    )
  beside = f'{_gib(report.beside)} resident data + ' if report.beside else ''
  sent = ', '.join(
    f'{sums["count"]} {kind} of {_gib(sums["bytes"])}' for kind, sums in report.collectives.items()
  )
  return [
    (
      'compiled for',
      f'{report.target}: {report.devices} x {report.kind}, in {report.seconds:.0f} s; nothing ran',
    ),
    ('compiled memory', f'{_gib(report.needed)} on a device at once: {beside}{parts}'),
    ('fits', f'{"yes" if report.fits else "NO"}: {_gib(report.needed)} of {usable}'),
    ('collectives', f'{sent} a step' if sent else 'none'),
  ]


def _gib(count):
  return f'{count / devices.GIB:.2f} GiB'
