"""What is logged, as a list of lines."""

import contextlib

from absl import logging
import pytest


@contextlib.contextmanager
def noted(level='warning'):
  """A list of the lines that are logged within at a level: 'info', 'warning' or 'error'."""
  lines = []
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(logging, level, lambda line, *values: lines.append(line % values))
    yield lines
