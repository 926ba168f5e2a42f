"""Single steps of the samplers, from t to t_next < t: pure functions, noise as an argument.

A state is an array or a tree of arrays that move together (an image and a class token).

Velocity v(x, t), time t = 1 noise -> t = 0 data, dt = t_next - t < 0 (SiT, arXiv 2401.08740; the
numbers are those of REPA's samplers, 2410.06940).

  (1)  dx = v dt                                              probability flow
  (2)  dx = d dt + sqrt(w_t) dW,  d = v - w_t s / 2            the SDE with the same marginals
  (3)  s = -e / sigma,  e = (alpha v - alpha' x) / D,  D = alpha sigma' - alpha' sigma

so the drift d is linear in x and v, with coefficients that depend on time alone:

  (4)  d = p x + q v,  p = -w alpha' / (2 D sigma),  q = 1 + w alpha / (2 D sigma).

For the linear path with w = 2t this is d = x + (2 - t) v, without a division by t.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax.interpolants import paths

State = Any
"""x_NHWC, or a tree of arrays [N, ...]."""

Velocity = Callable[[State, jax.Array], State]
"""(x, t scalar) -> v of the same structure, with guidance if there is any."""

DIFFUSIONS = {
  '2t': lambda path, t: 2 * t,
  '2sigma': lambda path, t: 2 * path.sigma(t),
  'sigma': lambda path, t: path.sigma(t),
}
"""Diffusion coefficients w_t of (2).

'2t' is REPA's code, on every path; '2sigma' SiT's code (its D = sigma), the same thing on the
linear path; 'sigma' what both papers print.
"""


class Step(NamedTuple):
  """Constants of one step, or of many with a leading axis.

  t, t_next: times; dt: t_next - t, rounded once.
  x_weight, v_weight: p and q of (4).
  noise: sqrt(w |dt|), the standard deviation of the step's noise; 0 in a deterministic step.
  """

  t: Any
  t_next: Any
  dt: Any
  x_weight: Any
  v_weight: Any
  noise: Any


def ode_steps(grid: np.ndarray) -> Step:
  """Constants of (1) between neighbours of a falling grid [S+1]; numpy float64 [S]."""
  t = grid[:-1]
  zero = np.zeros_like(t)
  return Step(t, grid[1:], np.diff(grid), zero, zero + 1, zero)


def sde_steps(grid: np.ndarray, path: paths.Path, diffusion: str) -> Step:
  """Constants of (2) between neighbours of a falling grid [S+1]; numpy float64 [S].

  The last step is deterministic but has the drift of the SDE, as in REPA's code: neither an ODE
  step nor a denoising one.
  """
  t, dt = grid[:-1], np.diff(grid)
  w = DIFFUSIONS[diffusion](path, t)
  alpha, sigma, d_alpha, d_sigma = (
    f(t) for f in (path.alpha, path.sigma, path.d_alpha, path.d_sigma)
  )
  half = w / (2 * (alpha * d_sigma - d_alpha * sigma) * sigma)
  noise = np.sqrt(w * np.abs(dt))
  noise[-1] = 0
  return Step(t, grid[1:], dt, -half * d_alpha, 1 + half * alpha, noise)  # (4)


def euler(velocity: Velocity, x: State, step: Step) -> State:
  """(1), first order; one evaluation."""
  return jax.tree.map(lambda x, v: x + step.dt * v, x, velocity(x, step.t))


def heun(velocity: Velocity, x: State, step: Step) -> State:
  """(1), second order: mean of the velocities at both ends of an Euler step; two evaluations."""
  v = velocity(x, step.t)
  v_next = velocity(jax.tree.map(lambda x, v: x + step.dt * v, x, v), step.t_next)
  return jax.tree.map(lambda x, v, v_next: x + step.dt * (v + v_next) / 2, x, v, v_next)


def euler_maruyama(velocity: Velocity, x: State, step: Step, z: State) -> State:
  """(2), one evaluation; z ~ N(0, I) has the shape of x and is not looked at if `noise` is 0."""

  def move(x, v, z):
    drift = step.x_weight * x + step.v_weight * v  # (4)
    return x + step.dt * drift + jnp.where(step.noise > 0, step.noise * z, 0)

  return jax.tree.map(move, x, velocity(x, step.t), z)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
  """A sampler by its step; see `register`.

  step: (velocity, x, constants, z) -> x at the next time; z is the step's noise, or None if the
    sampler is not `noisy`. None for what is not integrated.
  at: where a step evaluates the velocity, one evaluation after the other: 0 at t, 1 at t_next.
  noisy: whether it follows the SDE (2), with its grid of times, instead of (1).
  last: name of the kind of the last step, to t = 0; '' takes this one.
  """

  step: Callable[[Velocity, State, Step, State | None], State] | None
  at: tuple[float, ...] = (0.0,)
  noisy: bool = False
  last: str = ''


KINDS: dict[str, Kind] = {}
"""Samplers by name, as in `sampler.kind`."""


def register(name: str, kind: Kind) -> None:
  """Makes a sampler known by name.

  Raises:
    ValueError: if the name is taken.
  """
  if KINDS.setdefault(name, kind) is not kind:
    raise ValueError(f'a sampler {name!r} exists already')


register('euler_maruyama', Kind(step=euler_maruyama, noisy=True))
register('heun', Kind(step=lambda v, x, step, _: heun(v, x, step), at=(0.0, 1.0), last='euler'))
register('euler', Kind(step=lambda v, x, step, _: euler(v, x, step)))
register('average_velocity', Kind(step=None))  # See `average`.
