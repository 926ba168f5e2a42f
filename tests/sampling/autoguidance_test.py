"""Guidance by another network (arXiv 2406.02507): closed forms, limits, what it costs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.sampling import trajectory

GOOD, BAD, STEPS = 0.8, 0.3, 10
X = np.random.default_rng(0).standard_normal((3, 2, 2, 4))


def linear(rate):
  return lambda x, t_N, y_N: rate * x


GOOD_ONE, BAD_ONE = linear(GOOD), linear(BAD)


def end(guide=BAD_ONE, predict=GOOD_ONE, **options):
  """The state at t = 0 from X, in float64."""
  options = {'kind': 'euler', 'steps': STEPS, 'autoguidance': 'bad', 'dtype': 'float64'} | options
  config = trajectory.SamplerConfig(**options)
  with jax.enable_x64(True):
    found = trajectory.integrate(
      predict, jnp.asarray(X), jnp.zeros(3, jnp.int32), config, null_label=None, guide=guide
    )
    return np.asarray(found)


def euler(rate, steps=STEPS):
  return (1 - rate / STEPS) ** steps


@pytest.mark.parametrize('scale', [0.0, 0.5, 1.0, 2.0, 3.5])
def test_linear_networks_in_closed_form(scale):
  """x' = r x with r = bad + scale (good - bad), by Euler's steps; it needs no classes."""
  wanted = X * euler(BAD + scale * (GOOD - BAD))
  np.testing.assert_allclose(end(guidance_scale=scale), wanted, rtol=1e-10)


def test_heun_and_the_interval():
  rate, h = BAD + 2 * (GOOD - BAD), 1 / STEPS
  # Steps that start at 0.7, ..., 0.3 are guided, and by Heun both looks of each.
  heun = lambda r: 1 - r * h + (r * h) ** 2 / 2
  wanted = X * heun(GOOD) ** 4 * heun(rate) ** 5 * (1 - GOOD * h)
  options = {'guidance_scale': 2.0, 'guidance_low': 0.25, 'guidance_high': 0.75}
  np.testing.assert_allclose(end(kind='heun', **options), wanted, rtol=1e-10)


def test_scale_1_is_no_guidance_and_equal_networks_change_nothing():
  predict = lambda x, t_N, y_N: jnp.sin(3 * x) * t_N[:, None, None, None]
  plain = end(predict=predict, autoguidance='', guide=None)
  refuse = lambda *_: pytest.fail('evaluated')
  np.testing.assert_array_equal(end(guide=refuse, predict=predict, guidance_scale=1.0), plain)
  np.testing.assert_array_equal(end(guide=predict, predict=predict, guidance_scale=4.0), plain)
  alone = end(guide=predict, predict=refuse, guidance_scale=0.0)
  np.testing.assert_array_equal(alone, plain)


def test_only_some_channels():
  found = end(guidance_scale=2.0, guidance_channels=3)
  np.testing.assert_allclose(found[..., :3], X[..., :3] * euler(2 * GOOD - BAD), rtol=1e-10)
  np.testing.assert_allclose(found[..., 3:], X[..., 3:] * euler(GOOD), rtol=1e-10)


def test_both_networks_see_the_same_class():
  seen = {}

  def watch(name):
    def predict(x, t_N, y_N):
      seen[name] = np.asarray(y_N)
      return x

    return predict

  config = trajectory.SamplerConfig(kind='euler', steps=1, guidance_scale=2.0, autoguidance='bad')
  with jax.disable_jit():
    trajectory.integrate(
      watch('good'), jnp.asarray(X, jnp.float32), jnp.array([3, 1, 2]), config, null_label=10,
      guide=watch('bad'),
    )  # fmt: skip
  assert seen['good'].tolist() == seen['bad'].tolist() == [3, 1, 2]


@pytest.mark.parametrize(
  ('options', 'per_sample', 'calls'),
  [
    ({'guidance_scale': 2.0}, 2 * STEPS, 2 * STEPS),
    ({'guidance_scale': 1.0}, STEPS, STEPS),
    ({'guidance_scale': 0.0}, STEPS, STEPS),
    ({'guidance_scale': 2.0, 'guidance_high': 0.55}, STEPS + 5, STEPS + 5),
    ({'guidance_scale': 2.0, 'kind': 'heun'}, 2 * (2 * STEPS - 1), 2 * (2 * STEPS - 1)),
  ],
)
def test_evaluations_of_both_networks_count(options, per_sample, calls):
  options = {'kind': 'euler', 'steps': STEPS, 'autoguidance': 'bad'} | options
  found = trajectory.evaluations(trajectory.SamplerConfig(**options))
  assert found == (per_sample, calls)


def test_what_does_nothing_is_named_and_a_missing_guide_is_an_error():
  idle = trajectory.SamplerConfig(autoguidance='bad').without_effect()
  assert idle == ['sampler.autoguidance=bad has no effect: guidance_scale=1 is no guidance']
  with pytest.raises(ValueError, match='is to guide, but there is no guide'):
    end(guide=None, guidance_scale=2.0)
