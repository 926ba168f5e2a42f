"""What the blocks of a trained model hold: parts by name, each in a file of `parts`."""

import importlib
import pkgutil

from diversedit_jax.analysis import parts

# A part's module registers its name when it is imported.
for _module in pkgutil.iter_modules(parts.__path__):
  importlib.import_module(f'{parts.__name__}.{_module.name}')
