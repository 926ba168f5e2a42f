"""Averages against their formulas in double precision, and what is said of their beginnings."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.training import average


def test_warm_up_is_tensorflows_rule_and_forgets_the_start():
  """Averages of 1, 2, 3, ... from 0, by the formula in double precision."""
  decay, ema, plain, expected = 0.99, jnp.zeros(()), jnp.zeros(()), 0.0
  of_start = 1.0
  for n in range(2000):
    ema = average.decayed(ema, jnp.float32(n + 1), average.decay_at(decay, True, jnp.int32(n)))
    plain = average.decayed(plain, jnp.float32(n + 1), average.decay_at(decay, False, n))
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
  found = average.remark(average.Decay(decay), warmup, steps)
  assert said in found and bool(said) == bool(found)


def test_a_power_function_weighs_the_parameters_of_step_t_by_t_to_the_gamma():
  """Against the integrals of t^gamma over each step, over many."""
  rng, steps = np.random.default_rng(0), 4000
  walk = np.cumsum(rng.normal(size=(steps, 3)), axis=0) / 50 + 1
  of, power = average.PowerFunction(0.05), average.PowerFunction(0.05).gamma + 1
  begun = jnp.full(3, 1e6)  # Nothing of it is left at the end.

  def body(ema, given):
    n, params = given
    return average.updated(of, ema, params, False, n), None

  found, _ = jax.lax.scan(body, begun, (jnp.arange(steps), jnp.float32(walk)))
  weights = np.diff((np.arange(steps + 1) / steps) ** power)
  np.testing.assert_allclose(found, weights @ walk, rtol=1e-5)


@pytest.mark.parametrize('std', [1e-3, 0.02, 0.05, 0.1, 0.2, 12**-0.5])
def test_gamma_makes_a_profile_of_that_width(std):
  """The deviation of t by p(t) in [0, 1], by integration; gamma is the one that is not negative."""
  gamma = average.PowerFunction(std).gamma
  ends = np.linspace(0, 1, 400_001) ** (gamma + 1)
  t, p = (np.arange(400_000) + 0.5) / 400_000, np.diff(ends)
  np.testing.assert_allclose(np.sqrt(p @ t**2 - (p @ t) ** 2), std, rtol=1e-4)
  assert gamma > -1e-6


def test_a_decay_beside_the_main_one_is_updated_alike():
  ema, params = jnp.float32([1, 2]), jnp.float32([5, -3])
  for warmup in (False, True):
    found = average.updated(average.Decay(0.9), ema, params, warmup, jnp.int32(3))
    d = min(0.9, 4 / 13) if warmup else 0.9
    np.testing.assert_allclose(found, d * ema + (1 - d) * params, rtol=1e-6)


@pytest.mark.parametrize(
  ('text', 'of'),
  [
    ('0.999', average.Decay(0.999)),
    ('0', average.Decay(0.0)),
    ('std=0.10', average.PowerFunction(0.1)),
  ],
)
def test_texts_name_averages(text, of):
  found = average.parse(text, 'key')
  assert found == of and average.parse(str(found), 'key') == of
  assert average.chosen(f'ema@{text}', 'key') == of


@pytest.mark.parametrize(
  'text', ['1', '-0.1', 'std=0', 'std=0.29', 'nan', 'std=nan', 'std=', '', 'sd=0.1', '0.9;0.99']
)
def test_other_texts_are_refused(text):
  with pytest.raises(types.UserError, match='a decay is in .0, 1., a width in .0, 0.2887.'):
    average.parse(text, 'train.averages')


@pytest.mark.parametrize(
  ('of', 'warmup', 'beginning', 'step', 'share'),
  [
    (average.Decay(0.99), False, 100, 200, 0.99**100),
    (average.Decay(0.9), True, 2, 4, 3 / 12 * 4 / 13),
    (average.PowerFunction(0.1), False, 90, 100, 0.9 ** (average.PowerFunction(0.1).gamma + 1)),
  ],
)
def test_the_share_of_an_average_that_is_where_it_began(of, warmup, beginning, step, share):
  """By following an average of ones that began as a zero."""
  ema = jnp.zeros(())
  for n in range(beginning, step):
    ema = average.updated(of, ema, jnp.ones(()), warmup, jnp.int32(n))
  assert of.share_of(beginning, step, warmup) == pytest.approx(share)
  np.testing.assert_allclose(1 - ema, share, rtol=1e-4)
  said = average.remark(of, warmup, step, beginning)
  assert f'began at step {beginning}: {share:.0%} of it at step {step} is' in said
