"""Metrics between two reports, and the line of one."""

from collections.abc import Mapping
from typing import Any

from diversedit_jax import progress

RATES = ('steps_per_second', 'images_per_second')
LAST_VALUE = ('learning_rate', 'param_norm')  # Reported as they are at the end; the rest are means.


class Accumulator:
  """Sums and count of per-step scalars; saved with each checkpoint, so reports survive restarts."""

  def __init__(self, state: Mapping[str, Any] | None = None):
    state = state or {'count': 0, 'sums': {}}
    self._count, self._sums = int(state['count']), dict(state['sums'])
    self._left_out = int(state.get('left_out', 0))

  def add(self, metrics: Mapping[str, float]) -> None:
    """Takes the scalars of one step."""
    self._count += 1
    for name, value in metrics.items():
      earlier = 0.0 if name in LAST_VALUE else self._sums.get(name, 0.0)
      self._sums[name] = earlier + float(value)

  def leave_out(self) -> None:
    """Counts a step that has no scalars."""
    self._left_out += 1

  def state(self) -> dict[str, Any]:
    """What the constructor takes; JSON keeps it exactly."""
    return {'count': self._count, 'sums': dict(self._sums), 'left_out': self._left_out}

  def pop(self) -> dict[str, float]:
    """Means since the last report, and 'skipped', the steps without any; then starts anew."""
    row = {k: v if k in LAST_VALUE else v / self._count for k, v in self._sums.items()}
    if self._left_out:
      row['skipped'] = self._left_out
    self._count, self._sums, self._left_out = 0, {}, 0
    return row


def line(step: int, steps: int, row: Mapping[str, float]) -> str:
  """One console line: how far, the losses, the rate and the time left."""
  rate, images = (row[name] for name in RATES)
  parts = [f'step {step}/{steps} ({100 * step / steps:.0f}%)']
  parts += [f'{name} {value:.4g}' for name, value in losses(row).items()]
  parts.append(f'{rate:.3g} steps/s, {images:.4g} images/s')
  parts.append(f'ETA {progress.duration((steps - step) / rate)}')
  return ' | '.join(parts)


def losses(row: Mapping[str, float]) -> dict[str, float]:
  """What is shown of a row: the losses and weights of all terms, and the norm of the gradient."""
  of_terms = [name for name in row if name.endswith(('/loss', '/weight'))]
  names = ('loss', 'velocity', *of_terms, 'grad_norm', 'skipped')
  return {name: row[name] for name in names if name in row}
