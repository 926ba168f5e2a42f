"""Losses that stand out are told once, with their examples; others are not."""

import numpy as np

from diversedit_jax.training import spikes


def told(losses, caplog, factor=10.0):
  """Steps of the warnings that a list of losses, from step 1 on, brings about."""
  caplog.clear()
  watched = spikes.Spikes(factor, lambda step: range(10 * step, 10 * step + 3))
  for step, loss in enumerate(losses, 1):
    watched.look(step, loss)
  return [int(r.getMessage().split()[1].rstrip(':')) for r in caplog.records]


def test_a_spike_is_told_with_step_loss_and_examples(caplog):
  losses = [*(1 + 0.1 * np.random.default_rng(0).standard_normal(60)), 9.0, 1.0]
  assert told(losses, caplog) == [61]
  line = caplog.records[0].getMessage()
  assert 'loss 9 ' in line and 'examples 610, 611, 612;' in line and '--step=61 ' in line
  assert told(losses, caplog, factor=0) == []


def test_the_limit_is_the_median_and_the_deviation_of_the_last_hundred(caplog):
  noise = np.random.default_rng(1).standard_normal(400)
  losses = [*(50 + 5 * noise[:200]), *(2 + 0.1 * noise[200:])]
  last = np.array(losses[-100:])
  median = np.median(last)
  limit = median + 10 * 1.4826 * np.median(np.abs(last - median))
  assert told([*losses, limit - 1e-6], caplog) == []
  assert told([*losses, limit + 1e-6], caplog) == [401]


def test_noise_a_falling_loss_and_a_new_level_are_no_rain_of_warnings(caplog):
  noise = np.random.default_rng(2).standard_normal(3000)
  falling = 0.2 + 1 / np.sqrt(1 + np.arange(3000)) + 0.02 * noise
  assert told(falling, caplog) == []
  assert told([1.0] * 500, caplog) == []
  assert told([1.0, 1.05] * 50 + [1.1] * 50, caplog) == []  # Within a tenth of the median.
  assert told([*falling[:200], *(5 + falling[200:400])], caplog) == [201]
  assert told([9.0] * 3 + [900.0], caplog) == []  # Too few to judge by.
