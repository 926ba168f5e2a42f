"""SRA: distances and totals of the reference, what the teacher is given, the schedule."""

from flax import nnx
from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, rng, types
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods import base, sra
from diversedit_jax.methods import objective as objective_lib

KEY = jax.random.key(0)
EXACT = {'rtol': 1e-12, 'atol': 1e-13}
# Kind, axis, and the reference value's name.
DISTANCES = [
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


@pytest.mark.parametrize(('kind', 'axis', 'name'), DISTANCES)
def test_distance_matches_reference(golden, kind, axis, name):
  g = golden('sra')
  with jax.enable_x64(True):
    student, teacher = (jnp.asarray(g[x], jnp.float64) for x in ('student', 'teacher'))
    loss_N = sra.distance(student, teacher, kind=kind, axis=axis)
    assert loss_N.shape == (4,)
    np.testing.assert_allclose(np.mean(loss_N), g[f'{name}_f64'], **EXACT)
    one = sra.distance(student[1:2], teacher[1:2], kind=kind, axis=axis)
    np.testing.assert_allclose(one, loss_N[1:2], rtol=1e-14)  # An example's loss is its own.
  student, teacher = jnp.asarray(g['student']), jnp.asarray(g['teacher'])
  loss_N = sra.distance(student, teacher, kind=kind, axis=axis)
  assert loss_N.dtype == jnp.float32
  np.testing.assert_allclose(np.mean(loss_N), g[name], atol=1e-6)


def test_cosines_match_reference(golden):
  g = golden('sra')
  with jax.enable_x64(True):
    student, teacher = (jnp.asarray(g[x], jnp.float64) for x in ('student', 'teacher'))
    for axis, name in ((1, 'cos_elementwise_dim1'), (2, 'cos_lastdim_elementwise')):
      cosines = arithmetic.cosine(student, teacher, axis, 1e-8)
      np.testing.assert_allclose(1 - cosines, g[f'{name}_f64'], **EXACT)


@pytest.mark.parametrize(('kind', 'axis', 'name'), DISTANCES)
def test_gradient_of_the_distance_is_the_finite_difference(kind, axis, name):
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
      lambda s: weight_N @ sra.distance(s, teacher, kind=kind, axis=axis), student
    )


def test_beta_is_where_the_parabola_ends():
  with jax.enable_x64(True):
    teacher = jnp.zeros((4, 1, 1))
    student = jnp.asarray([0.0, 0.1, 0.2, -1.0]).reshape(4, 1, 1)
    loss_N = sra.distance(student, teacher, kind='smooth_l1', beta=0.2)
    np.testing.assert_allclose(loss_N, [0, 0.025, 0.1, 0.9], rtol=1e-14)


def test_equal_features_have_no_distance_and_no_gradient_and_the_teacher_is_constant():
  x, other = jnp.asarray(normal(2, 3, 4)), jnp.asarray(normal(2, 3, 4, seed=1))
  for kind, axis, _ in DISTANCES:
    loss = lambda s, t, k=kind, a=axis: sra.distance(s, t, kind=k, axis=a).sum()
    both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    value, (gradient, _) = both(x, x)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    _, (of_student, of_teacher) = both(x.at[0, 1].set(0), other)
    assert np.isfinite(of_student).all() and (of_student[0, 0] != 0).all()
    np.testing.assert_array_equal(of_teacher, 0)


def test_bfloat16_features_are_compared_in_float32():
  student, teacher = (jnp.asarray(normal(2, 3, 8, seed=s), jnp.bfloat16) for s in (0, 1))
  error = np.asarray(student, np.float64) - np.asarray(teacher, np.float64)
  loss_N = sra.distance(student, teacher, kind='l2')
  assert loss_N.dtype == jnp.float32
  np.testing.assert_allclose(loss_N, np.mean(error**2, axis=(1, 2)), rtol=1e-6)


def test_teacher_time_matches_reference(golden):
  g = golden('sra')
  time_N = sra.teacher_time(jnp.asarray(g['t']), jnp.asarray(g['u']), 0.2)
  assert time_N[0] == 0, 'the first time is clipped'
  np.testing.assert_allclose(time_N, g['linear/t_teacher'], atol=1e-7)


# The term.


# Name in the reference, weight there and options here.
TOTALS = [('sml1', 2.0, {}), ('cos', 0.5, {'kind': 'cosine', 'axis': 'tokens'})]


def sra_of(student_block=1, teacher_block=2, **fields):
  return sra.Sra(
    **(
      {'student_block': student_block, 'teacher_block': teacher_block, 'steps_per_epoch': 10}
      | fields
    )
  )


