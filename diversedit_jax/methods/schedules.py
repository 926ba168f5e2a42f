"""Factors of a term's weight over a run, as functions of the number of updates made, s.

  constant          1
  warmup:N          min(1, s / N)                           DiverseDiT's newest code, N = 10,000
  stop:N            1 before N, 0 from N on                 HASTE (arXiv 2505.16792), N = 250,000
  cosine:A:B        1 before A, (1 + cos(pi (s - A) / (B - A))) / 2 to B, 0 from B on
  piecewise:N=V,... 1 before the first N, then the V of the last N that has come

and products of these, joined by '*', as 'warmup:10000*stop:250000'.
"""

from collections.abc import Callable
import dataclasses
import itertools
import math
import re

import jax
import jax.numpy as jnp

from diversedit_jax import types

FORMS = "constant, warmup:N, stop:N, cosine:A:B, piecewise:N=V,..., or several joined by '*'"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schedule:
  """A factor by the number of updates made.

  at: int32 scalar, may be traced -> float32 scalar, at least 0.
  until: updates before which it is 1; infinite if always.
  ends: updates from which it is 0 for good; infinite if never.
  """

  at: Callable[[jax.Array], jax.Array]
  until: float = math.inf
  ends: float = math.inf

  @property
  def constant(self) -> bool:
    """Whether it is 1 always."""
    return self.until == math.inf

  def __mul__(self, other: 'Schedule') -> 'Schedule':
    if self.constant or other.constant:
      return other if self.constant else self
    return Schedule(
      at=lambda step: self.at(step) * other.at(step),
      until=min(self.until, other.until),
      ends=min(self.ends, other.ends),
    )


def constant() -> Schedule:
  """1 always."""
  return Schedule(at=lambda step: jnp.float32(1))


def warmup(steps: int) -> Schedule:
  """A line from 0 to 1 in so many updates; 0 is `constant`."""
  if not steps:
    return constant()
  rise = lambda step: jnp.minimum(1, jnp.asarray(step) / steps).astype(jnp.float32)
  return Schedule(at=rise, until=0)


def piecewise(values: dict[int, float]) -> Schedule:
  """1, then each value from its number of updates on."""
  rising = sorted(values.items())

  def at(step):
    factor = jnp.float32(1)
    for start, value in rising:
      factor = jnp.where(jnp.asarray(step) >= start, jnp.float32(value), factor)
    return factor

  zeros = [*itertools.takewhile(lambda pair: not pair[1], reversed(rising))]
  return Schedule(
    at=at,
    until=next((start for start, value in rising if value != 1), math.inf),
    ends=zeros[-1][0] if zeros else math.inf,
  )


def stop(step: int) -> Schedule:
  """1 before so many updates, 0 after them."""
  return piecewise({step: 0.0})


def cosine(start: int, end: int) -> Schedule:
  """1 until `start`, then half a wave of the cosine down to 0 at `end`."""

  def at(step):
    share = jnp.clip((jnp.asarray(step) - start) / (end - start), 0, 1)
    return jnp.where(share < 1, (1 + jnp.cos(jnp.pi * share)) / 2, 0).astype(jnp.float32)

  return Schedule(at=at, until=start + 1, ends=end)


def parse(text: str, key: str) -> Schedule:
  """The schedule that a text names.

  Args:
    text: one of the forms of the module's head, or several joined by '*'.
    key: of the config, for the message.

  Raises:
    UserError: for a text of no such form, one that weighs nothing, or steps that do not rise.
  """
  found = constant()
  for one in text.split('*'):
    found *= _parse_one(one.strip(), f'{key}={text!r}')
  if found.ends <= 0:
    raise types.UserError(f'{key}={text!r} weighs nothing at any step; leave the term out')
  return found


def _parse_one(text, said):
  kind, _, rest = text.partition(':')
  if kind == 'piecewise' and re.fullmatch(r'\d+=[^,=]+(,\d+=[^,=]+)*', rest):
    pairs = [pair.split('=') for pair in rest.split(',')]
    steps = [int(step) for step, _ in pairs]
    values = [_number(value, said) for _, value in pairs]
    if steps != sorted(set(steps)):
      raise types.UserError(f'{said}: the steps {steps} must rise')
    return piecewise(dict(zip(steps, values, strict=True)))
  numbers = [int(n) for n in rest.split(':')] if re.fullmatch(r'\d+(:\d+)*', rest) else []
  if text == 'constant':
    return constant()
  if kind in ('warmup', 'stop') and len(numbers) == 1 and numbers[0] > 0:
    return {'warmup': warmup, 'stop': stop}[kind](*numbers)
  if kind == 'cosine' and len(numbers) == 2:
    if numbers[0] >= numbers[1]:
      raise types.UserError(f'{said}: the fall must start before it ends')
    return cosine(*numbers)
  raise types.UserError(f'{said}: {text!r} is none of {FORMS}; numbers are updates, from 1')


def _number(text, said):
  try:
    value = float(text)
  except ValueError:
    value = math.nan
  if not 0 <= value < math.inf:
    raise types.UserError(f'{said}: {text!r} must be a factor of at least 0')
  return value
