"""The table of parameters that is logged when training starts."""

from typing import Any

from absl import logging


def log(params: dict[str, Any]) -> None:
  """Logs name, shape, dtype and size of each parameter, and the total; computes nothing.

  params: nested dicts of arrays or of their shapes.
  """
  from clu import parameter_overview  # Here, because only training needs it.

  # `log_parameter_overview` would log from a file of clu, whose lines the console leaves out.
  table = parameter_overview.get_parameter_overview(params, include_stats=False)
  logging.info('parameters:\n%s', table)