@pytest.mark.parametrize('path', ['linear', 'cosine'])
@pytest.mark.parametrize(('name', 'weight', 'options'), TOTALS, ids=lambda x: str(x))
def test_totals_and_inputs_match_reference(golden, path, name, weight, options):
  g = golden('sra')
  image = lambda name: jnp.asarray(tiny.nhwc(g[name]))
  term = sra_of(t_max=float(g['t_max']), weight=weight, **options)
  flow = tiny.interpolant(path=interpolants.PATHS[path])
  noisy = tiny.noisy_of(
    image('images'),
    image('noises'),
    jnp.asarray(g['labels_train'], jnp.int32),
    jnp.asarray(g['t']),
    drawn={'sra': jnp.asarray(g['u'])},
  )
  # The head is the identity: the reference aligns the stored features themselves.
  unused = jnp.full((4, 16, 24), 9.0)
  student = tiny.Model(image('model_output'), [jnp.asarray(g['student']), unused])
  teacher = tiny.Model(0 * image('images'), [unused, jnp.asarray(g['teacher'])])
  loss, metrics = objective_lib.Objective(flow=flow, terms=(term,)).loss(
    tiny.Network(student, {'sra': lambda f: f}),
    flow.at(noisy, noisy.t),
    key=KEY,
    step=jnp.int32(0),
    teacher=tiny.Network(teacher),
  )
  close = lambda found, name: np.testing.assert_allclose(found, g[f'{path}/{name}'], atol=2e-6)
  close(loss, f'total_{name}')
  close(metrics['sra/loss'], f'align_{name}')
  np.testing.assert_allclose(metrics['velocity'], g[f'{path}/denoising_loss'].mean(), atol=2e-6)
  np.testing.assert_allclose(metrics['sra/weight'], weight, rtol=1e-7)
  # One pass each, on the same data, noise and dropped labels, at their own times.
  (of_student,), (of_teacher,) = student.calls, teacher.calls
  close(of_student.x.transpose(0, 3, 1, 2), 'student_input')
  close(of_teacher.x.transpose(0, 3, 1, 2), 'teacher_input')
  close(of_teacher.t, 't_teacher')
  np.testing.assert_array_equal(of_student.t, g['t'])
  np.testing.assert_array_equal(of_teacher.y, g['labels_train'])
  np.testing.assert_array_equal(of_student.y, g['labels_train'])
  assert (g['labels_train'] != g['labels']).any()  # A label is dropped.


def test_the_student_alone_learns():
  """Through a whole network, whose head sees the student's block and not the teacher's."""
  terms = (sra_of(),)
  objective = objective_lib.Objective(flow=tiny.interpolant(label_dropout=0.5), terms=terms)
  graphdef, params = tiny.parameters(tiny.architecture(), terms)
  _, averaged = tiny.parameters(tiny.architecture(), terms, seed=2)
  noisy = objective.draw(tiny.batch(), jax.random.key(1))

  def term_alone(params, averaged):
    network, teacher = nnx.merge(graphdef, params), nnx.merge(graphdef, averaged)
    loss, metrics = objective.loss(network, noisy, key=KEY, step=jnp.int32(0), teacher=teacher)
    return loss - metrics['velocity']

  value, (grads, of_teacher) = jax.jit(jax.value_and_grad(term_alone, argnums=(0, 1)))(
    params, averaged
  )
  assert value > 0.01
  assert all((g == 0).all() for g in jax.tree.leaves(of_teacher))
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads['heads']['sra']))
  blocks = grads['model']['blocks']['layers']['attn']['qkv']['kernel']
  assert np.abs(blocks[0]).max() > 0
  np.testing.assert_array_equal(blocks[1], 0)  # The student's block is the first of two.
  assert all((g == 0).all() for g in jax.tree.leaves(grads['model']['final']))


def test_the_draw_is_one_uniform_number_for_each_example():
  term = sra_of()
  objective = objective_lib.Objective(flow=tiny.interpolant(), terms=(term,))
  drawn = objective.draw(tiny.batch(4000, shape=(1, 1, 1)), KEY).drawn['sra']
  assert drawn.shape == (4000,) and drawn.min() >= 0 and drawn.max() < 1
  # A mean of 1/2 and a variance of 1/12, to four standard deviations.
  assert abs(drawn.mean() - 0.5) < 4 / np.sqrt(12 * 4000)
  assert abs(drawn.var() - 1 / 12) < 4 / np.sqrt(180 * 4000)
  np.testing.assert_array_equal(drawn, term.draw(rng.stream(KEY, 'sra'), 4000))


def metrics_at(term, step):
  """Metrics of the term at a step, for features one apart in all values."""
  f_NTD = jnp.zeros((1, 4, 8))
  context = base.Context(
    noisy=tiny.noisy_of(f_NTD, f_NTD, None, jnp.ones(1)),
    drawn=jnp.zeros(1),
    heads=lambda f: f,
    teacher=lambda t_N, block: f_NTD + 1,
    step=step,
  )
  loss, metrics = term.loss((f_NTD,), context)
  return {'added': loss, **metrics}


