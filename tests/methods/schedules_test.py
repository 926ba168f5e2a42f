"""Factors of weights over a run: their values, their ends, and what is refused."""

import math

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diversedit_jax import types
from diversedit_jax.methods import schedules

FALLS = optax.piecewise_constant_schedule
STEPS = np.array([0, 1, 4, 5, 9, 10, 12, 15, 19, 20, 21, 10**6])


def _at(text):
  schedule = schedules.parse(text, 'repa.schedule')
  return np.array([schedule.at(jnp.int32(step)) for step in STEPS])


@pytest.mark.parametrize(
  ('text', 'twin'),
  [
    ('constant', optax.constant_schedule(1.0)),
    ('warmup:10', optax.linear_schedule(0.0, 1.0, 10)),
    ('stop:10', FALLS(1.0, {10: 0.0})),
    (
      'cosine:10:20',
      optax.join_schedules([lambda _: 1.0, optax.cosine_decay_schedule(1, 10)], [10]),
    ),
    (
      'piecewise:5=0.5,10=2,20=0',
      FALLS(1.0, {5: 0.5, 10: 4.0, 20: 0.0}),
    ),
    ('warmup:10*stop:20', lambda step: np.minimum(step / 10, 1) * (step < 20)),
  ],
)
def test_values_are_those_of_optax(text, twin):
  np.testing.assert_allclose(_at(text), [twin(step) for step in STEPS], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
  ('text', 'until', 'ends'),
  [
    ('constant', math.inf, math.inf),
    ('warmup:10', 0, math.inf),
    ('stop:10', 10, 10),
    ('cosine:10:20', 11, 20),
    ('piecewise:5=1,10=0.5', 10, math.inf),
    ('piecewise:5=0,10=1,20=0', 5, 20),
    ('piecewise:5=0.5,10=0,20=0', 5, 10),
    ('stop:20*warmup:5*cosine:10:15', 0, 15),
  ],
)
def test_what_it_says_of_its_course_holds(text, until, ends):
  schedule = schedules.parse(text, 'repa.schedule')
  assert (schedule.until, schedule.ends) == (until, ends)
  values = np.array([schedule.at(jnp.int32(step)) for step in range(40)])
  assert (values[: min(int(min(until, 40)), 40)] == 1).all()
  if until < 40:
    assert values[int(until)] != 1
  if ends < 40:
    assert (values[int(ends) :] == 0).all() and values[int(ends) - 1] > 0


@pytest.mark.parametrize(
  ('text', 'said'),
  [
    ('stop', 'none of constant'),
    ('stop:0', 'from 1'),
    ('stop:1e5', 'none of constant'),
    ('cosine:20:10', 'must start before'),
    ('piecewise:10=1,5=0', 'must rise'),
    ('piecewise:10=-1', 'at least 0'),
    ('piecewise:0=0', 'leave the term out'),
    ('warmup:10*', 'none of constant'),
  ],
)
def test_refused_by_its_key(text, said):
  with pytest.raises(types.UserError, match=said) as error:
    schedules.parse(text, 'repa.schedule')
  assert f'repa.schedule={text!r}' in str(error.value)
