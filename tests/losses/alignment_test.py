"""REPA's and SRA's losses: reference values, finite differences, short vectors, the schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.losses import alignment

EXACT = {'rtol': 1e-12, 'atol': 1e-13}
# Kind, axis, and the reference value's name.
VARIANTS = [
  ('smooth_l1', 'features', 'sml1'),
  ('l2', 'features', 'l2'),
  ('l1', 'features', 'l1'),
  ('cosine', 'features', 'cos_lastdim'),
  ('cosine', 'tokens', 'cos_official_dim1'),
]


def normal(*shape, seed=0, shift=0.0):
  return np.random.default_rng(seed).normal(size=shape) + shift


def check_finite_difference(loss, x, seed=5):
  """The derivative along a random direction, by JAX and by central differences, in float64."""
  direction = jnp.asarray(normal(*x.shape, seed=seed))
  along = jax.jit(jax.value_and_grad(lambda s: loss(x + s * direction)))
  h = 1e-6
  wanted = (along(h)[0] - along(-h)[0]) / (2 * h)
  np.testing.assert_allclose(along(0.0)[1], wanted, rtol=1e-6, atol=1e-9)
  assert abs(wanted) > 1e-4, 'the direction must change the loss for the test to mean anything'


def test_repa_matches_reference(golden):
  g = golden('repa_loss')
  with jax.enable_x64(True):

    def loss(projected):
      losses = [jnp.mean(alignment.cosine(p, targets[k])) for k, p in enumerate(projected)]
      return sum(losses) / len(losses), losses

    targets = [jnp.asarray(g[f'zs_{k}'], jnp.float64) for k in (0, 1)]
    projected = [jnp.asarray(g[f'zs_tilde_{k}'], jnp.float64) for k in (0, 1)]
    (mean, losses), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(projected)
    np.testing.assert_allclose(losses, g['proj_loss_per_encoder_f64'], **EXACT)
    np.testing.assert_allclose(mean, g['proj_loss_f64'], **EXACT)
    for k, gradient in enumerate(gradients):
      np.testing.assert_allclose(gradient, g[f'grad_proj_loss_zs_tilde_{k}_f64'], **EXACT)
    for path in ('linear', 'cosine'):
      total = np.mean(g[f'{path}/denoising_loss_f64']) + g['proj_coeff'] * mean
      np.testing.assert_allclose(total, g[f'{path}/total_f64'], **EXACT)
  for k in (0, 1):
    loss_N = alignment.cosine(jnp.asarray(g[f'zs_tilde_{k}']), jnp.asarray(g[f'zs_{k}']))
    assert loss_N.shape == (6,) and loss_N.dtype == jnp.float32
    # Cosines of about 0.3, whose float32 sums differ in their order.
    np.testing.assert_allclose(np.mean(loss_N), g['proj_loss_per_encoder'][k], atol=1e-6)


@pytest.mark.parametrize(('kind', 'axis', 'name'), VARIANTS)
def test_self_alignment_matches_reference(golden, kind, axis, name):
  g = golden('sra')
  with jax.enable_x64(True):
    student, teacher = (jnp.asarray(g[x], jnp.float64) for x in ('student', 'teacher'))
    loss_N = alignment.self_alignment(student, teacher, kind=kind, axis=axis)
    assert loss_N.shape == (4,)
    np.testing.assert_allclose(np.mean(loss_N), g[f'{name}_f64'], **EXACT)
    one = alignment.self_alignment(student[1:2], teacher[1:2], kind=kind, axis=axis)
    np.testing.assert_allclose(one, loss_N[1:2], rtol=1e-14)  # An example's loss is its own.
  student, teacher = jnp.asarray(g['student']), jnp.asarray(g['teacher'])
  loss_N = alignment.self_alignment(student, teacher, kind=kind, axis=axis)
  assert loss_N.dtype == jnp.float32
  np.testing.assert_allclose(np.mean(loss_N), g[name], atol=1e-6)


def test_self_alignment_cosines_match_reference(golden):
  g = golden('sra')
  with jax.enable_x64(True):
    student, teacher = (jnp.asarray(g[x], jnp.float64) for x in ('student', 'teacher'))
    for axis, name in (('tokens', 'cos_elementwise_dim1'), ('features', 'cos_lastdim_elementwise')):
      cosines = alignment.similarity(student, teacher, axis)
      np.testing.assert_allclose(1 - cosines, g[f'{name}_f64'], **EXACT)


@pytest.mark.parametrize(('kind', 'axis', 'name'), VARIANTS)
def test_self_alignment_gradient_is_the_finite_difference(kind, axis, name):
  del name
  with jax.enable_x64(True):
    # Differences from 0 to about 0.2, on both sides of beta; none within 1e-5 of a kink.
    student = jnp.asarray(normal(2, 3, 4, seed=1))
    teacher = student + jnp.asarray(0.07 * normal(2, 3, 4, seed=2))
    size = np.abs(student - teacher)
    assert (size < 0.05).any() and (size > 0.05).any()
    assert np.abs(size - 0.05).min() > 1e-5 and size.min() > 1e-5
    weight_N = jnp.asarray([1.0, -2.0])
    check_finite_difference(
      lambda s: weight_N @ alignment.self_alignment(s, teacher, kind=kind, axis=axis), student
    )


def test_repa_gradient_is_the_finite_difference():
  with jax.enable_x64(True):
    projected, target = jnp.asarray(normal(2, 3, 4)), jnp.asarray(normal(2, 3, 4, seed=1))
    check_finite_difference(lambda p: alignment.cosine(p, target)[0], projected)


def test_beta_is_where_the_parabola_ends():
  with jax.enable_x64(True):
    teacher = jnp.zeros((4, 1, 1))
    student = jnp.asarray([0.0, 0.1, 0.2, -1.0]).reshape(4, 1, 1)
    loss_N = alignment.self_alignment(student, teacher, kind='smooth_l1', beta=0.2)
    np.testing.assert_allclose(loss_N, [0, 0.025, 0.1, 0.9], rtol=1e-14)


def losses_of(student, teacher):
  """Every loss of this file, summed."""
  total = jnp.sum(alignment.cosine(student, teacher))
  for kind, axis, _ in VARIANTS:
    total += jnp.sum(alignment.self_alignment(student, teacher, kind=kind, axis=axis))
  return total


def test_no_gradient_reaches_the_target():
  student, teacher = jnp.asarray(normal(2, 3, 4)), jnp.asarray(normal(2, 3, 4, seed=1))
  gradients = jax.jit(jax.grad(losses_of, argnums=(0, 1)))(student, teacher)
  assert np.all(gradients[0] != 0)
  np.testing.assert_array_equal(gradients[1], 0)


def test_short_vectors_are_divided_by_eps_and_get_no_gradient():
  long = np.asarray([1.0, 0.0], np.float32)
  for function, eps in (
    (alignment.cosine, 1e-12),
    (lambda s, t: alignment.self_alignment(s, t, kind='cosine') - 1, 1e-8),
  ):
    gradient = jax.jit(jax.grad(lambda s, t, f=function: f(s, t).sum()))
    # Three examples of one token, too short but for the last.
    short = np.asarray([0, 0.25, 4], np.float32)[:, None, None] * np.float32(eps) * long
    long_N = np.broadcast_to(long, short.shape)
    for pair in ((short, long_N), (long_N, short)):
      np.testing.assert_allclose(function(*pair), [0, -0.25, -1], atol=1e-6)
    gradients = gradient(short, np.ones_like(short))
    np.testing.assert_array_equal(gradients[:2], 0)
    assert np.abs(gradients[2, 0, 1]) > 0.1 / eps


def test_a_zero_token_leaves_the_gradient_of_the_others():
  student = jnp.asarray(normal(1, 3, 2)).at[0, 1].set(0)
  gradient = jax.jit(jax.grad(losses_of))(student, jnp.ones((1, 3, 2)))
  assert np.all(np.isfinite(gradient)) and np.all(gradient[0, 0] != 0)


def test_equal_features_have_the_least_loss_and_a_finite_gradient():
  x = jnp.asarray(normal(2, 3, 4))
  np.testing.assert_allclose(alignment.cosine(x, 3 * x), [-1, -1], rtol=1e-6)
  for kind, axis, _ in VARIANTS:
    loss = lambda s, k=kind, a=axis: alignment.self_alignment(s, x, kind=k, axis=a).sum()
    value, gradient = jax.jit(jax.value_and_grad(loss))(x)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_bfloat16_features_are_compared_in_float32():
  student = jnp.asarray(normal(2, 3, 8), jnp.bfloat16)
  teacher = jnp.asarray(normal(2, 3, 8, seed=1), jnp.bfloat16)
  s64, t64 = np.asarray(student, np.float64), np.asarray(teacher, np.float64)
  with jax.enable_x64(True):
    wanted = alignment.cosine(jnp.asarray(s64), jnp.asarray(t64))
  loss_N = alignment.cosine(student, teacher)
  assert loss_N.dtype == jnp.float32
  np.testing.assert_allclose(loss_N, wanted, atol=1e-6)
  loss_N = alignment.self_alignment(student, teacher, kind='l2')
  assert loss_N.dtype == jnp.float32
  np.testing.assert_allclose(loss_N, np.mean((s64 - t64) ** 2, axis=(1, 2)), rtol=1e-6)


def test_teacher_time_matches_reference(golden):
  g = golden('sra')
  time_N = alignment.teacher_time(jnp.asarray(g['t']), jnp.asarray(g['u']), 0.2)
  assert time_N[0] == 0, 'the first time is clipped'
  np.testing.assert_allclose(time_N, g['linear/t_teacher'], atol=1e-7)


def test_weight_falls_by_ten_in_decay_epochs():
  options = {'weight': 0.2, 'decay_after': 149, 'decay_epochs': 1000, 'steps_per_epoch': 5004}
  weight = jax.jit(lambda step: alignment.self_alignment_weight(step, **options))
  for epoch in (0, 149, 150, 151, 649, 1149, 2149):
    k = 1 if epoch <= 149 else 1 + (epoch - 149) / 1000  # The released schedule, 2 * 0.1^k.
    for step in (5004 * epoch, 5004 * epoch + 5003):
      value = weight(jnp.asarray(step, jnp.int32))
      assert value.dtype == jnp.float32
      np.testing.assert_allclose(value, 2 * 0.1**k, rtol=1e-6)
  assert weight(5004 * 150) < weight(5004 * 150 - 1)
  constant = alignment.self_alignment_weight(10**9, **{**options, 'decay_epochs': 0})
  assert constant.dtype == jnp.float32 and constant == np.float32(0.2)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'decay_after': -1}, 'decay_after=-1'),
    ({'decay_epochs': -1}, 'decay_epochs=-1'),
    ({'steps_per_epoch': 0}, 'steps_per_epoch=0'),
  ],
)
def test_weight_refuses(options, message):
  good = {'weight': 1.0, 'decay_after': 1, 'decay_epochs': 1, 'steps_per_epoch': 1}
  with pytest.raises(types.UserError, match=message):
    alignment.self_alignment_weight(0, **{**good, **options})


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'kind': 'l3'}, "kind is 'l3', expected one of"),
    ({'kind': 'cosine', 'axis': 'batch'}, "axis is 'batch', expected one of"),
    ({'kind': 'l2', 'axis': 'tokens'}, "only kind 'cosine' has an axis, not 'l2'"),
    ({'kind': 'smooth_l1', 'axis': 'tokens'}, "only kind 'cosine' has an axis"),
    ({'kind': 'smooth_l1', 'beta': 0}, 'beta=0 must be positive'),
    ({'kind': 'cosine', 'beta': 0.1}, "only kind 'smooth_l1' has a beta, not 'cosine'"),
  ],
)
def test_self_alignment_refuses(options, message):
  with pytest.raises(types.UserError, match=message):
    alignment.self_alignment(jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3)), **options)


def test_similarity_refuses_an_unknown_axis():
  with pytest.raises(types.UserError, match="axis is 'batch'"):
    alignment.similarity(jnp.ones((1, 2, 3)), jnp.ones((1, 2, 3)), 'batch')


def test_refuses_shapes_that_would_broadcast():
  with pytest.raises(ValueError, match=r'\(2, 3, 4\).*\(2, 1, 4\)'):
    alignment.cosine(jnp.ones((2, 3, 4)), jnp.ones((2, 1, 4)))
  with pytest.raises(ValueError, match=r'\(2, 3, 4\).*\(1, 3, 4\)'):
    alignment.self_alignment(jnp.ones((2, 3, 4)), jnp.ones((1, 3, 4)), kind='l2')
  with pytest.raises(ValueError, match='expected'):
    alignment.cosine(jnp.ones((3, 4)), jnp.ones((3, 4)))
