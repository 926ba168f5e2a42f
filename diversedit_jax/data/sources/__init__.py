"""Where examples come from; `open_source` opens what a config names.

Every module in here is imported, so a file that registers a source is enough.
"""

import importlib
import pkgutil

from diversedit_jax.data.sources.base import KEYS, KINDS, SPLITS, Source, Space
from diversedit_jax.data.sources.memory import ArraySource, arrays, digits
from diversedit_jax.data.sources.opening import open_source
from diversedit_jax.data.sources.pictures import PictureSource
from diversedit_jax.data.sources.resident import DeviceSource, HostSource, in_memory
from diversedit_jax.data.sources.store import StoreSource
from diversedit_jax.data.sources.synthetic import SyntheticSource, synthetic

__all__ = [
  'KEYS',
  'KINDS',
  'SPLITS',
  'ArraySource',
  'DeviceSource',
  'HostSource',
  'PictureSource',
  'Source',
  'Space',
  'StoreSource',
  'SyntheticSource',
  'arrays',
  'digits',
  'in_memory',
  'open_source',
  'synthetic',
]

for _module in pkgutil.iter_modules(__path__):
  importlib.import_module(f'{__name__}.{_module.name}')
