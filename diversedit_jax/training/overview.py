"""What is logged of the parameters when training starts: their table, and what is frozen."""

from collections.abc import Collection
from typing import Any

from absl import logging

from diversedit_jax import trees
from diversedit_jax.weights import misfits


def log(params: dict[str, Any]) -> None:
  """Logs name, shape, dtype and size of each parameter, and the total; computes nothing.

  params: nested dicts of arrays or of their shapes.
  """
  from clu import parameter_overview  # Here, because only training needs it.

  # `log_parameter_overview` would log from a file of clu, whose lines the console leaves out.
  table = parameter_overview.get_parameter_overview(params, include_stats=False)
  logging.info('parameters:\n%s', table)


def frozen(params: dict[str, Any], fixed: Collection[str]) -> str:
  """How much of the parameters is frozen, in words. fixed: their paths."""
  whole, trained = trees.count(params), trees.count(trees.without(params, fixed))
  return (
    f'{whole - trained:,} of {whole:,} parameters stay as they are, in {len(fixed)} arrays: '
    f'{misfits.first_few(sorted(fixed))}; {trained:,} are trained'
  )
