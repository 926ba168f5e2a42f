"""A digest of the code that benchmarks measure, which every result carries. Standard library only.

Unlike a commit it is the same in an archive without history, and other files do not change it.
"""

import hashlib
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
_FOLDERS = ('benchmarks', 'configs', 'diversedit_jax')
_MEASURE_NOTHING = ('benchmarks/goals.py', 'benchmarks/report.py')


def digest(root: pathlib.Path = ROOT) -> str:
  """SHA-256 over the names and contents of all Python files that can change a number."""
  found = hashlib.sha256()
  names = {path.relative_to(root).as_posix() for f in _FOLDERS for path in (root / f).rglob('*.py')}
  for name in sorted(names - set(_MEASURE_NOTHING)):
    content = (root / name).read_bytes()
    found.update(f'{name}\0{len(content)}\0'.encode() + content)
  return found.hexdigest()
