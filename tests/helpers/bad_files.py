"""Files that must be refused."""

import pytest

from diversedit_jax import types


def refused(read, path, data, reason=''):
  """Writes the bytes and checks that `read` names the file, and the reason, in a `UserError`."""
  path.write_bytes(data)
  with pytest.raises(types.UserError) as error:
    read(path)
  assert reason in str(error.value) and str(path) in str(error.value)


def truncations_refused(read, path, data, step=7):
  for length in range(0, len(data), step):
    refused(read, path, data[:length])
