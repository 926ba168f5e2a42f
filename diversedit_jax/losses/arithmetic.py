"""Arithmetic that the losses share: unit vectors, cosines, groups; in float32 or better."""

import jax
import jax.numpy as jnp

from diversedit_jax import types

SHORTEST = 1e-12  # Vectors shorter than this count as zero.


def at_least_float32(x: jax.Array) -> jax.Array:
  """x in float32, or unchanged if it has more bits."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def rms(x: jax.Array, axis: int | tuple[int, ...] | None = None) -> jax.Array:
  """Root mean square over some axes, or over all."""
  return jnp.sqrt(jnp.mean(jnp.square(at_least_float32(x)), axis=axis))


def unit(x: jax.Array, axis: int = -1) -> jax.Array:
  """x / |x| along an axis; vectors shorter than `SHORTEST` become 0 with gradient 0."""
  return x * inverse_length(jnp.sum(jnp.square(x), axis=axis, keepdims=True))


def inverse_length(squares: jax.Array) -> jax.Array:
  """1 / |x| from |x|^2; 0 with gradient 0 for vectors shorter than `SHORTEST`."""
  counts = squares > SHORTEST**2
  # The inner `where` keeps the unused branch, and so its gradient, finite.
  return jnp.where(counts, jax.lax.rsqrt(jnp.where(counts, squares, 1)), 0)


def cosine(x: jax.Array, y: jax.Array, axis: int, shortest: float) -> jax.Array:
  """Cosines of x and y along an axis as PyTorch bounds them: x / max(|x|, shortest), y likewise.

  A vector shorter than `shortest` gets no gradient: the true one, up to 1 / shortest, would fill a
  clipped update.
  """
  return jnp.sum(_bounded(x, axis, shortest) * _bounded(y, axis, shortest), axis=axis)


def student_and_teacher(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Features [N, T, D] and their targets in float32 or better, the targets held constant.

  Raises:
    ValueError: if the shapes differ or are not of rank 3.
  """
  types.check('student', student, 'N T D')
  if student.shape != teacher.shape:
    raise ValueError(f'student has shape {student.shape}, teacher {teacher.shape}')
  return at_least_float32(student), jax.lax.stop_gradient(at_least_float32(teacher))


def check_groups(groups: int, batch: int) -> None:
  """Refuses a number of groups that does not divide the batch (UserError)."""
  if groups < 1 or batch % groups:
    raise types.UserError(f'{groups=} must be positive and divide the batch of {batch}')


def _bounded(x: jax.Array, axis: int, shortest: float) -> jax.Array:
  squares = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
  counts = squares > shortest**2
  # The inner `where` keeps the unused branch, and so its gradient, finite.
  scale = 1 / jnp.sqrt(jnp.where(counts, squares, 1))
  return jnp.where(counts, x * scale, jax.lax.stop_gradient(x) / shortest)
