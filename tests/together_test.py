"""Processes end together: with the error of one, or with the name of a lost one."""

import gc
import os
import signal
import socket
import time
import warnings

import pytest

from diversedit_jax import meeting, together, types

CALL = {'token': 'ours', 'hosts': ['localhost']}
NAMES = {i: f'process {i} of 3' for i in range(3)}


def three(tmp_path, actions):
  """Runs an action in each of three processes; their exit statuses, messages and seconds."""
  server = meeting.listening()
  call = CALL | {'port': server.getsockname()[1]}
  children, started = [], time.monotonic()
  for index, action in enumerate(actions):
    with warnings.catch_warnings(action='ignore'):  # JAX is not used in them.
      child = os.fork()
    if not child:
      os.dup2(os.open(tmp_path / str(index), os.O_CREAT | os.O_WRONLY), 2)
      peers = meeting.connect(call, {'index': index}) if index else None
      bond = together.Bond(index, NAMES, peers or meeting.accept(server, 'ours', 2))
      try:
        action()
        bond.finished()
      except BaseException as error:
        bond.failed(error)
        os.write(2, f'{type(error).__name__}: {error}'.encode())
        bond._part(2)
      os._exit(0)
    children.append(child)
  server.close()
  ended = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
  messages = [(tmp_path / str(i)).read_text().strip() for i in range(3)]
  return ended, messages, time.monotonic() - started


def raises(error):
  def action():
    raise error

  return action


def wait():
  time.sleep(60)


def killed():
  os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize('lost', [0, 2])
def test_a_killed_process_is_named_and_the_others_end_at_once(tmp_path, lost):
  ended, messages, _ = three(tmp_path, [killed if i == lost else wait for i in range(3)])
  for i in {0, 1, 2} - {lost}:
    assert ended[i] == together.LOST
    assert messages[i].startswith(f'error: process {lost} of 3 is gone: it was killed')
  assert ended[lost] == -signal.SIGKILL


def test_a_process_killed_amid_a_message_is_lost_too(tmp_path):
  def cut_short():
    bond = next(x for x in gc.get_objects() if isinstance(x, together.Bond))
    bond._peers[0].sendall(b'{"finish')
    killed()

  ended, messages, _ = three(tmp_path, [wait, wait, cut_short])
  assert ended[:2] == [together.LOST] * 2
  assert messages[0].startswith('error: process 2 of 3 is gone')


@pytest.mark.parametrize('failing', [0, 2])
def test_an_error_of_one_ends_all_with_its_line_and_status(tmp_path, failing):
  wrong = raises(types.UserError('a.npz cannot be read'))
  ended, messages, _ = three(tmp_path, [wrong if i == failing else wait for i in range(3)])
  assert ended == [2, 2, 2]
  assert messages.pop(failing) == 'UserError: a.npz cannot be read'
  assert messages == [f'error: process {failing} of 3: a.npz cannot be read'] * 2


def test_an_error_that_all_find_is_told_by_each_itself(tmp_path):
  ended, messages, _ = three(tmp_path, [raises(types.UserError('no such mode'))] * 3)
  assert ended == [2, 2, 2] and messages == ['UserError: no such mode'] * 3


def test_what_follows_from_a_loss_is_not_told_instead_of_it(tmp_path):
  def collective():
    time.sleep(0.5)
    raise RuntimeError('Gloo all-reduce failed: Connection closed by peer')

  ended, messages, _ = three(tmp_path, [collective, collective, killed])
  assert ended[:2] == [together.LOST] * 2
  assert all(message.startswith('error: process 2 of 3 is gone') for message in messages[:2])


def test_a_fault_of_the_program_ends_all_with_status_1(tmp_path, monkeypatch):
  monkeypatch.setattr(together, '_CAUSE', 0.2)
  ended, messages, _ = three(tmp_path, [wait, raises(TypeError('no such thing')), wait])
  assert ended[0] == ended[2] == 1
  assert (
    messages[0]
    == messages[2]
    == ('error: process 1 of 3: TypeError: no such thing; its own output has the traceback')
  )


def test_whoever_comes_to_the_end_waits_for_the_others(tmp_path):
  later = lambda: time.sleep(1.5)
  ended, messages, seconds = three(tmp_path, [lambda: None, later, lambda: None])
  assert ended == [0, 0, 0] and messages == ['', '', ''] and seconds > 1.5
  late_error = lambda: (time.sleep(1), raises(types.UserError('the disk is full'))())
  ended, messages, _ = three(tmp_path, [late_error, lambda: None, lambda: None])
  assert ended == [2, 2, 2] and messages[1] == 'error: process 0 of 3: the disk is full'


def test_strangers_are_not_let_in_and_do_not_hold_the_others_up(monkeypatch):
  monkeypatch.setattr(meeting, '_MEETING', 2.0)
  with meeting.listening() as server, socket.socket() as silent:
    port = server.getsockname()[1]
    silent.connect(('127.0.0.1', port))
    for hello in (b'GET / HTTP/1.1\r\n', b'{"token": "theirs", "index": 1}\n', b'[]\n'):
      with socket.create_connection(('127.0.0.1', port)) as stranger:
        stranger.sendall(hello)
    assert meeting.accept(server, 'ours', 1) == {}
