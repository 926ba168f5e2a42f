"""The shrunken digits run with examples that are not finite, in batches of chosen steps."""

import dataclasses

from helpers import small_runs
import numpy as np

from diversedit_jax.data import order

ROW = 5  # The row of a batch whose example is the bad one.


def example_of(experiment, step):
  """Index of the example that `spoiled` makes bad for a step, counted from 1."""
  size = experiment.train.batch_size
  return int(order.batch_indices(experiment.seed, step - 1, size, len(experiment.source))[ROW])


def spoiled(*steps, **changes):
  """A small experiment, one pixel of one example of the batch of each of the steps being NaN."""
  off = {'log.telemetry_every': 0, 'preview.every': 0, 'log.tensorboard': False}
  experiment = small_runs.make(**(off | changes))
  data = experiment.source.data.copy()
  for step in steps:
    data[example_of(experiment, step), 3, 4, 0] = np.nan
  source = dataclasses.replace(experiment.source, data=data)
  return dataclasses.replace(experiment, source=source)
