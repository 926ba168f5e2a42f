"""How benchmarks take times: in turns, so that what slows the machine slows every side alike.

  sides = {'ours': timing.clocked(run_ours), 'theirs': child_turn}
  turns = timing.alternate(sides, rounds=5, slices=4)  # ours, theirs, theirs, ours, ...
  timing.summary(turns['ours'])                        # {'wall': spread, 'cpu': spread}
  timing.ratio(turns['ours'], turns['theirs'])         # the same, of ours over theirs in each round

A turn has wall seconds and CPU seconds of the process that did the work (all of its threads). On a
CPU that other processes use too, only CPU seconds and ratios within one round mean something; on an
accelerator the CPU seconds are the host's, and the wall clock counts.

Nothing of the project is imported here.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
import os
import statistics
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Spread = dict[str, float]

_FILLED = 0.05  # Seconds, beside which a wait for a device is nothing.


class Turn(NamedTuple):
  """wall, cpu: seconds that one turn of one side took."""

  wall: float
  cpu: float


Side = Callable[[], Turn]
"""Does the work of one turn and waits for it."""


def spread(values: Iterable[float]) -> Spread:
  """Median, least and most, and of how many values: `rounds`."""
  values = list(values)
  return {
    'median': statistics.median(values),
    'min': min(values),
    'max': max(values),
    'rounds': len(values),
  }


def clocked(run: Callable[[], Any], repeat: int = 1) -> Side:
  """A side of this process.

  An accelerator is given all runs at once and waited for at the end, as it is in training: it does
  them in order, and a wait after each one would count the way back to the host.

  Args:
    run: once through the work; returns arrays that are waited for.
    repeat: runs in one turn, whose seconds are of one.
  """

  def turn():
    started = time.perf_counter(), time.process_time()
    for _ in range(repeat):
      made = run()
      if main_clock() == 'cpu':  # There they would run side by side.
        jax.block_until_ready(made)
    jax.block_until_ready(made)
    wall, cpu = time.perf_counter() - started[0], time.process_time() - started[1]
    return Turn(wall / repeat, cpu / repeat)

  return turn


def filled(run: Callable[[], Any], seconds: float = _FILLED) -> Side:
  """`clocked` with as many runs in a turn as fill the given time; runs it to find out."""
  clocked(run)()  # Compiles.
  repeat = 1
  while repeat * clocked(run, repeat)().wall < seconds:
    repeat *= 2
  return clocked(run, repeat)


def alternate(
  sides: Mapping[str, Side], rounds: int, *, slices: int = 1, warm_up: int = 1
) -> dict[str, list[Turn]]:
  """Rounds in which the sides take turns; warm-up rounds, each side once, are not kept.

  A round is so many slices, and a slice is each side once: in the order given, in the next one the
  other way round. A side's seconds in a round are the mean of its slices. So a machine that slows
  down or speeds up during a round does so for all sides alike, where it would lie in the ratio if
  one side did all its work before the other began. Nothing is left out: every slice counts, more
  slices are more work, and what is told is still the median and the extremes of the rounds.
  """
  for _ in range(warm_up):
    for side in sides.values():
      side()
  turns = {name: [] for name in sides}
  for _ in range(rounds):
    taken = {name: [] for name in sides}
    for i in range(slices):
      for name in list(sides)[:: -1 if i % 2 else 1]:
        taken[name].append(sides[name]())
    for name, found in taken.items():
      turns[name].append(mean(found))
  return turns


def mean(turns: Sequence[Turn]) -> Turn:
  """One turn with the mean seconds of several."""
  return Turn(*(statistics.fmean(seconds) for seconds in zip(*turns, strict=True)))


def summary(turns: Sequence[Turn], scale: float = 1.0) -> dict[str, Spread]:
  """Spreads of wall and CPU seconds, times a scale (1000 makes milliseconds)."""
  wall, cpu = zip(*turns, strict=True)
  return {'wall': spread(scale * t for t in wall), 'cpu': spread(scale * t for t in cpu)}


def ratio(over: Sequence[Turn], under: Sequence[Turn]) -> dict[str, Spread]:
  """Time of one side over that of another in the same round, by both clocks.

  'of_medians' stands beside the spread of the rounds' ratios: it forgives a round in which only one
  side was disturbed, and says so where it differs from the median.
  """
  return {
    clock: {
      **spread(a / b for a, b in zip(times_a, times_b, strict=True)),
      'of_medians': statistics.median(times_a) / statistics.median(times_b),
    }
    for clock, times_a, times_b in zip(
      Turn._fields, zip(*over, strict=True), zip(*under, strict=True), strict=True
    )
  }


def main_clock() -> str:
  """'cpu' on a CPU, where other load does not count then; 'wall' elsewhere."""
  return 'cpu' if jax.default_backend() == 'cpu' else 'wall'


def use_threads(count: int) -> int:
  """Keeps this process, and those it starts, on so many cores; 0 leaves all.

  Call it before the first array is made, because JAX counts its threads then.

  Returns:
    The number of cores that are left, which is all of them where the system pins none.
  """
  if hasattr(os, 'sched_setaffinity'):
    cores = sorted(os.sched_getaffinity(0))
    if count:
      os.sched_setaffinity(0, cores[:count])
    return len(os.sched_getaffinity(0))
  return os.cpu_count()


def matmul_size() -> int:
  """Side of the largest square product that is worth its time on this device."""
  return 1024 if jax.default_backend() == 'cpu' else 8192


def matmul(size: int, dtype: str) -> tuple[Side, float]:
  """A square product of random numbers, and its FLOPs: what the device can do at most.

  Random, because a product of zeros needs less power and runs faster.
  """
  a, b = jax.random.normal(jax.random.key(0), (2, size, size)).astype(dtype)
  product = jax.jit(lambda a, b: a @ b)
  return filled(lambda: product(a, b)), 2.0 * size**3


def copy(megabytes: int) -> tuple[Side, float]:
  """A pass over memory that reads and writes so many megabytes each, and its bytes in all."""
  x = jnp.arange(megabytes * 2**18, dtype=jnp.float32)
  negate = jax.jit(lambda x: -x)
  return filled(lambda: negate(x)), 2.0 * x.nbytes


def ceilings(rounds: int = 5) -> dict[str, Spread]:
  """What this device does at most, measured now: TFLOP/s of a matrix product, GB/s of a copy."""
  on_cpu = jax.default_backend() == 'cpu'
  megabytes, dtypes = (128, ('float32',)) if on_cpu else (4096, ('bfloat16', 'float32'))
  work = {f'matmul_{dtype}_tflops': (*matmul(matmul_size(), dtype), 1e12) for dtype in dtypes}
  work['copy_gb_per_s'] = (*copy(megabytes), 1e9)
  turns = alternate({name: side for name, (side, _, _) in work.items()}, rounds)
  return {
    name: spread(amount / unit / turn.wall for turn in turns[name])
    for name, (_, amount, unit) in work.items()
  }
