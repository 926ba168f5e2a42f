"""Blocks that `model.block` names, one file each; a new file in here is enough.

A file has

  PARTS   the block's parts, by key of `config.Architecture`: what a key that is None stands for
  MLPS    (optional) MLPs that it brings, by the name that `model.mlp` then knows
  Block   (optional) a block with equations of its own, in place of `block.Block`

Files are imported when one of these is first asked for, since they need the config to be declared.
"""

from collections.abc import Collection, Iterator, Mapping
import functools
import importlib
import pkgutil
import types
from typing import Any

NAMES = tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def parts(block: str) -> Mapping[str, Any]:
  """PARTS of a block."""
  return _file(block).PARTS


def own_block(block: str) -> Any:
  """The class Block of its file; None where it has the ordinary one."""
  return getattr(_file(block), 'Block', None)


def mlp(name: str) -> Any:
  """The class of an MLP."""
  return _mlps()[name]


class _Mlps(Collection):
  """The names of all MLPs, which files are read for when they are looked at."""

  def __iter__(self) -> Iterator[str]:
    return iter(_mlps())

  def __len__(self) -> int:
    return len(_mlps())

  def __contains__(self, name: Any) -> bool:
    return name in _mlps()


MLPS = _Mlps()


def _file(block: str) -> types.ModuleType:
  return importlib.import_module(f'{__name__}.{block}')


@functools.cache
def _mlps() -> dict[str, Any]:
  found: dict[str, Any] = {}
  for block in NAMES:
    for name, cls in getattr(_file(block), 'MLPS', {}).items():
      if found.setdefault(name, cls) is not cls:
        raise ValueError(f'models/blocks/{block}.py: there is an MLP {name!r} already')
  return found
