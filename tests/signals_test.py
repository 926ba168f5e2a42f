"""Signals that end training: noticed once, a second Ctrl-C ends at once, handlers are restored."""

import os
import signal

import jax
import pytest

from diversedit_jax import signals


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGUSR2', 'SIGHUP'])
def test_a_signal_is_noticed_and_the_old_handler_restored(name, capfd):
  number, heard = signal.Signals[name], []
  before = signal.signal(number, lambda *_: heard.append(name))
  try:
    with signals.stop_requested() as stopped_by:
      assert stopped_by() == ''
      os.kill(os.getpid(), number)
      assert stopped_by() == name
      # A second Ctrl-C is the system's business; it would end the tests.
      assert (signal.getsignal(number) == signal.SIG_DFL) == (name == 'SIGINT')
    os.kill(os.getpid(), number)
    assert heard == [name]
  finally:
    signal.signal(number, before)
  (line,) = capfd.readouterr().err.splitlines()
  assert line.startswith(f'{name}: saving after this step, then ending')


def test_what_nohup_ignores_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with signals.stop_requested() as stopped_by:
      os.kill(os.getpid(), signal.SIGHUP)
      assert stopped_by() == ''
  finally:
    signal.signal(signal.SIGHUP, before)


def test_with_several_processes_jax_hears_of_it_as_sigterm(monkeypatch):
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  heard = []
  before = signal.signal(signal.SIGTERM, lambda *_: heard.append('jax'))
  try:
    with signals.stop_requested() as stopped_by:
      os.kill(os.getpid(), signal.SIGUSR1)
      assert (heard, stopped_by()) == (['jax'], '')
  finally:
    signal.signal(signal.SIGTERM, before)


def test_who_listens_around_another_hears_the_signal_too():
  with signals.stop_requested() as outer:
    with signals.stop_requested() as inner:
      os.kill(os.getpid(), signal.SIGTERM)
      assert inner() == outer() == 'SIGTERM'
    with signals.stop_requested() as next_one:  # It was sent before this one began.
      assert next_one() == outer() == 'SIGTERM'
  with signals.stop_requested() as later:
    assert later() == ''
