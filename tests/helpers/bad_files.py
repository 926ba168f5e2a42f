"""Weight files that must be refused."""

import pytest

from diversedit_jax import types
from diversedit_jax.weights import array_files


def refused(path, data, reason=''):
  """Writes the bytes and checks that reading them names the file, and the reason, in an error."""
  path.write_bytes(data)
  with pytest.raises(types.UserError) as error:
    array_files.load(path)
  assert reason in str(error.value) and str(path) in str(error.value)


def truncations_refused(path, data):
  """Checks a file cut after every seventh byte."""
  for length in range(0, len(data), 7):
    refused(path, data[:length])
