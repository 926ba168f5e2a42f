"""The lines that tell how far a preparation is, how fast, and with how much memory."""

import collections
import datetime
import resource
import sys
import time

from absl import logging
import jax


class Meter:
  """Counts pictures and logs a line about every ten seconds.

  total: pictures of this worker. done, skipped: of them, in shards that were finished before.
  device: whose memory is told too.
  """

  def __init__(
    self, total: int, done: int, skipped: int, *, device: jax.Device | None, every: float = 10.0
  ):
    self._total, self._done, self._skipped = total, done, skipped
    self._device, self._every = device, every
    # When lines were logged, and how many pictures were done with then.
    self._lines = collections.deque([(time.monotonic(), done)], maxlen=7)

  def add(self, skipped: bool) -> None:
    """One more picture is done with."""
    self._done += 1
    self._skipped += skipped
    if time.monotonic() - self._lines[-1][0] >= self._every:
      self.report()

  def report(self) -> None:
    """Logs a line now."""
    logging.info('%s', self.line())
    self._lines.append((time.monotonic(), self._done))

  def line(self) -> str:
    """'1200 of 20018 pictures (6%) | 51.2 images/s | skipped 2 | ETA 0:06:07 | memory 1.2 GiB'.

    The rate is that of the last six lines, a minute or so; at first it has the compilation in it.
    """
    before, made = self._lines[0]
    rate = (self._done - made) / max(time.monotonic() - before, 1e-9)
    left = datetime.timedelta(seconds=round((self._total - self._done) / rate)) if rate else '?'
    parts = [
      f'{self._done} of {self._total} pictures ({100 * self._done / max(self._total, 1):.0f}%)',
      f'{rate:.4g} images/s',
      f'skipped {self._skipped}',
      f'ETA {left}',
      f'memory {_gibibytes(_peak_memory())}',
    ]
    stats = self._device.memory_stats() if self._device else None
    if stats and 'peak_bytes_in_use' in stats:
      parts[-1] += f', device {_gibibytes(stats["peak_bytes_in_use"])}'
    return ' | '.join(parts)


def _peak_memory():
  """Bytes of main memory that this process has held at most."""
  found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return found if sys.platform == 'darwin' else 1024 * found


def _gibibytes(count):
  return f'{count / 2**30:.3g} GiB'
