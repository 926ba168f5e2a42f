"""Where metrics go: `metrics.jsonl` always; beside it an event file for TensorBoard, a tracker."""

from collections.abc import Callable, Mapping, Sequence
import contextlib
import json
import pathlib
import sys
from typing import Any, Protocol

from absl import logging
import numpy as np

from diversedit_jax import faults, types
from diversedit_jax.data import files, growing


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
  """The rows of a metrics file; a last line that was cut short by a kill is left out.

  Raises:
    UserError: another line is no row, so that rows after it would be lost.
  """
  texts = path.read_bytes().decode(errors='replace').splitlines() if path.exists() else []
  rows = []
  for number, text in enumerate(texts, 1):
    try:
      row = json.loads(text)
    except json.JSONDecodeError:
      if number == len(texts):
        break
      row = None
    if not isinstance(row, dict) or 'step' not in row:
      raise types.UserError(
        f'{path} is damaged at line {number}, {text[:40]!r}; mend it, or take it away'
      )
    rows.append(row)
  return rows


class JsonLines:
  """Appends to a file of rows; on a restart, rows after the restored step are dropped first.

  A row that stood there before is not written twice. While the disk is full, rows are kept.

  unsent: lines that `sync` returned for the checkpoint of that step.
  """

  def __init__(self, path: pathlib.Path, *, start_step: int, unsent: Sequence[str] = ()):
    rows = [row for row in read_jsonl(path) if row['step'] <= start_step]
    there = set(map(json.dumps, rows))
    rows += [json.loads(line) for line in unsent if line not in there]
    with files.atomic(path) as temporary:
      temporary.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    self._there = {frozenset(row) for row in rows if row['step'] == start_step}
    self._start, self._waiting = start_step, b''
    self._name, self._file = path.name, growing.Growing(path, new=False)

  def write(self, row: Mapping[str, Any]) -> None:
    """Writes a row, after those that could not be written before."""
    if row['step'] == self._start and frozenset(row) in self._there:
      return
    self._waiting += json.dumps(row).encode() + b'\n'
    try:
      self._write_waiting()
    except OSError as error:
      if not faults.no_space(error):
        raise
      logging.error('%s: %s; its rows are kept for now', self._name, faults.told(error))

  def _write_waiting(self):
    self._file.write(self._waiting)
    self._waiting = b''
    self._file.flush()

  def sync(self) -> list[str]:
    """Uploads all rows before a checkpoint is written; returns the lines that could not be.

    The checkpoint keeps them: a run that goes on from it would have a gap otherwise.
    """
    self._file.sync()
    return (self._file.unsent() + self._waiting).decode().splitlines()

  def close(self) -> None:
    """Closes the file; an OSError means that rows are lost, unless training failed before."""
    try:
      self._write_waiting()
    except OSError:
      if sys.exception() is None:
        raise
    finally:
      self._file.close()


class Sink(Protocol):
  """What shows metrics beside the run's own files; a method may raise."""

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars of a step."""

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Writes images of a step, [N, H, W, C], uint8 or float in [0, 1]; C is 1, 3 or 4."""

  def close(self) -> None:
    """Ends the record."""


class Dispensable:
  """A sink that a run can do without: a failure is reported once and ends it, not the run."""

  def __init__(self, name: str, open_sink: Callable[[], Sink]):
    """name: for the message. open_sink: called when there is something to show."""
    self._name, self._open, self._sink = name, open_sink, None

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """See `Sink`."""
    self._attempt(lambda sink: sink.scalars(step, values))

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """See `Sink`."""
    self._attempt(lambda sink: sink.images(step, images))

  def close(self) -> None:
    """See `Sink`."""
    if self._sink:
      self._attempt(lambda sink: sink.close())

  def _attempt(self, action: Callable[[Sink], None]):
    if self._open is None:
      return
    try:
      if self._sink is None:
        self._sink = self._open()
      action(self._sink)
    except Exception as error:  # A full disk, a missing package: nothing of it is worth a run.
      logging.warning(
        'training goes on without %s: %s: %s', self._name, type(error).__name__, error
      )
      failed, self._sink, self._open = self._sink, None, None
      if failed:
        with contextlib.suppress(Exception):
          failed.close()


def _events(folder):
  # Here, because its import takes half a second that runs without TensorBoard need not pay.
  from diversedit_jax.training import events

  return events.EventFile(folder)


class Writer:
  """Everything a run records in its directory, and what else shows it.

  active: whether this process records anything; only the first of a run does.
  tracker: its name, and what opens it; None without one.
  unsent: see `JsonLines`.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    *,
    start_step: int,
    tensorboard: bool,
    active: bool,
    tracker: tuple[str, Callable[[], Sink]] | None = None,
    unsent: Sequence[str] = (),
  ):
    rows = lambda: JsonLines(workdir / 'metrics.jsonl', start_step=start_step, unsent=unsent)
    self._jsonl = rows() if active else None
    board = ('TensorBoard events', lambda: _events(workdir / 'tensorboard'))
    wanted = [board] * tensorboard + [tracker] * (tracker is not None)
    self._sinks = [Dispensable(*sink) for sink in wanted] if active else []

  def row(self, step: int, values: Mapping[str, float]) -> None:
    """Writes one row of scalars."""
    if self._jsonl:
      self._jsonl.write({'step': step, **values})
    for sink in self._sinks:
      sink.scalars(step, values)

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Shows images elsewhere; the run keeps files of its own."""
    for sink in self._sinks:
      sink.images(step, images)

  def sync(self) -> list[str]:
    """See `JsonLines.sync`."""
    return self._jsonl.sync() if self._jsonl else []

  def close(self) -> None:
    """Closes the files."""
    if self._jsonl:
      self._jsonl.close()
    for sink in self._sinks:
      sink.close()


def levels(x_NHWC: np.ndarray) -> np.ndarray:
  """Levels 0..255 of images; each of them takes as much of [0, 1] as any other."""
  if x_NHWC.dtype == np.uint8:
    return x_NHWC
  return np.clip(x_NHWC * 255.5, 0, 255).astype(np.uint8)
