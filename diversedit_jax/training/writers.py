"""Where metrics go: `metrics.jsonl` always, TensorBoard through clu beside it.

clu's writer imports TensorFlow, which takes seconds and hundreds of megabytes; so a thread of its
own imports it and writes, and if it is missing only TensorBoard is lost.
"""

from collections.abc import Mapping
from concurrent import futures
import json
import os
import pathlib
from typing import Any

from absl import logging
import numpy as np


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
  """The complete rows of a metrics file; a last line cut short by a kill is left out."""
  rows = []
  for text in path.read_text().splitlines() if path.exists() else []:
    try:
      rows.append(json.loads(text))
    except json.JSONDecodeError:
      break
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
  """Scalars and images to TensorBoard from one background thread."""

  def __init__(self, logdir: pathlib.Path):
    self._logdir = logdir
    self._thread = futures.ThreadPoolExecutor(1, thread_name_prefix='tensorboard')
    self._writer = self._thread.submit(self._open)

  def scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Queues scalars of a step."""
    self._thread.submit(self._write, 'write_scalars', step, dict(values))

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Queues images [N, H, W, C] of a step, uint8 or float in [0, 1]."""
    self._thread.submit(self._write, 'write_images', step, dict(images))

  def close(self) -> None:
    """Waits until all is written."""
    self._thread.submit(self._flush)
    self._thread.shutdown(wait=True)

  def _open(self):
    # Its greetings are of no use here, and it computes nothing.
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    try:
      from clu import metric_writers  # Imports TensorFlow.

      return metric_writers.SummaryWriter(str(self._logdir))
    except Exception as error:  # A broken TensorFlow raises whatever it likes.
      logging.warning('no TensorBoard events: %s: %s', type(error).__name__, error)
      return None

  def _write(self, method, step, values):
    writer = self._writer.result()
    if writer is not None:
      getattr(writer, method)(step, values)

  def _flush(self):
    writer = self._writer.result()
    if writer is not None:
      writer.close()


class Writer:
  """Everything a run records, in its directory; processes other than the first record nothing."""

  def __init__(self, workdir: pathlib.Path, *, start_step: int, tensorboard: bool, active: bool):
    self._jsonl = JsonLines(workdir / 'metrics.jsonl', start_step=start_step) if active else None
    self._board = TensorBoard(workdir / 'tensorboard') if active and tensorboard else None

  def row(self, step: int, values: Mapping[str, float]) -> None:
    """One row of scalars."""
    if self._jsonl:
      self._jsonl.write({'step': step, **values})
    if self._board:
      self._board.scalars(step, values)

  def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
    """Images for TensorBoard; the run keeps its own files."""
    if self._board:
      self._board.images(step, images)

  def close(self) -> None:
    """Flushes and closes."""
    if self._jsonl:
      self._jsonl.close()
    if self._board:
      self._board.close()
