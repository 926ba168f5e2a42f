"""Seconds of a run by what they were spent on: measured, and added up over starts."""

import collections
import math

import pytest

from diversedit_jax.training import goodput, writers


@pytest.fixture
def now(monkeypatch):
  """A list of the time that clocks see."""
  time = [0.0]
  monkeypatch.setattr(goodput.time, 'monotonic', lambda: time[0])
  return time


def test_clock_leaves_pauses_out(now):
  clock = goodput.Clock()
  now[0] = 3.0
  with clock.paused('save'):
    now[0] = 13.0
  now[0] = 15.0
  assert clock.lap() == 5.0
  now[0] = 16.0
  assert clock.lap() == 1.0
  assert clock.total() == 16.0


def test_every_second_is_of_one_kind(now):
  clock = goodput.Clock()
  for until, kind in ((2.0, 'setup'), (7.0, 'compile')):
    now[0] = until
    clock.reached(kind)
  with clock.waiting(behind=False):
    now[0] += 0.5
  with pytest.raises(OSError), clock.paused('hooks'):
    now[0] += 1.5
    raise OSError
  with clock.paused('save'):
    now[0] += 3.0
  now[0] += 20.0
  assert clock.spent() == dict(setup=2.0, compile=5.0, data=0.5, save=3.0, hooks=1.5, train=20.0)


class Devices:
  """Devices that compute one step after the other, and know for how long they had none."""

  def __init__(self, now, seconds):
    self._now, self._seconds, self._free, self.idle = now, seconds, None, 0.0

  def dispatch(self):
    begins = self._now[0] if self._free is None else max(self._now[0], self._free)
    self.idle += 0.0 if self._free is None else begins - self._free
    self._free = begins + self._seconds
    return self._free


@pytest.mark.parametrize('seconds', [0.5, 1.0, 2.0])  # For a step; a batch takes one.
@pytest.mark.parametrize('prefetch', [1, 3])
@pytest.mark.parametrize('every', [1, 4, 7])
def test_waiting_for_data_is_what_the_devices_wait(now, seconds, prefetch, every):
  """The loop's order, beside devices and a reader that keep their own time."""
  clock, devices = goodput.Clock(), Devices(now, seconds)
  made, taken = collections.deque(1.0 + i for i in range(prefetch)), []
  ends, pending = [], False
  for step in range(1, 29):
    with clock.waiting(behind=pending):
      now[0] = max(now[0], made.popleft())
      if not ends:
        first = now[0]
      taken.append(now[0])
      made.append(max(made[-1] if made else 0.0, taken[-1]) + 1.0)
    ends.append(devices.dispatch())
    if pending:
      now[0] = max(now[0], ends[-2])
    pending = True
    if step % every == 0:
      with clock.one_step():
        now[0] = max(now[0], ends[-1])
      pending = False
  # Before the first step there is nothing to compute; between two, nothing is lost but waiting.
  assert math.isclose(clock.spent()['data'] - first, devices.idle, abs_tol=1e-9)


def row(step, time, train=None, **facts):
  if train is not None:
    facts['seconds'] = dict.fromkeys(goodput.KINDS, 1.0) | {'train': train}
  return {'step': step, 'time': time, **facts}


def test_steps_that_were_made_again_are_lost():
  rows = [
    row(0, 1004.0, began=1000.0, steps=100),
    row(20, 1030.0, train=20.0),
    row(40, 1060.0, train=60.0),  # Killed; the checkpoint was of step 30.
    row(30, 1104.0, began=1100.0, steps=100),
    row(60, 1140.0, train=30.0, ended='SIGTERM'),
    row(60, 1131.0, began=1130.0, steps=100),  # The time of day was set back.
    row(70, 1150.0, train=10.0, ended='OSError'),  # Went back, by --continue_from, to step 10.
    row(10, 1161.0, began=1160.0, steps=100),
    row(100, 1300.0, train=90.0, ended='finished'),
  ]
  found = goodput.summary(rows)
  assert [start['ended'] for start in found['starts']] == [None, 'SIGTERM', 'OSError', 'finished']
  # 10 of the first 40 steps were kept, which took half of the first 20 seconds; none of the others.
  assert found['lost_steps'] == 30 + 30 + 10
  assert found['seconds']['lost'] == 50.0 + 30.0 + 10.0
  assert found['seconds']['train'] == 10.0 + 90.0
  assert found['total'] == sum(found['seconds'].values()) == 190.0 + 4 * 5
  assert found['goodput'] == 100 / 210
  assert found['stopped'] == 40.0 + 0.0 + 10.0
  assert goodput.in_words(found).startswith('goodput 47.6% of 3:30 in 4 starts; setup 1.9%, ')


def test_an_account_tells_how_a_start_ended(tmp_path, now):
  path = tmp_path / goodput.FILE
  path.write_text('{"step": 0, "time": 5.0, "began": 4.0}\n{"step": 3, "ti')  # Killed in a row.
  with pytest.raises(KeyError):
    account = goodput.Account(path)
    with account.opened(2, 10):
      now[0] += 4.0
      account.note(6)
      now[0] += 2.0
      account.at(8)
      raise KeyError
  with goodput.Account(path).opened(6, 10):
    pass
  first, second, third = goodput.starts(writers.read_jsonl(path))
  assert (first.first, first.last, first.ended) == (0, 0, '')
  assert (second.first, second.last, second.ended) == (2, 8, 'KeyError')
  assert second.seconds['train'] == 6.0 and third.ended == ''
  with goodput.Account(None).opened(0, 10):
    pass
  assert list(tmp_path.iterdir()) == [path]


def test_no_rows_are_no_summary():
  assert goodput.summary([]) == {} and goodput.in_words({}) == ''
