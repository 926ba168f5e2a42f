"""Where the seconds of a run go: measured, kept for each start, added up over all of them.

  setup    the state is made or restored
  compile  until the first step is done
  data     devices wait for a batch; what they compute meanwhile is no waiting
  save     training waits for a checkpoint
  hooks    reports, telemetry, previews, scores
  train    all else: steps, of which those are lost that a later start made again

goodput.jsonl has rows of the first process: one when a start goes on from a step, at each report
the seconds since it began, and at the end the reason. A start that has none was killed.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import math
import pathlib
import time
from typing import Any

from absl import logging
import numpy as np

from diversedit_jax import progress, types
from diversedit_jax.training import writers

FILE = 'goodput.jsonl'
KINDS = ('setup', 'compile', 'data', 'save', 'hooks', 'train')


class Clock:
  """Seconds since it was made, by what they were spent on; and those of steps between reports."""

  def __init__(self):
    self._start = self._mark = time.monotonic()
    self._paused = 0.0
    self._spent = dict.fromkeys(KINDS[:-1], 0.0)
    self._waits: list[float] = []  # For batches, while the devices had a step to do.

  def reached(self, kind: str) -> None:
    """Counts as this kind whatever was spent so far and on nothing else."""
    self._spent[kind] += self.spent()['train']

  @contextlib.contextmanager
  def paused(self, kind: str) -> Iterator[None]:
    """Reports, previews, telemetry and saving do not count as training."""
    before = time.monotonic()
    try:
      yield
    finally:
      seconds = time.monotonic() - before
      self._paused += seconds
      self._spent[kind] += seconds

  @contextlib.contextmanager
  def waiting(self, *, behind: bool) -> Iterator[None]:
    """Waits for a batch. behind: whether the devices have been given the step before it."""
    before = time.monotonic()
    yield
    seconds = time.monotonic() - before
    if behind:
      self._waits.append(seconds)
    else:
      self._spent['data'] += seconds

  @contextlib.contextmanager
  def one_step(self) -> Iterator[None]:
    """Times the wait for a step that the devices have just begun.

    Earlier waits for batches count as far as they were longer than such a step, which the devices
    had to compute meanwhile.
    """
    before = time.monotonic()
    yield
    seconds = time.monotonic() - before
    self._spent['data'] += sum(max(wait - seconds, 0.0) for wait in self._waits)
    self._waits.clear()

  def lap(self) -> float:
    """Training seconds since the last lap."""
    now = time.monotonic()
    seconds, self._mark, self._paused = now - self._mark - self._paused, now, 0.0
    return max(seconds, 1e-9)

  def total(self) -> float:
    """Seconds since the clock was made."""
    return time.monotonic() - self._start

  def spent(self) -> dict[str, float]:
    """Seconds by kind; their sum is the total."""
    return {**self._spent, 'train': self.total() - sum(self._spent.values())}


class Account:
  """The clock of a start, which begins when this is made, and its rows in goodput.jsonl.

  path: the file; None keeps no rows.
  """

  def __init__(self, path: pathlib.Path | None):
    self.clock, self._began = Clock(), time.time()
    self._path, self._lines, self._step = path, None, 0

  @contextlib.contextmanager
  def opened(self, step: int, steps: int) -> Iterator[None]:
    """Writes the first row, and a last one if something is raised. steps: in all; step: done."""
    self._step = step
    if self._path is not None:
      self._lines = writers.JsonLines(self._path, start_step=math.inf)
    try:
      self._write(step, began=self._began, steps=steps)
      yield
    except BaseException as error:
      self._write(self._step, seconds=self.clock.spent(), ended=type(error).__name__)
      raise
    finally:
      with self._dispensable():
        if self._lines is not None:
          self._lines.close()

  def at(self, step: int) -> None:
    """Remembers how many steps are done, for the row of an error."""
    self._step = step

  def note(self, step: int, ended: str = '') -> None:
    """Writes a row. ended: why this is the last, after which all starts are summed up in a line."""
    self._step = step
    self._write(step, seconds=self.clock.spent(), **({'ended': ended} if ended else {}))
    if ended and self._lines is not None:
      with self._dispensable():
        self._lines.sync()
        logging.info('%s', in_words(summary(writers.read_jsonl(self._path))))

  def _write(self, step, **facts):
    with self._dispensable():
      if self._lines is not None:
        self._lines.write({'step': step, 'time': time.time(), **facts})

  @contextlib.contextmanager
  def _dispensable(self):
    """Gives the account up where its file cannot be written or read: it is not worth a run."""
    try:
      yield
    except (OSError, types.UserError) as error:
      logging.warning('training goes on without %s: %s', self._path, error)
      self._lines = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
  """One start of a run.

  first, last: steps that were done before it, and at its last row. began, until: times of day.
  ended: 'finished', the signal, the error; '' if nobody told. seconds: by kind.
  steps_by_row, train_by_row: step, and seconds of training until then.
  """

  first: int
  last: int
  began: float
  until: float
  ended: str
  seconds: Mapping[str, float]
  steps_by_row: Sequence[int]
  train_by_row: Sequence[float]


def starts(rows: Sequence[Mapping[str, Any]]) -> list[Start]:
  """The starts that rows of goodput.jsonl tell of, oldest first."""
  found: list[list[Mapping[str, Any]]] = []
  for row in rows:
    if 'began' in row:
      found.append([])
    if found:
      found[-1].append(row)
  return [_start(first, [row for row in rest if 'seconds' in row]) for first, *rest in found]


def _start(first, rows):
  last = rows[-1] if rows else first
  return Start(
    first=first['step'],
    last=last['step'],
    began=first['began'],
    until=last['time'],
    ended=last.get('ended', ''),
    seconds=dict.fromkeys(KINDS, 0.0) | last.get('seconds', {}),
    steps_by_row=[first['step'], *(row['step'] for row in rows)],
    train_by_row=[0.0, *(row['seconds']['train'] for row in rows)],
  )


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """What all starts come to; {} without rows.

  Returns:
    'seconds' by kind, 'lost' (made again) taken from 'train'; 'total', their sum; 'goodput', the
    share of 'train' in it; 'lost_steps'; 'stopped', seconds between the last row of a start and the
    next start, in which the run may have gone on; 'unrecorded_steps' before the first start; and
    'starts'.
  """
  found = starts(rows)
  if not found:
    return {}
  seconds = {kind: sum(start.seconds[kind] for start in found) for kind in KINDS}
  lost_steps, lost = 0, 0.0
  for i, start in enumerate(found[:-1]):
    kept = max(start.first, min(later.first for later in found[i + 1 :]))
    if kept < start.last:
      lost_steps += start.last - kept
      lost += start.train_by_row[-1] - np.interp(kept, start.steps_by_row, start.train_by_row)
  seconds |= {'train': seconds['train'] - lost, 'lost': float(lost)}
  total = sum(seconds.values())
  pairs = zip(found, found[1:], strict=False)
  return {
    'goodput': seconds['train'] / total if total else 0.0,
    'total': total,
    'seconds': seconds,
    'lost_steps': lost_steps,
    'stopped': sum(max(later.began - one.until, 0.0) for one, later in pairs),
    'unrecorded_steps': found[0].first,
    'starts': [
      {
        'began': start.began,
        'from_step': start.first,
        'to_step': start.last,
        'ended': start.ended or None,
        'seconds': dict(start.seconds),
      }
      for start in found
    ],
  }


def in_words(found: Mapping[str, Any]) -> str:
  """A summary in a line; '' for {}."""
  if not found:
    return ''
  shares = [
    f'{kind} {share:.1%}'
    for kind, seconds in found['seconds'].items()
    if kind != 'train' and (share := seconds / max(found['total'], 1e-9)) >= 0.0005
  ]
  return f'goodput {share_in_words(found)}; {", ".join(shares)}'


def share_in_words(found: Mapping[str, Any]) -> str:
  """Goodput of a summary, of how long and of how many starts."""
  count = len(found['starts'])
  of = f'{progress.duration(found["total"])} in {count} start{"s" * (count > 1)}'
  return f'{found["goodput"]:.1%} of {of}'
