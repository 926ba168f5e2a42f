"""Alignment of block features with a teacher's: REPA (arXiv 2410.06940) and SRA (2505.02831).

REPA aligns projected features with those of a frozen encoder, SRA a head's output with features
of the averaged network, which sees the same image at an earlier time. Both losses give one value
per example; the batch mean of either is the scalar of the released code. The target is held
constant. Everything is computed in float32 or better.

A cosine here is that of x / max(|x|, eps) and y / max(|y|, eps), as in PyTorch: eps = 1e-12 for
`normalize` (REPA) and 1e-8 for `cosine_similarity` (SRA), whose older versions bounded the product
of the norms instead. A vector shorter than eps gets no gradient: the true one, up to 1 / eps,
would fill a clipped update.
"""

import jax
import jax.numpy as jnp

from diversedit_jax import types
from diversedit_jax.losses import diversity

KINDS = ('smooth_l1', 'l2', 'l1', 'cosine')
AXES = ('features', 'tokens')
BETA = 0.05  # SRA's smooth L1.
REPA_SHORTEST = 1e-12
SRA_SHORTEST = 1e-8


def cosine(projected_NTZ: jax.Array, target_NTZ: jax.Array) -> jax.Array:
  """REPA: minus the mean over tokens of the cosine between projection and target.

  The total of REPA adds 0.5 times the mean over encoders and examples.

  Args:
    projected_NTZ: output of one encoder's projector, any float type.
    target_NTZ: features of that encoder, same shape; no gradient reaches them.

  Returns:
    loss_N in [-1, 1], in float32 (float64 if either input is float64).

  Raises:
    ValueError: if the shapes differ or are not of rank 3.
  """
  projected, target = _checked(projected_NTZ, target_NTZ, 'projected_NTZ', 'target_NTZ', 'N T Z')
  return -jnp.mean(_similarity(projected, target, -1, REPA_SHORTEST), axis=1)


def self_alignment(
  student_NTD: jax.Array,
  teacher_NTD: jax.Array,
  *,
  kind: str,
  axis: str = 'features',
  beta: float = BETA,
) -> jax.Array:
  """SRA: how far the student's features are from the teacher's.

  Args:
    student_NTD: output of the student's head, any float type.
    teacher_NTD: features of the averaged network, same shape; no gradient reaches them.
    kind: 'smooth_l1', 'l2' (squared error) or 'l1', the mean over tokens and features; or
      'cosine', the mean of 1 - cos.
    axis: of the cosine: 'features', one cosine per token, or 'tokens', one per feature channel,
      which is what the released code computes because it names no axis.
    beta: of 'smooth_l1': d^2 / (2 beta) where |d| < beta, |d| - beta / 2 elsewhere.

  Returns:
    loss_N >= 0, in float32 (float64 if either input is float64).

  Raises:
    UserError: for an unknown kind or axis, for beta <= 0, and for an axis or a beta that the kind
      would ignore.
    ValueError: if the shapes differ or are not of rank 3.
  """
  check_self_alignment(kind, axis, beta)
  student, teacher = _checked(student_NTD, teacher_NTD, 'student_NTD', 'teacher_NTD', 'N T D')
  if kind == 'cosine':
    return 1 - jnp.mean(similarity(student, teacher, axis), axis=1)
  error = student - teacher
  if kind == 'l2':
    cost = jnp.square(error)
  elif kind == 'l1':
    cost = jnp.where(error == 0, 0, jnp.abs(error))  # JAX gives |x| the slope 1 at 0.
  else:
    size = jnp.abs(error)
    cost = jnp.where(size < beta, jnp.square(error) / (2 * beta), size - beta / 2)
  return jnp.mean(cost, axis=(1, 2))


def similarity(x_NTD: jax.Array, y_NTD: jax.Array, axis: str = 'features') -> jax.Array:
  """SRA's cosines: [N, T] along the features, [N, D] along the tokens; float32 or better.

  Raises:
    UserError: for an unknown axis.
  """
  if axis not in AXES:
    raise types.UserError(f'axis is {axis!r}, expected one of {AXES}')
  x_NTD, y_NTD = diversity.at_least_float32(x_NTD), diversity.at_least_float32(y_NTD)
  return _similarity(x_NTD, y_NTD, 1 if axis == 'tokens' else 2, SRA_SHORTEST)


