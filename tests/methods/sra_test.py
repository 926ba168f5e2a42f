"""SRA's term: the reference's totals, what the teacher is given, the schedule, refusals."""

from flax import nnx
from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, rng, types
from diversedit_jax.methods import base, sra

KEY = jax.random.key(0)
# Name in the reference, weight there and options here.
VARIANTS = [('sml1', 2.0, {}), ('cos', 0.5, {'kind': 'cosine', 'axis': 'tokens'})]


def sra_of(student_block=1, teacher_block=2, **fields):
  return sra.Sra(
    **(
      {'student_block': student_block, 'teacher_block': teacher_block, 'steps_per_epoch': 10}
      | fields
    )
  )


@pytest.mark.parametrize('path', ['linear', 'cosine'])
@pytest.mark.parametrize(('name', 'weight', 'options'), VARIANTS, ids=lambda x: str(x))
def test_totals_and_inputs_match_reference(golden, path, name, weight, options):
  g = golden('sra')
  image = lambda name: jnp.asarray(tiny.nhwc(g[name]))
  term = sra_of(t_max=float(g['t_max']), weight=weight, **options)
  flow = tiny.interpolant(path=interpolants.PATHS[path])
  draw = tiny.draw_of(
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
  loss, metrics = base.Objective(flow=flow, terms=(term,)).loss(
    tiny.Network(student, {'sra': lambda f: f}),
    flow.at(draw, draw.t),
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
  objective = base.Objective(flow=tiny.interpolant(label_dropout=0.5), terms=terms)
  graphdef, params = tiny.parameters(tiny.config(), terms)
  _, averaged = tiny.parameters(tiny.config(), terms, seed=2)
  draw = objective.draw(tiny.batch(), jax.random.key(1))

  def term_alone(params, averaged):
    network, teacher = nnx.merge(graphdef, params), nnx.merge(graphdef, averaged)
    loss, metrics = objective.loss(network, draw, key=KEY, step=jnp.int32(0), teacher=teacher)
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
  objective = base.Objective(flow=tiny.interpolant(), terms=(term,))
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
    draw=tiny.draw_of(f_NTD, f_NTD, None, jnp.ones(1)),
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
    draw=tiny.draw_of(jnp.zeros(1), jnp.zeros(1), None, jnp.asarray([0.0, 0.1, 0.5, 1.0])),
    drawn=jnp.asarray([0.9, 0.8, 0.5, 0.0]),
    heads=lambda f: f,
    teacher=lambda t_N, block: (seen.append(t_N), jnp.zeros((4, 1, 2)))[1],
    step=jnp.int32(0),
  )
  sra_of(t_max=t_max).loss((jnp.ones((4, 1, 2)),), context)
  wanted = np.clip([-0.9 * t_max, 0.1 - 0.8 * t_max, 0.5 - 0.5 * t_max, 1.0], 0, 1)
  np.testing.assert_allclose(seen[0], wanted, atol=1e-7)


def test_a_missing_teacher_is_named():
  objective = base.Objective(flow=tiny.interpolant(), terms=(sra_of(),))
  draw = objective.draw(tiny.batch(), KEY)
  network = tiny.Network(tiny.Model(draw.noise, [jnp.zeros((4, 4, 8))] * 2), {'sra': lambda f: f})
  with pytest.raises(ValueError, match='asks for the teacher, and none is given'):
    objective.loss(network, draw, key=KEY, step=jnp.int32(0))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(student_block=0), 'sra.student_block: block 0 is not one of 1 to 2'),
    (dict(teacher_block=3), 'sra.teacher_block: block 3 is not one of 1 to 2'),
    (dict(student_block=2, teacher_block=1), 'student_block=2 lies behind teacher_block=1'),
    (dict(t_max=1.5), r'sra.t_max must lie in \[0, 1\], got 1.5'),
    (dict(decay_after=-1), 'sra.decay_after must not be negative'),
    (dict(decay_epochs=-1), 'sra.decay_epochs must not be negative'),
    (dict(kind='l3'), "'l3'"),
    (dict(kind='cosine', axis='batch'), "'batch'"),
    (dict(axis='tokens'), "only kind 'cosine' has an axis"),
    (dict(beta=0.0), 'beta'),
  ],
)
def test_refuses(fields, message):
  with pytest.raises(types.UserError, match=message):
    sra_of(**fields).check(tiny.config(), 4)


def test_accepts_one_block_for_both():
  sra_of(student_block=2).check(tiny.config(), 4)
