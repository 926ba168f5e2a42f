"""Small networks from the fields of both their configs at once."""

import dataclasses

from diversedit_jax.models import config

SKIP = config.Skip(enabled=True)
SKIP_BEFORE = config.Skip(enabled=True, placement='before')
NO_SKIP = config.Skip()


def parts(**fields):
  """(Architecture, Execution) of fields of both."""
  how = {field.name for field in dataclasses.fields(config.Execution)}
  return (
    config.Architecture(**{k: v for k, v in fields.items() if k not in how}),
    config.Execution(**{k: v for k, v in fields.items() if k in how}),
  )
