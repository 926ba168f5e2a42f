"""Tokens in groups, each with a conditioning of its own (Self-Flow, arXiv 2603.06507).

Tokens are sorted by group before the first block, and in all blocks a group is a slice of known
length. Their places go with them: in the tokens, or by `arranged` where they are rotary.

  spread    v [N*G, D], a row for each example and group -> [N, T, D], at each token its group's row
  attend    softmax(q k / sqrt(d)) v among all tokens, or within each group (arXiv 2607.02508),
            which costs sum_g T_g^2 instead of T^2

What leaves the blocks, through taps or at the end, is back in its place. So conditionings are
computed once for each group, and nothing is gathered in a block. `WHOLE` is the ordinary case.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types
from diversedit_jax.models import attention, taps


@dataclasses.dataclass(frozen=True)
class Whole:
  """All tokens of an example as one group."""

  def rows(self, t_N: jax.Array, y_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Times and labels of the rows of the conditioning."""
    types.check('t', t_N, 'N', N=y_N.shape[0])
    return t_N, y_N

  def sorted(self, x_NTD: jax.Array) -> jax.Array:
    """Tokens as the blocks take them."""
    return x_NTD

  def restored(self, x_NTD: jax.Array) -> jax.Array:
    """The inverse of `sorted`."""
    return x_NTD

  def tap(self, tap: taps.Tap) -> taps.Tap:
    """The tap over block outputs as the blocks give them."""
    return tap

  def spread(self, v_ND: jax.Array) -> jax.Array:
    """[N, 1, D], one vector for all tokens."""
    return v_ND[:, None]

  def arranged(self, table_Td: jax.Array) -> jax.Array:
    """A row for each token of the grid, as the blocks take tokens: [1 or N, T, d]."""
    return table_Td[None]

  def attend(
    self, q_NTHd: jax.Array, k_NTHd: jax.Array, v_NTHd: jax.Array, implementation: str
  ) -> jax.Array:
    """Attention among all tokens, see `attention.attend`."""
    return attention.attend(q_NTHd, k_NTHd, v_NTHd, implementation)

  def each(self) -> 'Whole':
    """The same tokens in blocks that condition each by a vector of its own, [N, T, D]."""
    return Each(self)


@dataclasses.dataclass(frozen=True)
class Each(Whole):
  """Tokens as blocks see them, see `Whole.each`; they are already in the blocks' order."""

  tokens: Whole

  def spread(self, v_NTD: jax.Array) -> jax.Array:
    return v_NTD

  def arranged(self, table_Td: jax.Array) -> jax.Array:
    return self.tokens.arranged(table_Td)

  def attend(
    self, q_NTHd: jax.Array, k_NTHd: jax.Array, v_NTHd: jax.Array, implementation: str
  ) -> jax.Array:
    return self.tokens.attend(q_NTHd, k_NTHd, v_NTHd, implementation)


@dataclasses.dataclass(frozen=True)
class Grouped(Whole):
  """Tokens sorted by group; see `grouped`.

  order_NT: the token at each place. place_NT: the place of each token.
  sizes: tokens of each group. separate: whether tokens attend within their group only.
  """

  order_NT: jax.Array
  place_NT: jax.Array
  sizes: tuple[int, ...]
  separate: bool

  def rows(self, t_NG: jax.Array, y_N: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Times of groups and labels of examples, [N*G] each."""
    types.check('t', t_NG, 'N G', N=y_N.shape[0], G=len(self.sizes))
    return t_NG.reshape(-1), jnp.repeat(y_N, len(self.sizes))

  def sorted(self, x_NTD: jax.Array) -> jax.Array:
    types.check('x', x_NTD, 'N T D', N=self.order_NT.shape[0], T=sum(self.sizes))
    return _taken(x_NTD, self.order_NT)

  def restored(self, x_NTD: jax.Array) -> jax.Array:
    return _taken(x_NTD, self.place_NT)

  def tap(self, tap: taps.Tap) -> taps.Tap:
    """The tap over block outputs, queries and keys in the order of the model's tokens."""

    def step(carry, f_NTD, i, *qk_NTHd):
      return tap.step(carry, self.restored(f_NTD), i, *map(self.restored, qk_NTHd))

    return dataclasses.replace(tap, step=step)

  def spread(self, v_MD: jax.Array) -> jax.Array:
    """[N*G, D] -> [N, T, D], sorted."""
    v_NGD = v_MD.reshape(-1, len(self.sizes), v_MD.shape[-1])
    n, _, d = v_NGD.shape
    parts = (jnp.broadcast_to(v_NGD[:, g, None], (n, t, d)) for g, t in enumerate(self.sizes))
    return jnp.concatenate([*parts], axis=1)

  def arranged(self, table_Td: jax.Array) -> jax.Array:
    return table_Td[self.order_NT]

  def attend(
    self, q_NTHd: jax.Array, k_NTHd: jax.Array, v_NTHd: jax.Array, implementation: str
  ) -> jax.Array:
    """Attention among all tokens or, where `separate`, of each group by itself."""
    if not self.separate:
      return super().attend(q_NTHd, k_NTHd, v_NTHd, implementation)
    cuts = np.cumsum(self.sizes)[:-1]
    groups = zip(*(jnp.split(x, cuts, axis=1) for x in (q_NTHd, k_NTHd, v_NTHd)), strict=True)
    out = [
      attention.attend(*qkv, attention.for_tokens(implementation, t))
      for qkv, t in zip(groups, self.sizes, strict=True)
    ]
    return jnp.concatenate(out, axis=1)


WHOLE = Whole()
jax.tree_util.register_dataclass(Whole)
jax.tree_util.register_dataclass(Each)
jax.tree_util.register_dataclass(
  Grouped, data_fields=['order_NT', 'place_NT'], meta_fields=['sizes', 'separate']
)


def grouped(order_NT: jax.Array, sizes: tuple[int, ...], *, separate: bool = False) -> Grouped:
  """The first sizes[0] tokens of each row of `order_NT` are the first group, and so on.

  order_NT: permutations of 0 .. T-1. separate: whether tokens attend within their group only.

  Raises:
    ValueError: the sizes do not add up to T.
  """
  types.check('order', order_NT, 'N T', T=sum(sizes))
  return Grouped(order_NT, jnp.argsort(order_NT, axis=1), tuple(sizes), separate)


def sizes(shares: tuple[float, ...], tokens: int) -> tuple[int, ...]:
  """Whole numbers of tokens by shares: rounded down, what is left to the largest fractions.

  The first of equal fractions goes first.
  """
  exact = np.asarray(shares, np.float64) / np.sum(shares) * tokens
  found = np.floor(exact).astype(int)
  left = np.argsort(found - exact, kind='stable')[: tokens - found.sum()]
  found[left] += 1
  return tuple(found.tolist())


def _taken(x_NTD, order_NT):
  """x[n, order[n, t]], whose gradient adds nothing up: no token is taken twice."""
  take = lambda x_TD, order_T: x_TD.at[order_T].get(unique_indices=True, mode='promise_in_bounds')
  return jax.vmap(take)(x_NTD, order_NT)
