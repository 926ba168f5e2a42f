"""Randomness as a function of (seed, name, step), so that resuming needs only the step."""

import zlib

import jax
import jax.numpy as jnp


def stream(key: jax.Array, name: str, step: jax.Array | int | None = None) -> jax.Array:
  """Key of the named stream at a step: `fold_in(fold_in(key, crc32(name)), step)`."""
  key = jax.random.fold_in(key, zlib.crc32(name.encode()))
  return key if step is None else jax.random.fold_in(key, step)


def per_example(key: jax.Array, indices_N: jax.Array) -> jax.Array:
  """One key [N] for each global example index: independent of batch size and of devices."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.asarray(indices_N))
