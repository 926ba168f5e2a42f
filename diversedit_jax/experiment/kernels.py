"""Which kernel of attention a run uses on each platform: attention.json.

A kernel decides how sums are rounded. So the one that 'auto' chose is taken again when the run
continues, or when its samples are made, and is on their cards.
"""

import pathlib

from diversedit_jax.data import files

FILE = 'attention.json'


def read(path: pathlib.Path) -> dict[str, str]:
  """Kernels by platform ('gpu', 'tpu', 'cpu') that the run in a directory has used; {} for none.

  Raises:
    UserError: the file is damaged.
  """
  return files.read_json(path / FILE, may_lack=True)


def record(path: pathlib.Path, platform: str, kernel: str) -> None:
  """Writes which kernel a run uses on a platform."""
  known = read(path)
  if known.get(platform) != kernel:
    files.write_json(path / FILE, {**known, platform: kernel})
