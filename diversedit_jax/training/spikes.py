"""Losses that stand out from those before them, told with the examples of their batch.

With m the median of the last losses and d = 1.4826 median |loss - m|, which is the standard
deviation of a normal law, a loss above m + k max(d, m / 100) is a spike. The window starts empty
whenever a run is started, so what is told there is no function of the step alone.
"""

import collections

from absl import logging
import numpy as np

from diversedit_jax.training import nonfinite

_WINDOW = 100  # Losses that are remembered.
_FEWEST = 20  # Losses before the first one that is judged.
_LEAST = 0.01  # Smallest deviation that counts, as a share of the median.
_SHOWN = 256  # Indices in a line.


class Spikes:
  """Looks at the loss of each step; `factor` is k, 0 looks at nothing."""

  def __init__(self, factor: float, examples: nonfinite.Examples):
    self._factor, self._examples = factor, examples
    self._losses = collections.deque(maxlen=_WINDOW)
    self._high = False

  def look(self, step: int, loss: float) -> None:
    """Warns of the first step of a spike."""
    if not self._factor:
      return
    was_high, self._high = self._high, False
    if len(self._losses) >= _FEWEST:
      losses = np.array(self._losses)
      median = float(np.median(losses))
      deviation = 1.4826 * float(np.median(np.abs(losses - median)))
      limit = median + self._factor * max(deviation, _LEAST * abs(median))
      self._high = loss > limit
      if self._high and not was_high:
        self._tell(step, loss, median, limit)
    self._losses.append(loss)

  def _tell(self, step, loss, median, limit):
    indices = [int(i) for i in self._examples(step)]
    more = f' and {len(indices) - _SHOWN} more' if len(indices) > _SHOWN else ''
    logging.warning(
      'step %d: loss %.4g is a spike (median %.4g, limit %.4g); examples %s%s; --mode=replay '
      '--step=%d looks at them',
      step,
      loss,
      median,
      limit,
      ', '.join(map(str, indices[:_SHOWN])),
      more,
      step,
    )
