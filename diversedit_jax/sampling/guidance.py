"""Guidance by the null label (arXiv 2207.12598) or another network, in an interval (2404.07724).

  (1)  v = v_null + scale (v_class - v_null)   if low <= t <= high, else v_class,

where t is the start of the step and t = 1 is noise; in JiT (2511.13720) t is that of the evaluation
itself, and the ends are left out, but for high = 1. Scale 1 is v_class and 0 is v_null, samples
without a class, at one evaluation each; scales in between are weaker than the class. On the linear
path t = 0.7 is a noise level of sigma = t / (1 - t) = 2.33. REPA guides all channels; SiT and DiT
guide the first three of four and leave v_class in the others.

Autoguidance (2406.02507, Eq. 3) has in the place of v_null the velocity of a worse network, smaller
or less trained, for the same x, t and class:

  (2)  v = v_guide + scale (v - v_guide).
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types

State = Any
"""x_NHWC, or a tree of arrays [N, ...] that move together."""

Predict = Callable[[State, jax.Array, jax.Array | None], State]
"""(x, t_N, y_N) -> velocity, of the same structure as x."""

Combine = Callable[[State, State], State]
"""(velocity with the class, that it is led away from) -> guided velocity."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Guidance:
  """When and how strongly to guide.

  scale: factor of (1) and (2); 1 is no guidance, 0 the other velocity alone.
  low, high: interval of t, both ends included unless it is open.
  open: leaves out both ends, except that high = 1 has t = 1 in it.
  channels: number of guided channels, from the first; None means all.
  """

  scale: float = 1.0
  low: float = 0.0
  high: float = 1.0
  open: bool = False
  channels: int | None = None

  def __post_init__(self):
    if not 0 <= self.scale < np.inf:
      raise types.UserError(f'guidance scale is {self.scale}, expected a finite number >= 0')
    if not 0 <= self.low <= self.high <= 1:
      raise types.UserError(
        f'guidance interval is [{self.low}, {self.high}], expected 0 <= low <= high <= 1'
      )
    if self.channels is not None and self.channels < 1:
      raise types.UserError(f'guidance of {self.channels} channels, expected at least 1 or None')

  def inside(self, t: np.ndarray) -> np.ndarray:
    """Whether the given times lie in the interval."""
    if self.open:
      return (self.low < t) & ((t < self.high) | (self.high == 1))
    return (self.low <= t) & (t <= self.high)

  def combine(self, class_NHWC: jax.Array, null_NHWC: jax.Array) -> jax.Array:
    """Velocity (1) on the guided channels, v_class on the others.

    Raises:
      UserError: more channels are to be guided than there are.
    """
    if self.channels is not None and self.channels > class_NHWC.shape[-1]:
      raise types.UserError(
        f'guidance of {self.channels} channels, but the state has {class_NHWC.shape[-1]}'
      )
    guided_NHWC = null_NHWC + self.scale * (class_NHWC - null_NHWC)
    if self.channels is None:
      return guided_NHWC
    k = self.channels
    return jnp.concatenate([guided_NHWC[..., :k], class_NHWC[..., k:]], axis=-1)


def velocity(predict: Predict, x: State, t: jax.Array, y_N) -> State:
  """One evaluation at a common time t (scalar), in the type of x."""
  first = jax.tree.leaves(x)[0]
  t_N = jnp.full(first.shape[:1], t, first.dtype)
  return jax.tree.map(lambda v, x: v.astype(x.dtype), predict(x, t_N, y_N), x)


def guided_velocity(
  predict: Predict, x: State, t: jax.Array, y_N: jax.Array, combine: Combine, null_label: int
) -> State:
  """Velocity (1) by one call on twice the batch: the labels first, then the null label."""
  v = velocity(
    predict,
    jax.tree.map(lambda x: jnp.concatenate([x, x]), x),
    t,
    jnp.concatenate([y_N, jnp.full_like(y_N, null_label)]),
  )
  n = y_N.shape[0]
  return combine(jax.tree.map(lambda v: v[:n], v), jax.tree.map(lambda v: v[n:], v))


def led_velocity(
  predict: Predict, guide: Predict, x: State, t: jax.Array, y_N, combine: Combine
) -> State:
  """Velocity (2) by one call of each network."""
  return combine(velocity(predict, x, t, y_N), velocity(guide, x, t, y_N))
