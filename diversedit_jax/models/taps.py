"""What to keep of the block outputs: a tap is folded over the blocks while they run.

A tap never asks for more memory than its features need: a running sum costs one activation, chosen
blocks cost as many activations as there are blocks chosen, and no tap costs nothing.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tap:
  """Three pure functions over block outputs f_NTD of block index i = 0 .. L-1, in depth order.

  init(x_NTD, depth) -> carry: before the first block; x_NTD gives shape and dtype.
  step(carry, f_NTD, i) -> (carry, y): after each block; `i` is traced.
  finish(carry, ys) -> features: at the end, every y stacked to [L, ...] in depth order.
  """

  init: Callable[[jax.Array, int], Any]
  step: Callable[[Any, jax.Array, jax.Array], tuple[Any, Any]]
  finish: Callable[[Any, Any], Any]


def nothing() -> Tap:
  """Keeps nothing; features are None."""
  return Tap(
    init=lambda x, depth: (), step=lambda carry, f, i: ((), ()), finish=lambda carry, ys: None
  )


def every(function: Callable[[jax.Array], Any] = lambda f: f) -> Tap:
  """`function(f_NTD)` of every block, stacked [L, ...]; all activations by default."""
  return Tap(
    init=lambda x, depth: (),
    step=lambda carry, f, i: ((), function(f)),
    finish=lambda carry, ys: ys,
  )


def token_mean() -> Tap:
  """The mean over tokens of every block, [L, N, D]."""
  return every(lambda f_NTD: jnp.mean(f_NTD, axis=1))


def chosen(blocks: Sequence[int] | jax.Array) -> Tap:
  """The outputs of the chosen blocks (from 0, may be traced), [k, N, T, D] in that order."""
  blocks_k = jnp.asarray(blocks, jnp.int32)

  def init(x, depth):
    return jnp.zeros((blocks_k.shape[0] + 1, *x.shape), x.dtype)

  def step(carry, f, i):
    # The last slot takes the blocks nobody asked for.
    hit = blocks_k == i
    slot = jnp.where(jnp.any(hit), jnp.argmax(hit), blocks_k.shape[0])
    return jax.lax.dynamic_update_index_in_dim(carry, f, slot, 0), ()

  return Tap(init=init, step=step, finish=lambda carry, ys: carry[:-1])


def joined(taps: Mapping[str, Tap]) -> Tap:
  """Several taps at once; features are a dict by name."""
  taps = dict(taps)

  def step(carry, f, i):
    stepped = {name: tap.step(carry[name], f, i) for name, tap in taps.items()}
    return {k: c for k, (c, _) in stepped.items()}, {k: y for k, (_, y) in stepped.items()}

  return Tap(
    init=lambda x, depth: {name: tap.init(x, depth) for name, tap in taps.items()},
    step=step,
    finish=lambda carry, ys: {
      name: tap.finish(carry[name], ys[name]) for name, tap in taps.items()
    },
  )
