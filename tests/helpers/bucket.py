"""A bucket on the loopback address, for the tests of a session and for the processes they start."""

import atexit
import contextlib
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
import urllib.request
import uuid

NAME = 'tests'
_SERVER = pathlib.Path(__file__).with_name('bucket_server.py')


def new() -> str:
  """The URL of a folder of its own, in a bucket that is there until the session ends.

  Sets the environment by which every library, here and in child processes, finds the emulator.
  """
  _started()
  return f'gs://{NAME}/{uuid.uuid4().hex[:12]}'


def disturb(left: int, *, of='', status=200, does=False, seconds=0.0) -> int:
  """Lets the next requests to the emulator be late, or answers them with an error.

  Args:
    left: how many of them.
    of: a regular expression, searched in 'METHOD URL'; a folder keeps others' requests as they are.
    status: of the answer; 200 for none of another kind.
    does: whether what is answered by an error is done all the same.
    seconds: by which each is late.

  Returns:
    How many of the requests that were to be disturbed before have not come.
  """
  _started()
  asked = {'left': left, 'of': of, 'status': status, 'does': does or status == 200}
  request = urllib.request.Request(
    f'{os.environ["STORAGE_EMULATOR_HOST"]}/disturb',
    json.dumps(asked | {'seconds': seconds}).encode(),
    {'Content-Type': 'application/json'},
  )
  with urllib.request.urlopen(request) as answer:
    return json.load(answer)['left']


@functools.cache
def _started():
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  process = subprocess.Popen(
    [sys.executable, str(_SERVER), str(port), NAME],
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  atexit.register(process.wait)
  atexit.register(process.terminate)  # Before that.
  url = f'http://127.0.0.1:{port}'
  os.environ.update(
    STORAGE_EMULATOR_HOST=url,  # gcsfs and google-cloud-storage.
    TENSORSTORE_GCS_HTTP_URL=url,
    GOOGLE_AUTH_TOKEN_FOR_TESTING='token',  # TensorStore.
    GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT='false',  # Asks another API what kind of a bucket it is.
    NO_GCE_CHECK='true',  # Nobody looks for a machine of Google's to get credentials from.
  )
  until = time.monotonic() + 60
  while True:
    with contextlib.suppress(OSError):
      urllib.request.urlopen(url).read()
      return process
    assert process.poll() is None and time.monotonic() < until, 'the emulator does not start'
    time.sleep(0.05)
