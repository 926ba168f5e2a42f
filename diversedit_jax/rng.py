"""Randomness as a function of (seed, name, step), so that resuming needs only the step."""

from collections.abc import Sequence
import math
import zlib

import jax
import jax.numpy as jnp


def stream(key: jax.Array, name: str, step: jax.Array | int | None = None) -> jax.Array:
  """Key of the named stream at a step: `fold_in(fold_in(key, crc32(name)), step)`."""
  key = jax.random.fold_in(key, zlib.crc32(name.encode()))
  return key if step is None else jax.random.fold_in(key, step)


def normal(key: jax.Array, shape: Sequence[int], dtype: jnp.dtype = jnp.float32) -> jax.Array:
  """`jax.random.normal` of [N, ...], number for number, drawn as a matrix of N rows.

  XLA:CPU compiles the loop of Threefry in a second for four axes, and in a fifth of it for two.
  """
  return jax.random.normal(key, (shape[0], math.prod(shape[1:])), dtype).reshape(shape)


def per_example(key: jax.Array, indices_N: jax.Array) -> jax.Array:
  """One key [N] for each global example index: independent of batch size and of devices."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(indices_N))
