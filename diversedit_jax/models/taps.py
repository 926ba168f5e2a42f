"""What to keep of the block outputs: a tap is folded over the blocks while they run.

A tap never asks for more memory than its features need: a running sum costs one activation, chosen
blocks cost as many activations as there are blocks chosen, and no tap costs nothing.

A tap may also ask for the queries and keys of each block, which a fused kernel would not give back:
they are what goes into it. So a block takes its attention as an argument, and `showing`
puts one in its place that keeps them.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from diversedit_jax.models import attention as attention_lib


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tap:
  """Three pure functions over block outputs f_NTD of block index i = 0 .. L-1, in depth order.

  init(x_NTD, depth) -> carry: before the first block; x_NTD gives shape and dtype.
  step(carry, f_NTD, i) -> (carry, y): after each block; `i` is traced.
  finish(carry, ys) -> features: at the end, every y stacked to [L, ...] in depth order.
  attention: whether `init` and `step` take q_NTHd and k_NTHd of the block after these arguments,
    as its attention takes them; `init` their shapes.
  """

  init: Callable[..., Any]
  step: Callable[..., tuple[Any, Any]]
  finish: Callable[[Any, Any], Any]
  attention: bool = False


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
  return _kept(blocks, lambda f: f)


def attention(blocks: Sequence[int] | jax.Array) -> Tap:
  """(queries, keys) of the chosen blocks (from 0), [k, N, T, H, d] each, in the compute dtype."""
  return _kept(blocks, lambda f, q, k: (q, k), attention=True)


def _kept(blocks, what, **more):
  """A tap that keeps `what` the chosen blocks show."""
  blocks_k = jnp.asarray(blocks, jnp.int32)

  def init(x, depth, *qk):
    slots = lambda x: jnp.zeros((blocks_k.shape[0] + 1, *x.shape), x.dtype)
    return jax.tree.map(slots, what(x, *qk))

  def step(carry, f, i, *qk):
    # The last slot takes the blocks nobody asked for.
    hit = blocks_k == i
    slot = jnp.where(jnp.any(hit), jnp.argmax(hit), blocks_k.shape[0])
    put = lambda kept, x: jax.lax.dynamic_update_index_in_dim(kept, x, slot, 0)
    return jax.tree.map(put, carry, what(f, *qk)), ()

  finish = lambda carry, ys: jax.tree.map(lambda kept: kept[:-1], carry)
  return Tap(init=init, step=step, finish=finish, **more)


def without_first(tap: Tap, count: int) -> Tap:
  """The tap over block outputs, queries and keys without the first tokens."""
  if not count:
    return tap
  rest = lambda arrays: [x[:, count:] for x in arrays]
  # Queries and keys are given to `init` by their shapes alone.
  shapes = lambda qk: jax.eval_shape(rest, qk)
  return dataclasses.replace(
    tap,
    init=lambda x, depth, *qk: tap.init(x[:, count:], depth, *shapes(qk)),
    step=lambda carry, f, i, *qk: tap.step(carry, f[:, count:], i, *rest(qk)),
  )


def joined(taps: Mapping[str, Tap]) -> Tap:
  """Several taps at once; features are a dict by name."""
  taps = dict(taps)
  asked = lambda tap, qk: qk if tap.attention else ()

  def init(x, depth, *qk):
    return {name: tap.init(x, depth, *asked(tap, qk)) for name, tap in taps.items()}

  def step(carry, f, i, *qk):
    stepped = {name: tap.step(carry[name], f, i, *asked(tap, qk)) for name, tap in taps.items()}
    return {k: c for k, (c, _) in stepped.items()}, {k: y for k, (_, y) in stepped.items()}

  return Tap(
    init=init,
    step=step,
    finish=lambda carry, ys: {
      name: tap.finish(carry[name], ys[name]) for name, tap in taps.items()
    },
    attention=any(tap.attention for tap in taps.values()),
  )


def showing(
  block: Callable[..., jax.Array],
  tap: Tap,
  attend: Callable[..., jax.Array] = attention_lib.attend,
) -> Callable[..., tuple[jax.Array, ...]]:
  """A block that gives (f_NTD, q_NTHd, k_NTHd) to a tap that asks for these, (f_NTD,) to others.

  block: function (*args, attend) -> f_NTD that calls `attend` once, with the arguments of
    `attention.attend`.
  attend: what it is to call.
  """
  if not tap.attention:
    return lambda *args: (block(*args, attend=attend),)

  def shown(*args):
    seen = []

    def noting(q_NTHd, k_NTHd, v_NTHd, implementation):
      seen.extend((q_NTHd, k_NTHd))
      return attend(q_NTHd, k_NTHd, v_NTHd, implementation)

    return block(*args, attend=noting), *seen

  return shown


def begun(tap: Tap, depth: int, block: Callable[..., jax.Array], x_NTD: jax.Array) -> Any:
  """The carry of a tap before the first block.

  block: (x_NTD, attend) -> f_NTD; traced for its shapes, and only if the tap asks for attention.
  """
  qk = jax.eval_shape(showing(block, tap), x_NTD)[1:] if tap.attention else ()
  return tap.init(x_NTD, depth, *qk)
