"""The average's warm-up against TensorFlow's rule, and what is said of one that is its start."""

import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.training import average
from diversedit_jax.training import step as step_lib


def test_warm_up_is_tensorflows_rule_and_forgets_the_start():
  """Averages of 1, 2, 3, ... from 0, by the formula in double precision."""
  decay, ema, plain, expected = 0.99, jnp.zeros(()), jnp.zeros(()), 0.0
  of_start = 1.0
  for n in range(2000):
    ema = step_lib.update_ema(ema, jnp.float32(n + 1), average.decay_at(decay, True, jnp.int32(n)))
    plain = step_lib.update_ema(plain, jnp.float32(n + 1), average.decay_at(decay, False, n))
    d = min(decay, (1 + n) / (10 + n))
    expected, of_start = d * expected + (1 - d) * (n + 1), of_start * d
    if n == 49:
      np.testing.assert_allclose(ema, expected, rtol=1e-6)
      assert of_start < 1e-6 and 43 < ema < 46 and plain < 13
  np.testing.assert_allclose(ema, expected, rtol=1e-5)
  np.testing.assert_allclose(ema, plain, rtol=1e-4)  # The decay is reached at step 890.


@pytest.mark.parametrize(
  ('decay', 'warmup', 'steps', 'said'),
  [
    (0.9999, False, 600, 'reaches back 10,000 steps, the run has 600: 94% of it is the initial'),
    (0.995, False, 60, 'reaches back 200 steps, the run has 60: 74% of it is the initial'),
    (0.9999, False, 400_000, ''),
    (0.995, False, 1200, ''),  # The digits' demo.
    (0.9999, True, 600, ''),
    (0.0, False, 1, ''),
  ],
)
def test_an_average_that_is_mostly_its_start_is_told(decay, warmup, steps, said):
  found = average.remark(decay, warmup, steps)
  assert said in found and bool(said) == bool(found)
