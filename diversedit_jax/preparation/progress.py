"""Log lines of a preparation: how far it is, how fast, and how much memory it takes."""

import resource
import sys

import jax

from diversedit_jax import progress


class Meter(progress.Progress):
  """Counts pictures, and logs what `Progress` logs with '| skipped 2 | memory 1.2 GiB' added.

  total: pictures of this worker. done, skipped: pictures in shards that were finished before.
  device: the device whose memory is reported; None reports none.
  """

  def __init__(self, total: int, done: int, skipped: int, *, device: jax.Device | None):
    super().__init__('preparing', total, 'pictures', done=done)
    self._skipped, self._device = skipped, device

  def add(self, skipped: bool) -> None:
    """Counts one more picture, which became an example or was skipped."""
    self._skipped += skipped
    self.at(self._done + 1)

  def line(self) -> str:
    """See `Progress`."""
    parts = [
      super().line(),
      f'skipped {self._skipped}',
      f'memory {_gibibytes(_peak_memory())}',
    ]
    stats = self._device.memory_stats() if self._device else None
    if stats and 'peak_bytes_in_use' in stats:
      parts.append(f'device memory {_gibibytes(stats["peak_bytes_in_use"])}')
    return ' | '.join(parts)


def _peak_memory():
  """The most main memory that this process has held, in bytes."""
  found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return found if sys.platform == 'darwin' else 1024 * found


def _gibibytes(count):
  return f'{count / 2**30:.3g} GiB'
