"""The blocks, stacked along a leading `layers` axis and scanned, with or without long skips.

Long residual connections (DiverseDiT, arXiv 2603.04239, Eq. 8; after U-ViT, 2209.12152) join block
k of the first half to block L-1-k of the second. The second half is stored mirrored, `second[k]`
being block L-1-k beside `fuse[k]`, and scanned in reverse: so the stored outputs of the first half
are consumed in place, without a flipped copy.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from diversedit_jax import sharding
from diversedit_jax.models import block as block_lib
from diversedit_jax.models import config, groups, taps, tuning


def stacked(make: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs) -> nnx.Module:
  """Makes n modules as one, every parameter (and its logical axes) with a leading `layers` axis."""
  make = nnx.transform_metadata(make, in_axes=0, out_axes=0, partition='layers')
  return jax.vmap(make)(rngs.split(n))


def layer(stack: nnx.Module, i: int) -> nnx.Module:
  """Takes the i-th module out of a stack."""
  return jax.tree.map(lambda leaf: leaf[i], stack)


def _head(stacked: Any, n: int) -> Any:
  return jax.tree.map(lambda leaf: leaf[:n], stacked)


def _tail(stacked: Any, n: int) -> Any:
  return jax.tree.map(lambda leaf: leaf[leaf.shape[0] - n :], stacked)


def block_of(part: str, k: int, depth: int) -> int:
  """Index, from 0, of the block that the k-th module of a part of a `Stack` belongs to."""
  return k if part in ('layers', 'first') else depth - 1 - k


def norms(parts: Mapping[str, Any], depth: int) -> jax.Array:
  """The Euclidean norm of each block's arrays, float32 [depth] in depth order; see `products`."""
  return jnp.sqrt(products(parts, parts, depth))


def products(parts: Mapping[str, Any], others: Mapping[str, Any], depth: int) -> jax.Array:
  """The scalar product of each block's arrays with others, float32 [depth] in depth order.

  parts, others: parameters or gradients of a `Stack`, plain nested dicts with the same arrays; 0
  where some are not there. A long skip counts to the block that it leads to.
  """
  wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def summed(name, n):
    pairs = zip(*(jax.tree.leaves(of.get(name)) for of in (parts, others)), strict=True)
    found = [jnp.sum(wide(x) * wide(y), axis=tuple(range(1, x.ndim))) for x, y in pairs]
    return sum(found, start=jnp.zeros(n, jnp.float32))

  if not parts.keys() & {'first', 'second', 'fuse'}:
    return summed('layers', depth)
  half = depth // 2
  second = summed('second', half) + summed('fuse', half)
  return jnp.concatenate([summed('first', half), jnp.flip(second)])


def _plain(x_NTD, c_ND, block, **given):
  return block(x_NTD, c_ND, **given)


def _fused_after(x_NTD, c_ND, block, fuse, skip_NTD, **given):
  return fuse(block(x_NTD, c_ND, **given), skip_NTD)


def _fused_before(x_NTD, c_ND, block, fuse, skip_NTD, **given):
  return block(fuse(x_NTD, skip_NTD), c_ND, **given)


_FUSED = {'after': _fused_after, 'before': _fused_before}


class Stack(nnx.Module):
  """(x_NTD, c_ND) -> (x_NTD, features): L blocks, with L/2 long skips if `skip` is enabled.

  c_ND is [N, T, D] where `tokens` have a conditioning each, None for blocks that have none.

  `layers` holds all blocks of a model without skips; `first`, `second`, `fuse` those of one with.
  """

  def __init__(
    self, architecture: config.Architecture, execution: config.Execution, *, rngs: nnx.Rngs
  ):
    self.architecture, self.execution = architecture, execution
    block = lambda r: block_lib.of(architecture)(architecture, execution, rngs=r)
    if not architecture.skip.enabled:
      self.layers = stacked(block, architecture.depth, rngs)
    else:
      half = architecture.depth // 2
      self.first = stacked(block, half, rngs)
      self.second = stacked(block, half, rngs)
      fuse = block_lib.ResidualFuse if architecture.skip.residual else block_lib.Fuse
      self.fuse = stacked(lambda r: fuse(architecture, execution, rngs=r), half, rngs)

  def __call__(
    self,
    x_NTD: jax.Array,
    c_ND: jax.Array | None,
    tokens: groups.Whole = groups.WHOLE,
    *,
    tap: taps.Tap,
    blocks: int | None = None,
  ) -> tuple[jax.Array, Any]:
    """All blocks, or the first ones only."""
    depth, skip = self.architecture.depth, self.architecture.skip
    blocks = depth if blocks is None else blocks
    tap = taps.without_first(tap, self.architecture.context_tokens)
    scan = functools.partial(self._scan, c_ND=c_ND, tokens=tokens, tap=tap)
    blocks_of = self.first if skip.enabled else self.layers
    one = lambda x_NTD, attend: layer(blocks_of, 0)(x_NTD, c_ND, attend, tokens)
    carry, indices = (x_NTD, taps.begun(tap, depth, one, x_NTD)), jnp.arange(depth)
    if not skip.enabled:
      modules = (self.layers,)
      (x_NTD, kept), (_, ys) = scan(_plain, carry, _head((modules, indices), blocks))
      return x_NTD, tap.finish(kept, ys)

    half = depth // 2
    first = ((self.first,), indices[:half])
    carry, (skips, ys1) = scan(_plain, carry, _head(first, min(blocks, half)), keep=True)
    if blocks <= half:
      x_NTD, kept = carry
      return x_NTD, tap.finish(kept, ys1)
    second = ((self.second, self.fuse, skips), depth - 1 - indices[:half])
    (x_NTD, kept), (_, ys2) = scan(
      _FUSED[skip.placement], carry, _tail(second, blocks - half), reverse=True
    )
    in_order = lambda a, b: jnp.concatenate([a, jnp.flip(b, axis=0)])
    return x_NTD, tap.finish(kept, jax.tree.map(in_order, ys1, ys2))

  def _scan(self, apply, carry, xs, *, c_ND, tokens, tap, keep=False, reverse=False):
    """Runs (x_NTD, kept) through each of the stacked modules; ys are (x if kept, the tap's)."""
    length = jax.tree.leaves(xs)[0].shape[0]
    unroll = tuning.blocks_per_step(self.execution, length)
    apply = taps.showing(functools.partial(apply, tokens=tokens), tap, tokens.attend)
    apply = tuning.recomputed(apply, self.execution.remat, unrolled=unroll == length)

    def body(carry, xs):
      (x_NTD, kept), (modules, i) = carry, xs
      x_NTD, *qk = apply(x_NTD, c_ND, *modules)
      x_NTD = sharding.constrain_batch(x_NTD)
      kept, y = tap.step(kept, x_NTD, i, *qk)
      return (x_NTD, kept), (x_NTD if keep else (), y)

    return jax.lax.scan(body, carry, xs, reverse=reverse, unroll=unroll)
