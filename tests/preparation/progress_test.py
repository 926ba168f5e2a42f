"""The line of progress: counts, the rate of the last lines, the time left, memory."""

from types import SimpleNamespace

import pytest

from diversedit_jax.preparation import progress


@pytest.fixture
def clock(monkeypatch):
  now = SimpleNamespace(seconds=100.0)
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now.seconds)
  return now


def test_the_line_tells_counts_rate_time_left_and_memory(clock):
  meter = progress.Meter(1000, 200, 3, device=None)
  for i in range(100):
    clock.seconds += 0.05
    meter.add(skipped=i == 7)
  line = meter.line()
  assert line.startswith('300 of 1000 pictures (30%) | 20 images/s | skipped 4 | ETA 0:00:35 | mem')
  assert 'device' not in line


def test_the_rate_forgets_how_the_run_began(clock):
  """A minute of compilation is out of it after six more lines."""
  meter = progress.Meter(10_000, 0, 0, device=None)
  clock.seconds += 60
  for _ in range(700):
    clock.seconds += 0.1
    meter.add(skipped=False)
  assert ' 10 images/s' in meter.line()


def test_lines_come_every_ten_seconds(clock, caplog):
  caplog.set_level('INFO')
  meter = progress.Meter(500, 0, 0, device=None)
  for _ in range(351):
    clock.seconds += 0.1
    meter.add(skipped=False)
  assert len(caplog.records) == 3


def test_nothing_done_yet_leaves_the_time_open(clock):
  assert 'ETA ?' in progress.Meter(10, 5, 0, device=None).line()


def test_the_peak_of_a_device_is_told_where_it_is_known():
  device = SimpleNamespace(memory_stats=lambda: {'peak_bytes_in_use': 3 * 2**30})
  assert progress.Meter(10, 5, 0, device=device).line().endswith('device 3 GiB')
  device = SimpleNamespace(memory_stats=lambda: None)
  assert 'device' not in progress.Meter(10, 5, 0, device=device).line()
