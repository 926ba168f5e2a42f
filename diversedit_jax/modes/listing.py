"""`--mode=list`: what a config file of several experiments offers, as configs/paper.py does."""

import ml_collections

from diversedit_jax import types
from diversedit_jax.experiment import study


def listing(config: ml_collections.ConfigDict) -> str:
  """The table of experiments of a config without a row's name.

  Raises:
    UserError: for the config of one experiment, or of a study.
  """
  if study.is_study(config):
    check_is_experiment(config)
  if 'listing' not in config:
    raise types.UserError(
      'this config is one experiment, so there is nothing to list; '
      '--config=configs/paper.py --mode=list shows the rows of the paper, configs/zoo.py those of '
      'other methods'
    )
  return config.listing


def check_is_experiment(config: ml_collections.ConfigDict) -> None:
  """Refuses a config that only lists experiments, and tells how to name one (UserError)."""
  if study.is_study(config):
    raise types.UserError(
      'this config file is a study of several experiments: --mode=study trains and compares them'
    )
  if 'listing' in config:
    raise types.UserError(
      'this config file holds many experiments and none was named; name one after a colon, as in '
      '--config=configs/paper.py:table1/SiT-B+DiverseDiT (--mode=list shows all)'
    )
