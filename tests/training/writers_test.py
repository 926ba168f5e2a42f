"""What a run records: rows that survive a restart, and event files that cost a run nothing."""

import io
import json
import os
import pathlib
import resource
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.compat.proto import summary_pb2
from tensorboard.util import tensor_util

from diversedit_jax import types
from diversedit_jax.training import writers

ROOT = pathlib.Path(__file__).parents[2]


def test_jsonl_drops_rows_after_the_restored_step_and_a_cut_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
  lines = writers.JsonLines(path, start_step=1)
  lines.write({'step': 2, 'loss': 1.5})
  lines.close()
  assert writers.read_jsonl(path) == [{'step': 1, 'loss': 2.0}, {'step': 2, 'loss': 1.5}]


def test_a_damaged_line_before_others_is_named_and_no_row_is_lost(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo\n{"step": 3, "loss": 1.0}\n')
  before = path.read_text()
  with pytest.raises(types.UserError, match=r'metrics\.jsonl is damaged at line 2'):
    writers.JsonLines(path, start_step=3)
  assert path.read_text() == before


def test_rows_are_kept_while_the_disk_is_full_and_none_is_cut(tmp_path, caplog):
  path = tmp_path / 'metrics.jsonl'
  lines, rows = writers.JsonLines(path, start_step=0), [{'step': s, 'loss': 0.1} for s in range(4)]
  lines.write(rows[0])
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 9, before[1]))
  try:
    lines.write(rows[1])
    lines.write(rows[2])
    assert list(map(json.loads, lines.sync())) == rows[1:3]  # For the checkpoint.
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert writers.read_jsonl(path) == rows[:1] and path.read_text().endswith('}\n')
  assert caplog.text.count('its rows are kept for now') == 2
  lines.write(rows[3])
  lines.close()
  assert writers.read_jsonl(path) == rows


def test_a_row_that_is_there_is_not_written_again(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  rows = [{'step': 2, 'loss': 1.0}, {'step': 2, 'eval/fid': 3.0}]
  for again in range(2):
    lines = writers.JsonLines(path, start_step=2 * again)
    for row in rows[: 1 + again]:
      lines.write(row)
    lines.close()
  assert writers.read_jsonl(path) == rows


def read(folder):
  return event_accumulator.EventAccumulator(str(folder), {'tensors': 0}).Reload()


def metadata(events, tag):
  found = events.SummaryMetadata(tag)
  return found.plugin_data.plugin_name, found.data_class


def test_tensorboard_reads_scalars_of_all_starts(tmp_path):
  for start in (0, 2):
    writer = writers.Writer(tmp_path, start_step=start, tensorboard=True, active=True)
    for step in (start + 1, start + 2):
      writer.row(step, {'loss': 1 / step, 'diverse/loss': float(step)})
    writer.close()
  events = read(tmp_path / 'tensorboard')
  assert set(events.Tags()['tensors']) == {'loss', 'diverse/loss'}
  found = {e.step: tensor_util.make_ndarray(e.tensor_proto) for e in events.Tensors('loss')}
  assert {step: (x.dtype, x.shape, x.item()) for step, x in found.items()} == {
    step: (np.float32, (), np.float32(1 / step)) for step in (1, 2, 3, 4)
  }
  assert metadata(events, 'loss') == ('scalars', summary_pb2.DATA_CLASS_SCALAR)


@pytest.mark.parametrize('channels', [1, 3])
def test_tensorboard_reads_images(tmp_path, channels):
  levels = np.random.default_rng(0).integers(0, 256, (2, 3, 5, channels), np.uint8)
  writer = writers.Writer(tmp_path, start_step=0, tensorboard=True, active=True)
  # A value of [0, 1] is the level in whose 256th it lies, and what is outside is the nearest.
  writer.images(7, {'levels': levels, 'values': (levels + 0.25) / 255.5 + [[[[0.0]]], [[[-1.0]]]]})
  writer.close()
  events = read(tmp_path / 'tensorboard')
  for tag, expected in (('levels', levels), ('values', np.stack([levels[0], 0 * levels[1]]))):
    (event,) = events.Tensors(tag)
    width, height, *files = tensor_util.make_ndarray(event.tensor_proto)
    assert (event.step, width, height) == (7, b'5', b'3')
    found = [np.asarray(Image.open(io.BytesIO(file))) for file in files]
    np.testing.assert_array_equal(np.reshape(found, levels.shape), expected)
    assert metadata(events, tag) == ('images', summary_pb2.DATA_CLASS_BLOB_SEQUENCE)


@pytest.fixture
def small_files():
  """No file of this process may grow past 64 KiB, as on a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
  yield
  resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_is_reported_once_and_ends_the_events_alone(tmp_path, small_files, caplog):
  noise = np.random.default_rng(0).integers(0, 256, (1, 256, 256, 3), np.uint8)
  writer = writers.Writer(tmp_path, start_step=0, tensorboard=True, active=True)
  writer.row(1, {'loss': 1.0})
  writer.images(1, {'preview': noise})
  writer.images(2, {'preview': noise})
  writer.row(2, {'loss': 2.0})
  writer.close()
  (told,) = (record.getMessage() for record in caplog.records)
  assert told.startswith('training goes on without TensorBoard events: OSError: [Errno 27]')
  assert [e.step for e in read(tmp_path / 'tensorboard').Tensors('loss')] == [1]
  assert [row['step'] for row in writers.read_jsonl(tmp_path / 'metrics.jsonl')] == [1, 2]


def test_a_missing_package_costs_the_events_alone(tmp_path):
  """In a process of its own, in which nothing of TensorBoard has been imported."""
  code = (
    'import pathlib, sys\n'
    'sys.modules["tensorboard"] = None\n'
    'from diversedit_jax.training import writers\n'
    'writer = writers.Writer(pathlib.Path("."), start_step=0, tensorboard=True, active=True)\n'
    'writer.row(1, {"loss": 1.0})\n'
    'writer.close()\n'
  )
  environment = os.environ | {'PYTHONPATH': str(ROOT)}
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=tmp_path, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0
  assert done.stderr.count('training goes on without TensorBoard events: ModuleNotFoundError') == 1
  assert writers.read_jsonl(tmp_path / 'metrics.jsonl') == [{'step': 1, 'loss': 1.0}]


def test_other_processes_record_nothing(tmp_path):
  writer = writers.Writer(tmp_path, start_step=0, tensorboard=True, active=False)
  writer.row(1, {'loss': 1.0})
  writer.close()
  assert not list(tmp_path.iterdir())
