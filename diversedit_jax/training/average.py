"""Averaged networks: how each follows the parameters, and how much of one is its start still.

  ema_n = d_n ema_(n-1) + (1 - d_n) params_n     after update n = 1, 2, ...; ema_0 = params_0
  d_n = decay                                    so that decay^n of ema_n is params_0
  d_n = min(decay, n / (9 + n))                  with warm-up, as TensorFlow's
                                                 ExponentialMovingAverage by `num_updates`
  d_n = (1 - 1/n)^(gamma + 1)                    power function (arXiv 2312.02696, section 3.1)

A plain decay of 0.9999 averages over 10,000 steps, however few there were. With warm-up the
average reaches back over a ninth of the run so far, and nothing of params_0 is left after a few
dozen steps.

The weight of params_t in a power function's average is that of t^gamma in [0, n], of which nothing
is params_0. Its standard deviation is the same share of the run at any length,

  std = sqrt((gamma + 1) / ((gamma + 2)^2 (gamma + 3)))                                  (1)

(sigma_rel there), and averages of other widths can be made afterwards, see `post_hoc`.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import trees, types

_META = 'averages'
_NOTED = 0.01  # Share of the network that it began with from which on it is worth a word.
_WIDEST = 12**-0.5  # The width of gamma = 0, which weighs the whole run evenly.
_GRAMMAR = "a decay as '0.999', or a power function's width as 'std=0.10'"


@dataclasses.dataclass(frozen=True)
class Decay:
  """A decay at each step, in [0, 1)."""

  decay: float

  def __str__(self) -> str:
    return repr(self.decay)

  def share_of(self, beginning: int, step: int, warmup: bool) -> float:
    """How much of the average at a step is the network of the step at which it began."""
    if not warmup:
      return self.decay ** (step - beginning)
    if not beginning:
      return 0.0
    n = np.arange(beginning, step)
    return float(np.prod(np.minimum(self.decay, (1 + n) / (10 + n))))


@dataclasses.dataclass(frozen=True)
class PowerFunction:
  """A standard deviation, as a share of the run so far, in (0, 12^-1/2]."""

  std: float

  def __str__(self) -> str:
    return f'std={self.std!r}'

  @functools.cached_property
  def gamma(self) -> float:
    """The exponent by (1), a root of gamma^3 + 7 gamma^2 + (16 - std^-2) gamma + 12 - std^-2."""
    inverse = self.std**-2
    return float(max(np.roots([1, 7, 16 - inverse, 12 - inverse]).real))

  def share_of(self, beginning: int, step: int, warmup: bool) -> float:
    """How much of the average at a step is the network of the step at which it began."""
    del warmup
    return (beginning / step) ** (self.gamma + 1) if step else 1.0


Average = Decay | PowerFunction


def item(name: str) -> str:
  """The item of a checkpoint that holds a further average, and its name in `sample.weights`."""
  return f'ema@{name}'


def parse(text: str, key: str) -> Average:
  """The average that a text names: '0.999' or 'std=0.10'.

  Raises:
    UserError: it names none; `key` is what the text is the value of.
  """
  kind, number = (PowerFunction, text[4:]) if text.startswith('std=') else (Decay, text)
  try:
    value = float(number)
  except ValueError:
    value = math.nan
  fits = 0 < value <= _WIDEST if kind is PowerFunction else 0 <= value < 1
  if not fits:
    bounds = f'expected {_GRAMMAR}; a decay is in [0, 1), a width in (0, {_WIDEST:.4f}]'
    raise types.UserError(f'{key} has {text!r}, {bounds}')
  return kind(value)


def chosen(text: str, key: str) -> str | Average:
  """What a text such as that of `sample.weights` names: 'params', 'ema', or 'ema@AVERAGE'.

  Raises:
    UserError: it names nothing; `key` is what the text is the value of.
  """
  if text.startswith(item('')):
    return parse(text.removeprefix(item('')), key)
  trees.check_known(key, text, ('ema', 'params'))
  return text


def beginnings(meta: Mapping[str, Any]) -> dict[str, int]:
  """At which step each further average began, by name, as a checkpoint's meta says."""
  return meta.get(_META, {})


def begun(names: Iterable[str], meta: Mapping[str, Any], step: int) -> dict[str, dict[str, int]]:
  """What the next checkpoints say for `beginnings`; those that `meta` lacks begin at a step."""
  found = {name: beginnings(meta).get(name, step) for name in names}
  return {_META: found} if found else {}


def remark(of: Average, warmup: bool, steps: int, beginning: int = 0) -> str:
  """A sentence if much of the average at a step is the network that it began with; else ''.

  of: the average. beginning: step at which it began, 0 but for one that a run took up on the way.
  """
  share = of.share_of(beginning, steps, warmup)
  if share < _NOTED:
    return ''
  if beginning:
    return (
      f'the average {of} began at step {beginning:,}: {share:.0%} of it at step {steps:,} is the '
      'network of that step'
    )
  return (
    f'the average reaches back {1 / (1 - of.decay):,.0f} steps, the run has {steps:,}: {share:.0%} '
    'of it is the initial network; train.ema_warmup=True shortens the average of a short run, and '
    'sample.weights=params samples without it'
  )


def decay_at(decay: float, warmup: bool, step: jax.Array) -> float | jax.Array:
  """The decay of the update after `step` others, a scalar."""
  if not warmup:
    return decay
  n = jnp.asarray(step, jnp.float32)
  return jnp.minimum(decay, (1 + n) / (10 + n))


def decayed(ema, params, decay: float | jax.Array):
  """decay * ema + (1 - decay) * params, with 1 - decay of a number in double precision."""
  return jax.tree.map(lambda e, p: e * decay + p * (1.0 - decay), ema, params)


@jax.named_scope('ema')
def updated(of: Average, ema, params, warmup: bool, step: jax.Array):
  """The average after an update, with the parameters that it made, after `step` others."""
  if isinstance(of, Decay):
    return decayed(ema, params, decay_at(of.decay, warmup, step))
  # 1 - (1 - 1/n)^(gamma + 1), which float32 would lose in the difference.
  share = -jnp.expm1((of.gamma + 1) * jnp.log1p(-1 / (step + 1).astype(jnp.float32)))
  return jax.tree.map(lambda e, p: e + share * (p - e), ema, params)
