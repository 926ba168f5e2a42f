"""Labels of ILSVRC-2012's validation pictures, from its development kit.

`ILSVRC2012_validation_ground_truth.txt` has a number for each picture in the order of their names,
and `meta.mat` says which WordNet id a number is. The numbers are not in the order of the ids, by
which labels are counted everywhere else.
"""

import io
import os
import pathlib
import tarfile

from diversedit_jax import types

_FILES = ('ILSVRC2012_validation_ground_truth.txt', 'meta.mat')


def is_devkit(path: str | os.PathLike[str]) -> bool:
  """Whether a path may be the kit: a folder, or an archive by its name."""
  return os.path.isdir(path) or str(path).endswith(('.tar.gz', '.tgz', '.tar'))


def read(path: str | os.PathLike[str]) -> tuple[list[str], tuple[str, ...]]:
  """The WordNet id of each validation picture in the order of their names, and all ids, sorted.

  Raises:
    UserError: it is not the kit, or cannot be read.
  """
  from scipy import io as scipy_io  # Here: its import takes a twentieth of a second.

  try:
    numbers, meta = _files(pathlib.Path(path))
    synsets = scipy_io.loadmat(io.BytesIO(meta), squeeze_me=True)['synsets']
    ids = {
      int(number): str(wnid)
      for number, wnid, children in zip(
        synsets['ILSVRC2012_ID'], synsets['WNID'], synsets['num_children'], strict=True
      )
      if int(children) == 0
    }
    return [ids[number] for number in map(int, numbers.split())], tuple(sorted(ids.values()))
  except Exception as error:  # Damaged archives and .mat files make their readers raise anything.
    raise types.UserError(
      f'labels {str(path)!r}: not the development kit of ILSVRC-2012, whose '
      f'{" and ".join(_FILES)} are needed: {" ".join(str(error).split()) or type(error).__name__}'
    ) from error


def _files(path):
  """Bytes of both files."""
  if path.is_dir():
    found = {file.name: file.read_bytes() for file in path.rglob('*') if file.name in _FILES}
  else:
    with tarfile.open(path) as archive:
      members = [m for m in archive if os.path.basename(m.name) in _FILES and m.isreg()]
      found = {os.path.basename(m.name): archive.extractfile(m).read() for m in members}
  return tuple(found[name] for name in _FILES)
