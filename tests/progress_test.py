"""Lines of progress: amounts, the rate of the last minute, the time left, and when lines come."""

from types import SimpleNamespace

import pytest

from diversedit_jax import progress


@pytest.fixture
def clock(monkeypatch):
  now = SimpleNamespace(seconds=100.0)
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now.seconds)
  return now


@pytest.mark.parametrize(
  ('total', 'unit', 'line'),
  [
    (2_000_000, 'rows', 'work: 500,000 of 2,000,000 rows (25%) | 1e+05 rows/s | ETA 15s'),
    (2_000_000, 'GB', 'work: 0.0 of 0.0 GB (25%) | 0.1 MB/s | ETA 15s'),
    (None, 'files', 'work: 500,000 files so far | 1e+05 files/s'),
  ],
)
def test_amounts_rate_and_time_left(clock, total, unit, line):
  meter = progress.Progress('work', total, unit)
  clock.seconds += 5
  meter.at(500_000)
  assert meter.line() == line


def test_what_was_done_before_does_not_count_for_the_rate(clock):
  meter = progress.Progress('work', 1000, 'rows', done=200)
  assert meter.line() == 'work: 200 of 1,000 rows (20%) | 0 rows/s | ETA ?'
  clock.seconds += 5
  meter.at(300)
  assert meter.line() == 'work: 300 of 1,000 rows (30%) | 20 rows/s | ETA 35s'


def test_the_rate_forgets_how_the_work_began(clock):
  """A minute of compilation is out of it after six more lines."""
  meter = progress.Progress('work', 10_000, 'rows')
  clock.seconds += 60
  for done in range(1, 701):
    clock.seconds += 0.1
    meter.at(done)
  assert ' 10 rows/s' in meter.line()


def test_lines_come_every_ten_seconds(clock, caplog):
  caplog.set_level('INFO')
  meter = progress.Progress('work', 500, 'rows')
  for done in range(351):
    clock.seconds += 0.1
    meter.at(done)
  assert len(caplog.records) == 3


@pytest.mark.parametrize(
  ('seconds', 'text'),
  [(7.4, '7s'), (185, '3:05'), (43385, '12:03:05'), (390000, '4d 12h'), (float('inf'), '?')],
)
def test_durations(seconds, text):
  assert progress.duration(seconds) == text
