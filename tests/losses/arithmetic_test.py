"""The arithmetic that losses share: cosines of short vectors, constant targets, groups."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.losses import arithmetic


def test_units_of_short_vectors_are_zero_without_gradient():
  x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [5e-13, 0.0]])
  np.testing.assert_allclose(arithmetic.unit(x), [[0.6, 0.8], [0, 0], [0, 0]], rtol=1e-6)
  gradient = jax.grad(lambda x: arithmetic.unit(x)[:, 1].sum())(x)
  # d(y / r) / d(x, y) = (-x y, x^2) / r^3.
  np.testing.assert_allclose(gradient, [[-12 / 125, 9 / 125], [0, 0], [0, 0]], rtol=1e-6)


@pytest.mark.parametrize('shortest', [1e-12, 1e-8])
def test_cosines_divide_short_vectors_by_the_bound_and_give_them_no_gradient(shortest):
  long = np.asarray([1.0, 0.0], np.float32)
  short = np.asarray([0, 0.25, 4], np.float32)[:, None] * np.float32(shortest) * long
  cosine = lambda x, y: arithmetic.cosine(x, y, -1, shortest)
  long_N = np.broadcast_to(long, short.shape)
  for pair in ((short, long_N), (long_N, short)):
    np.testing.assert_allclose(cosine(*pair), [0, 0.25, 1], atol=1e-6)
  gradients = jax.grad(lambda x: cosine(x, jnp.ones((3, 2))).sum())(short)
  np.testing.assert_array_equal(gradients[:2], 0)
  assert np.abs(gradients[2, 1]) > 0.1 / shortest


def test_student_and_teacher_are_float32_and_the_teacher_is_constant():
  x = jnp.ones((2, 3, 4), jnp.bfloat16)
  student, teacher = arithmetic.student_and_teacher(x, x)
  assert student.dtype == teacher.dtype == jnp.float32
  total = lambda s, t: sum(map(jnp.sum, arithmetic.student_and_teacher(s, t)))
  of_student, of_teacher = jax.grad(total, argnums=(0, 1))(x, x)
  assert np.all(of_student == 1) and np.all(of_teacher == 0)
  for other in ((2, 1, 4), (1, 3, 4)):
    with pytest.raises(ValueError, match=r'\(2, 3, 4\).*' + str(other).replace('(', r'\(')[:-1]):
      arithmetic.student_and_teacher(x, jnp.ones(other))
  with pytest.raises(ValueError, match='expected'):
    arithmetic.student_and_teacher(x[0], x[0])


def test_groups_divide_the_batch():
  arithmetic.check_groups(3, 6)
  for groups in (0, 4):
    with pytest.raises(types.UserError, match=f'{groups=} must be positive and divide'):
      arithmetic.check_groups(groups, 6)
