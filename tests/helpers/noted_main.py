"""`diversedit_jax.main`, which notes its batches and the files that it writes.

$NOTES: folder of PROCESS-NUMBER.npz, rows of a batch, and of PROCESS.txt, paths in the workdir.
$FAULT: number of a process that finds the store of checkpoints unavailable.
"""

import itertools
import os
import pathlib
import sys

import numpy as np

from diversedit_jax import checkpoint, cli, config_file, integrity, main, sharding

ME = os.environ.get('JAX_PROCESS_ID', '0')
_NOTES = pathlib.Path(os.environ['NOTES'])
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def note_batches():
  put, numbers = sharding.put_batch, itertools.count(1)

  def noted(batch, mesh, batch_size):
    rows = np.asarray(sharding.process_rows(mesh, batch_size))
    np.savez(_NOTES / f'{ME}-{next(numbers)}.npz', rows=rows, **batch)
    return put(batch, mesh, batch_size)

  sharding.put_batch = noted


def note_writes(workdir):
  notes = os.open(_NOTES / f'{ME}.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)

  def hook(event, given):
    path = given[0] if given else None
    written = event == 'open' and isinstance(given[2], int) and given[2] & _WRITES
    if not (written or event in ('os.mkdir', 'os.rename', 'os.remove')):
      return
    if isinstance(path, str | os.PathLike) and os.fspath(path).startswith(workdir):
      os.write(notes, os.fspath(path).removeprefix(workdir).encode() + b'\n')

  sys.addaudithook(hook)


def be_unavailable():
  def read(self, *unused):
    raise ValueError('UNAVAILABLE: the store is being moved')

  checkpoint.Checkpoints._read = read


if __name__ == '__main__':
  integrity.PAUSES = (0.1,)
  note_batches()
  (folder,) = [word for word in sys.argv if word.startswith('--workdir=')]
  note_writes(folder.partition('=')[2])
  if os.environ.get('FAULT') == ME:
    be_unavailable()
  cli.run(main.main, config_file.parse)
