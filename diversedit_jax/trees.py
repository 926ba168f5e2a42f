"""Questions about trees of arrays and about names: paths, counts, norms, "did you mean"."""

from collections.abc import Callable, Collection, Iterable
import difflib
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import types

_MOST_NAMES = 40  # That a message lists.


def path_name(path: tuple[Any, ...]) -> str:
  """'model/blocks/layers/attn/qkv/kernel' for a key path of `jax.tree_util`."""
  names = [str(getattr(k, 'key', getattr(k, 'name', getattr(k, 'idx', k)))) for k in path]
  return '/'.join(n for n in names if n != 'value')


def named_leaves(tree: Any) -> dict[str, Any]:
  """Leaves by path, in tree order."""
  return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def without(tree: dict[str, Any], names: Collection[str], above: str = '') -> dict[str, Any]:
  """Nested dicts without the leaves of some paths; the tree itself if there are none.

  above: what stands before the names in the tree.
  """
  if not names:
    return tree
  kept = {}
  for key, node in tree.items():
    name = f'{above}{key}'
    if not isinstance(node, dict):
      kept |= {} if name in names else {key: node}
    elif left := without(node, names, f'{name}/'):
      kept[key] = left
  return kept


def joined(part: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any]:
  """The whole with those leaves that a part of it, as from `without`, has of its own."""
  return {
    key: joined(part.get(key, {}), node) if isinstance(node, dict) else part.get(key, node)
    for key, node in whole.items()
  }


def count(tree: Any) -> int:
  """Number of scalars in a tree of arrays or shapes."""
  return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def num_bytes(tree: Any) -> int:
  """Bytes of a tree of arrays or shapes, as if it lay on one device."""
  return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def global_norm(tree: Any) -> jax.Array:
  """Euclidean norm over all leaves, accumulated in float32 at least."""
  wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))
  squares = [jnp.sum(jnp.square(wide(x))) for x in jax.tree.leaves(tree)]
  return jnp.sqrt(jnp.sum(jnp.stack(squares)))


def all_finite(tree: Any) -> jax.Array:
  """True if no floating-point leaf holds a NaN or an infinity."""
  return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in _inexact(tree)], bool))


def finite_sums(tree: Any) -> jax.Array:
  """True only if `all_finite` is, in a third of its time on a CPU.

  A sum with a NaN or an infinity is one itself. False says nothing: huge numbers overflow it too.
  """
  return jnp.all(jnp.array([jnp.isfinite(jnp.sum(x)) for x in _inexact(tree)], bool))


def _inexact(tree):
  return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]


def fingerprint(
  tree: Any, shape_of: Callable[[str, tuple[int, ...]], tuple[int, ...]] = lambda name, shape: shape
) -> str:
  """16 hex digits that other values do not share but by chance; the same however they are placed.

  Sums over the bits of each value scrambled with its place, in whole numbers, which devices may add
  in any order. It tells mistakes apart, not forgeries.

  shape_of: (path, shape) -> the shape that is digested, if an array was of another form before.
  """
  hashed = hashlib.sha256()
  for name, leaf in named_leaves(tree).items():
    sums = [int(s) for s in _scrambled_sums(leaf)]
    hashed.update(f'{name} {leaf.dtype} {shape_of(name, leaf.shape)} {sums}\n'.encode())
  return hashed.hexdigest()[:16]


def checksums(tree: Any) -> dict[str, jax.Array]:
  """A checksum of each leaf by path, uint32; the same however the leaves are placed. Traceable.

  The sum over the values' bits, each times an odd number of its place. One value that differs is
  always seen, several but for one chance in 2**32. A fifth of the work of `fingerprint`.
  """
  return {name: _weighted_bits(jnp.asarray(leaf)) for name, leaf in named_leaves(tree).items()}


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """'; did you mean X?' for the nearest of the known names, or the first of all if none is near."""
  known = sorted(known)
  near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
  if near:
    return f'; did you mean {near[0]!r}?'
  more = f', ... ({len(known)} in all)' * (len(known) > _MOST_NAMES)
  return f'; known: {", ".join(known[:_MOST_NAMES])}{more}'


def check_known(name: str, value: object, known: Iterable[str]) -> None:
  """Refuses a value that is not among the known ones, naming the nearest.

  Raises:
    UserError: as said.
  """
  if value not in known:
    raise types.UserError(f'unknown {name} {value!r}{did_you_mean(str(value), known)}')


def _bits(x):
  return jax.lax.bitcast_convert_type(x, f'uint{8 * x.dtype.itemsize}').astype(jnp.uint32)


def _weighted_bits(x):
  bits, place, stride = _bits(x), jnp.uint32(0), 1
  for axis in reversed(range(x.ndim)):  # Not one long iota, which the devices could not split.
    place += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
    stride *= x.shape[axis]
  # A sign alone would be the highest bit of the product, where two of them cancel.
  return jnp.sum((bits ^ (bits >> 15)) * (2 * place + 1), dtype=jnp.uint32)


@jax.jit
def _scrambled_sums(x):
  """Two sums; scrambled, because of plain bits two changed signs may cancel."""
  bits = _bits(x)
  places = _scramble(jax.lax.iota(jnp.uint32, x.size).reshape(x.shape))
  total = lambda h: jnp.sum(_scramble(h), dtype=jnp.uint32)
  return total(bits ^ places), total(bits + places)


def _scramble(h):
  """The finaliser of MurmurHash3, uint32: each bit of the input moves half of the output's."""
  h = (h ^ (h >> 16)) * jnp.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * jnp.uint32(0xC2B2AE35)
  return h ^ (h >> 16)
