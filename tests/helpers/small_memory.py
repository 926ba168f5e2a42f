"""Shared memory of a few pages, for one command alone; real, so for root."""

import contextlib
import os
import subprocess

import pytest


def words(size: str) -> list[str]:
  """What goes ahead of a command whose `/dev/shm` is to have this size; skips without the right."""
  mounted = f'mount -t tmpfs -o size={size} none /dev/shm && exec "$0" "$@"'
  found = ['unshare', '--mount', 'sh', '-c', mounted]
  done = subprocess.run([*found, 'true'], capture_output=True, text=True, check=False)
  if done.returncode:
    pytest.skip(f'needs the right to mount a disk of its own: {done.stderr.strip()}')
  return found


def keep_full(process: subprocess.Popen) -> None:
  """Takes what is free of the shared memory that a process sees, until that ends."""
  page = bytes(os.sysconf('SC_PAGE_SIZE'))
  with open(f'/proc/{process.pid}/root/dev/shm/ballast', 'wb', buffering=0) as ballast:
    while process.poll() is None:
      with contextlib.suppress(OSError):
        ballast.write(page)