def test_the_weight_follows_the_schedule_of_the_release():
  """At 256 px: 2 * 0.1^k, k = 1 up to epoch 149 from 0, and 1 + (epoch - 149) / 1000 after it."""
  at = jax.jit(jax.vmap(lambda step: metrics_at(sra_of(steps_per_epoch=7), step)))
  epochs = np.array([0, 100, 149, 150, 649, 1149])
  for within in (0, 6):
    found = at(jnp.asarray(7 * epochs + within, jnp.int32))
    k = np.where(epochs > 149, 1 + (epochs - 149) / 1000, 1)
    np.testing.assert_allclose(found['weight'], 2 * 0.1**k, rtol=1e-6)
    np.testing.assert_allclose(found['loss'], 1 - 0.05 / 2, rtol=1e-6)  # Smooth l1 of 1.
    np.testing.assert_allclose(found['added'], found['weight'] * found['loss'], rtol=1e-6)
  constant = metrics_at(sra_of(weight=0.5, decay_epochs=0), jnp.int32(10**6))
  np.testing.assert_allclose(constant['weight'], 0.5)


def test_beta_and_kind_reach_the_loss():
  for fields, wanted in (
    (dict(beta=0.4), 1 - 0.2),
    (dict(beta=4.0), 1 / 8),
    (dict(kind='l2'), 1),
    (dict(kind='l1'), 1),
  ):
    found = metrics_at(sra_of(**fields), jnp.int32(0))['loss']
    np.testing.assert_allclose(found, wanted, rtol=1e-6, err_msg=str(fields))


@pytest.mark.parametrize('t_max', [0.0, 0.2, 1.0])
def test_the_teacher_is_at_most_t_max_cleaner(t_max):
  seen = []
  context = base.Context(
    noisy=tiny.noisy_of(jnp.zeros(1), jnp.zeros(1), None, jnp.asarray([0.0, 0.1, 0.5, 1.0])),
    drawn=jnp.asarray([0.9, 0.8, 0.5, 0.0]),
    heads=lambda f: f,
    teacher=lambda t_N, block: (seen.append(t_N), jnp.zeros((4, 1, 2)))[1],
    step=jnp.int32(0),
  )
  sra_of(t_max=t_max).loss((jnp.ones((4, 1, 2)),), context)
  wanted = np.clip([-0.9 * t_max, 0.1 - 0.8 * t_max, 0.5 - 0.5 * t_max, 1.0], 0, 1)
  np.testing.assert_allclose(seen[0], wanted, atol=1e-7)


def test_a_missing_teacher_is_named():
  objective = objective_lib.Objective(flow=tiny.interpolant(), terms=(sra_of(),))
  noisy = objective.draw(tiny.batch(), KEY)
  network = tiny.Network(tiny.Model(noisy.noise, [jnp.zeros((4, 4, 8))] * 2), {'sra': lambda f: f})
  with pytest.raises(ValueError, match='asks for the teacher, and none is given'):
    objective.loss(network, noisy, key=KEY, step=jnp.int32(0))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(student_block=3), 'sra.student_block: block 3 is not one of 1 to 2'),
    (dict(teacher_block=3), 'sra.teacher_block: block 3 is not one of 1 to 2'),
    (dict(student_block=2, teacher_block=1), 'student_block=2 must not be deeper than'),
  ],
)
def test_check_refuses(fields, message):
  with pytest.raises(types.UserError, match=message):
    sra_of(**fields).check(tiny.architecture(), 4)
  sra_of(student_block=2).check(tiny.architecture(), 4)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(axis='tokens'), "sra.axis='tokens' is for kind='cosine', got 'smooth_l1'"),
    (dict(kind='l1', beta=0.1), "sra.beta=0.1 is for kind='smooth_l1', got 'l1'"),
  ],
)
def test_an_option_of_another_kind_is_refused(fields, message):
  with pytest.raises(types.UserError, match=message):
    sra_of(**fields)


def test_mathematics_refuses_what_it_does_not_know():
  x = jnp.ones((1, 2, 3))
  with pytest.raises(types.UserError, match='beta=0 must be positive'):
    sra.distance(x, x, kind='smooth_l1', beta=0)
  good = {'weight': 1.0, 'decay_after': 1, 'decay_epochs': 1, 'steps_per_epoch': 1}
  for wrong in ({'decay_after': -1}, {'decay_epochs': -1}, {'steps_per_epoch': 0}):
    ((name, value),) = wrong.items()
    with pytest.raises(types.UserError, match=f'{name}={value}'):
      sra.decayed_weight(0, **(good | wrong))
  with pytest.raises(types.UserError, match="unknown kind 'l3'"):
    sra.distance(x, x, kind='l3')
  with pytest.raises(types.UserError, match="unknown axis 'batch'"):
    sra.distance(x, x, kind='cosine', axis='batch')
