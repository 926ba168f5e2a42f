"""Lines that tell how far a long reading is, one about every ten seconds."""

import datetime
import time

from absl import logging

EVERY = 10.0  # Seconds between two lines.


class Progress:
  """Logs 'listing a.tar: 12.3 of 148.0 GB | ETA 0:00:21', or 'listing b: 130,000 files so far'.

  text: what is done. total: of what `at` is told, None where nobody knows. unit: 'GB' for bytes, or
  the name of what is counted.
  """

  def __init__(self, text: str, total: int | None = None, unit: str = 'GB'):
    self._text, self._total, self._unit = text, total, unit
    self._started = self._logged = time.monotonic()

  def at(self, done: int) -> None:
    """So many bytes or things are done; logs a line if it is time for one."""
    now = time.monotonic()
    if now - self._logged < EVERY:
      return
    self._logged = now
    amount = lambda count: f'{count / 1e9:.1f}' if self._unit == 'GB' else f'{count:,}'
    if self._total is None:
      logging.info('%s: %s %s so far', self._text, amount(done), self._unit)
      return
    seconds = (now - self._started) * (self._total - done) / max(done, 1)
    logging.info(
      '%s: %s of %s %s | ETA %s',
      self._text,
      amount(done),
      amount(self._total),
      self._unit,
      datetime.timedelta(seconds=round(seconds)),
    )
