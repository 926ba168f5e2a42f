"""How far a long piece of work is: log lines with rate and time left, about every ten seconds."""

import collections
import math
import time

from absl import logging

EVERY = 10.0
"""Seconds between two lines."""

_LINES = 7  # The rate is taken over the last six lines, which is about a minute.


class Progress:
  """Logs 'fid: 12,800 of 50,000 images (26%) | 51.2 images/s | ETA 12:06'.

  While the first lines are written, the rate includes the time of compilation.
  """

  def __init__(self, text: str, total: int | None = None, unit: str = 'GB', *, done: int = 0):
    """Starts the clock.

    Args:
      text: name of the work.
      total: amount of the work; None if nobody knows it.
      unit: name of what is counted; 'GB' if bytes are counted.
      done: amount that was finished before.
    """
    self._text, self._total, self._unit, self._done = text, total, unit, done
    # When lines were logged, and how much was done then.
    self._lines = collections.deque([(time.monotonic(), done)], maxlen=_LINES)

  def at(self, done: int) -> None:
    """Notes how much is done, and logs a line if it is time for one, or all is done."""
    self._done = done
    if done == self._total or time.monotonic() - self._lines[-1][0] >= EVERY:
      self.log()

  def log(self) -> None:
    """Logs a line now."""
    logging.info('%s', self.line())
    self._lines.append((time.monotonic(), self._done))

  def line(self) -> str:
    """The line, without logging it."""
    then, before = self._lines[0]
    rate = (self._done - before) / max(time.monotonic() - then, 1e-9)
    if self._unit == 'GB':
      amount, speed = lambda n: f'{n / 1e9:.1f}', f'{rate / 1e6:.3g} MB/s'
    else:
      amount, speed = lambda n: f'{n:,}', f'{rate:.3g} {self._unit}/s'
    if self._total is None:
      return f'{self._text}: {amount(self._done)} {self._unit} so far | {speed}'
    share = self._done / max(self._total, 1)
    left = self._total - self._done
    left = left and (left / rate if rate else math.inf)
    return (
      f'{self._text}: {amount(self._done)} of {amount(self._total)} {self._unit} ({share:.0%}) | '
      f'{speed} | ETA {duration(left)}'
    )


def duration(seconds: float) -> str:
  """'7s', '3:05', '12:03:05' or '4d 12h'; '?' for infinity."""
  if not math.isfinite(seconds):
    return '?'
  total = round(seconds)
  if total < 60:
    return f'{total}s'
  hours, minutes = total // 3600, total // 60 % 60
  if hours >= 48:
    return f'{hours // 24}d {hours % 24}h'
  return f'{hours}:{minutes:02}:{total % 60:02}' if hours else f'{minutes}:{total % 60:02}'
