"""The blocks, stacked along a leading `layers` axis and scanned, with or without long skips.

Long residual connections (DiverseDiT, arXiv 2603.04239, Eq. 8; after U-ViT, 2209.12152) join block
k of the first half to block L-1-k of the second. The second half is stored mirrored, `second[k]`
being block L-1-k beside `fuse[k]`, and scanned in reverse: so the stored outputs of the first half
are consumed in place, without a flipped copy.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import sharding
from diversedit_jax.models import layers, taps

REMAT_POLICIES: dict[str, Callable[..., Any] | None] = {
  'none': None,
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  'names': jax.checkpoint_policies.save_only_these_names('qkv', 'attention', 'fc1'),
}
"""What the backward pass keeps: all that `layers` keeps, block inputs, products, named values."""

SKIP_PLACEMENTS = ('after', 'before')


def stacked(make: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs) -> nnx.Module:
  """n modules as one, every parameter (and its logical axes) with a leading `layers` axis."""
  make = nnx.transform_metadata(make, in_axes=0, out_axes=0, partition='layers')
  return jax.vmap(make)(rngs.split(n))


def layer(stack: nnx.Module, i: int) -> nnx.Module:
  """The i-th module of a stack."""
  return jax.tree.map(lambda leaf: leaf[i], stack)


def _head(stacked: Any, n: int) -> Any:
  return jax.tree.map(lambda leaf: leaf[:n], stacked)


def _tail(stacked: Any, n: int) -> Any:
  return jax.tree.map(lambda leaf: leaf[leaf.shape[0] - n :], stacked)


def looped(network: nnx.Module) -> nnx.Module:
  """Puts the blocks into a loop, in place, if the config leaves that open; for forward passes.

  What a GPU gains without a loop it gains in the backward pass; a sampler compiles in a seventh of
  the time with one (benchmarks/NOTES.md).
  """
  for _, module in nnx.iter_modules(network):
    if isinstance(module, Stack) and not module.config.unroll:
      module.config = dataclasses.replace(module.config, unroll=1)
  return network


class Stack(nnx.Module):
  """(x_NTD, c_ND) -> (x_NTD, features): L blocks, with L/2 long skips if `config.skip` is set.

  `layers` holds all blocks of a model without skips; `first`, `second`, `fuse` those of one with.
  """

  def __init__(self, config, *, rngs: nnx.Rngs):
    self.config = config
    block = lambda r: layers.Block(config, rngs=r)
    if config.skip is None:
      self.layers = stacked(block, config.depth, rngs)
    else:
      half = config.depth // 2
      self.first = stacked(block, half, rngs)
      self.second = stacked(block, half, rngs)
      self.fuse = stacked(lambda r: layers.Fuse(config, rngs=r), half, rngs)

  def __call__(
    self, x_NTD: jax.Array, c_ND: jax.Array, *, tap: taps.Tap, blocks: int | None = None
  ) -> tuple[jax.Array, Any]:
    """All blocks, or the first ones only."""
    depth = self.config.depth
    blocks = depth if blocks is None else blocks
    kept = tap.init(x_NTD, depth)
    if self.config.skip is None:
      (x_NTD, kept), (_, ys) = self._scan(
        self._plain(c_ND, tap), (x_NTD, kept), (_head(self.layers, blocks), jnp.arange(blocks))
      )
      return x_NTD, tap.finish(kept, ys)

    half, kept_half = jnp.arange(depth // 2), min(blocks, depth // 2)
    (x_NTD, kept), (skips, ys1) = self._scan(
      self._plain(c_ND, tap, keep=True),
      (x_NTD, kept),
      (_head(self.first, kept_half), half[:kept_half]),
    )
    if blocks <= depth // 2:
      return x_NTD, tap.finish(kept, ys1)
    mirrored = (self.second, self.fuse, skips, depth - 1 - half)
    (x_NTD, kept), ys2 = self._scan(
      self._fused(c_ND, tap), (x_NTD, kept), _tail(mirrored, blocks - depth // 2), reverse=True
    )
    in_order = lambda a, b: jnp.concatenate([a, jnp.flip(b, axis=0)])
    return x_NTD, tap.finish(kept, jax.tree.map(in_order, ys1, ys2))

  def _plain(self, c_ND, tap, *, keep=False):
    def body(carry, xs):
      (x, kept), (block, i) = carry, xs
      x = sharding.constrain_batch(block(x, c_ND))
      kept, y = tap.step(kept, x, i)
      return (x, kept), (x if keep else (), y)

    return body

  def _fused(self, c_ND, tap):
    after = self.config.skip.placement == 'after'

    def body(carry, xs):
      (x, kept), (block, fuse, skip, i) = carry, xs
      x = fuse(block(x, c_ND), skip) if after else block(fuse(x, skip), c_ND)
      x = sharding.constrain_batch(x)
      kept, y = tap.step(kept, x, i)
      return (x, kept), y

    return body

  def _scan(self, body, carry, xs, *, reverse=False):
    length, unroll = jax.tree.leaves(xs)[0].shape[0], self.config.blocks_per_step
    if self.config.remat != 'none':
      # Only a real loop keeps the compiler from undoing the recomputation by itself.
      policy = REMAT_POLICIES[self.config.remat]
      body = jax.checkpoint(body, prevent_cse=unroll >= length, policy=policy)
    return jax.lax.scan(body, carry, xs, reverse=reverse, unroll=min(unroll, length))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Skip:
  """Long residual connections; fused after the later block (released code) or before it (paper)."""

  placement: str = 'after'
