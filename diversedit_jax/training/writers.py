"""Where metrics go: `metrics.jsonl` always, and an event file for TensorBoard beside it."""

from collections.abc import Callable, Mapping
import contextlib
import json
import pathlib
from typing import Any

from absl import logging
import numpy as np

from diversedit_jax import types


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
  """Reads the complete rows of a metrics file; a last line cut short by a kill is left out."""
  rows = []
  for text in path.read_text(errors='replace').splitlines() if path.exists() else []:
    try:
      row = json.loads(text)
    except json.JSONDecodeError:
      break
    if not isinstance(row, dict) or 'step' not in row:
      raise types.UserError(f'{path} is damaged at {text[:40]!r}; mend it, or take it away')
    rows.append(row)
  return rows


class JsonLines:
  """Appends to `metrics.jsonl`; on a restart, rows after the restored step are dropped first."""

  def __init__(self, path: pathlib.Path, *, start_step: int):
    rows = [row for row in read_jsonl(path) if row['step'] <= start_step]
    temporary = path.with_suffix('.jsonl.tmp')
    temporary.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    temporary.replace(path)
    self._file = path.open('a')

  def write(self, row: Mapping[str, Any]) -> None:
    self._file.write(json.dumps(row) + '\n')
    self._file.flush()

  def close(self) -> None:
    self._file.close()


class TensorBoard:
  """Scalars and images for TensorBoard; a failure is reported once and ends these, not the run."""

  def __init__(self, folder: pathlib.Path):
    self._events = None
    self._attempt(lambda: self._open(folder))

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars of a step."""
    if self._events:
      self._attempt(lambda: self._events.scalars(step, values))

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes images of a step, [N, H, W, C], uint8 or float in [0, 1]."""
    if self._events:
      self._attempt(lambda: self._events.images(step, images))

  def close(self) -> None:
    """Closes the event file."""
    if self._events:
      self._attempt(self._events.close)

  def _open(self, folder):
    # Here, because its import takes half a second that runs without TensorBoard need not pay.
    from diversedit_jax.training import events

    self._events = events.EventFile(folder)

  def _attempt(self, action: Callable[[], None]):
    try:
      action()
    except Exception as error:  # A full disk, a missing package: nothing of it is worth a run.
      logging.warning(
        'training goes on without TensorBoard events: %s: %s', type(error).__name__, error
      )
      failed, self._events = self._events, None
      if failed:
        with contextlib.suppress(OSError):
          failed.close()


class Writer:
  """Everything a run records in its directory.

  active: whether this process records anything; only the first of a run does.
  """

  def __init__(self, workdir: pathlib.Path, *, start_step: int, tensorboard: bool, active: bool):
    self._jsonl = JsonLines(workdir / 'metrics.jsonl', start_step=start_step) if active else None
    self._board = TensorBoard(workdir / 'tensorboard') if active and tensorboard else None

  def row(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one row of scalars."""
    if self._jsonl:
      self._jsonl.write({'step': step, **values})
    if self._board:
      self._board.scalars(step, values)

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Shows images in TensorBoard; the run keeps files of its own."""
    if self._board:
      self._board.images(step, images)

  def close(self) -> None:
    """Closes the files."""
    if self._jsonl:
      self._jsonl.close()
    if self._board:
      self._board.close()
