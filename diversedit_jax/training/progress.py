"""Metrics between two reports, and the line of one."""

from collections.abc import Mapping
from typing import Any

from diversedit_jax import progress

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
  rate = row['steps_per_second']
  parts = [f'step {step}/{steps} ({100 * step / steps:.0f}%)']
  of_terms = [name for name in row if name.endswith(('/loss', '/weight'))]
  shown = [name for name in ('loss', 'velocity', *of_terms, 'grad_norm', 'skipped') if name in row]
  parts += [f'{name} {row[name]:.4g}' for name in shown]
  parts.append(f'{rate:.3g} steps/s, {row["images_per_second"]:.4g} images/s')
  parts.append(f'ETA {progress.duration((steps - step) / rate)}')
  return ' | '.join(parts)
