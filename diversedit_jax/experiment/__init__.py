"""From a config to checked, typed parts, and the directory of a run.

`declarations` knows every key; `build` reads a config and checks all of it before anything
compiles.
"""

from diversedit_jax.experiment.declarations import defaults
from diversedit_jax.experiment.experiment import Experiment, build, check_devices

__all__ = ['Experiment', 'build', 'check_devices', 'defaults']
