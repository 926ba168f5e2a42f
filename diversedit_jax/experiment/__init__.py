"""From a config to checked, typed parts; the only reader of configs.

Each section is splatted into a dataclass, so an unknown key is an error that names the nearest one,
and everything is checked here, before anything compiles.
"""

from diversedit_jax.experiment.experiment import Experiment, build, check_devices

__all__ = ['Experiment', 'build', 'check_devices']
