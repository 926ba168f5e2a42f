"""Samplers: noise in, data out, the whole trajectory in one program.

Every module in here is imported, so a file that registers a sampler is enough.
"""

import importlib
import pkgutil

from diversedit_jax.sampling.trajectory import SamplerConfig, evaluations, sample

__all__ = ['SamplerConfig', 'evaluations', 'sample']

for _module in pkgutil.iter_modules(__path__):
  importlib.import_module(f'{__name__}.{_module.name}')