def teacher_time(t_N: jax.Array, u_N: jax.Array, t_max: float | jax.Array) -> jax.Array:
  """SRA: time of the teacher's input, clip(t - t_max u, 0, 1), for u uniform in [0, 1); [N]."""
  return jnp.clip(t_N - t_max * u_N, 0, 1)


def self_alignment_weight(
  step: int | jax.Array,
  *,
  weight: float,
  decay_after: float,
  decay_epochs: float,
  steps_per_epoch: int,
) -> jax.Array:
  """SRA: weight of the loss, which falls by 10 in every `decay_epochs` after `decay_after`.

  weight * 10^-k with k = max(0, floor(step / steps_per_epoch) - decay_after) / decay_epochs. The
  released smooth L1 at 256^2 is weight 0.2, decay_after 149, decay_epochs 1000.

  Args:
    step: number of updates done, may be traced.
    weight: at the beginning.
    decay_after: last epoch, counted from 0, with the full weight.
    decay_epochs: epochs in which the weight falls to a tenth; 0 keeps it constant.
    steps_per_epoch: updates in an epoch.

  Returns:
    The weight, a float32 scalar.

  Raises:
    UserError: if decay_after or decay_epochs is negative, or steps_per_epoch less than 1.
  """
  if decay_after < 0 or decay_epochs < 0:
    raise types.UserError(f'{decay_after=} and {decay_epochs=} must not be negative')
  if steps_per_epoch < 1:
    raise types.UserError(f'{steps_per_epoch=} must be at least 1')
  if decay_epochs == 0:
    return jnp.asarray(weight, jnp.float32)
  epoch = jnp.asarray(step, jnp.int32) // steps_per_epoch
  late = jnp.maximum(epoch - decay_after, 0).astype(jnp.float32)
  return jnp.float32(weight) * jnp.power(jnp.float32(10), -late / decay_epochs)


def check_self_alignment(kind: str, axis: str, beta: float) -> None:
  """Refuses what no variant of `self_alignment` has or would use, with a UserError."""
  for name, value, known in (('kind', kind, KINDS), ('axis', axis, AXES)):
    if value not in known:
      raise types.UserError(f'{name} is {value!r}, expected one of {known}')
  if beta <= 0:
    raise types.UserError(f'{beta=} must be positive')
  if kind != 'cosine' and axis != 'features':
    raise types.UserError(f"axis is {axis!r}, but only kind 'cosine' has an axis, not {kind!r}")
  if kind != 'smooth_l1' and beta != BETA:
    raise types.UserError(f"{beta=}, but only kind 'smooth_l1' has a beta, not {kind!r}")


def _checked(x, y, name_x: str, name_y: str, letters: str) -> tuple[jax.Array, jax.Array]:
  """Both arrays in float32 or better, the second held constant; refuses unequal shapes."""
  types.check(name_x, x, letters)
  if x.shape != y.shape:
    raise ValueError(f'{name_x} has shape {x.shape}, {name_y} {y.shape}, expected the same')
  return diversity.at_least_float32(x), jax.lax.stop_gradient(diversity.at_least_float32(y))


def _similarity(x: jax.Array, y: jax.Array, axis: int, shortest: float) -> jax.Array:
  return jnp.sum(_shortened(x, axis, shortest) * _shortened(y, axis, shortest), axis=axis)


def _shortened(x: jax.Array, axis: int, shortest: float) -> jax.Array:
  """x / max(|x|, shortest) along an axis, without a gradient for shorter vectors."""
  squares = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
  counts = squares > shortest**2
  # The inner `where` keeps the unused branch, and so its gradient, finite.
  scale = 1 / jnp.sqrt(jnp.where(counts, squares, 1))
  return jnp.where(counts, x * scale, jax.lax.stop_gradient(x) / shortest)
