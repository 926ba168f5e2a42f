"""The protocol: heads, targets and a teacher for a term, a forward pass that is differentiated."""

import dataclasses
from typing import ClassVar

from flax import nnx
from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import interpolants, rng
from diversedit_jax.methods import base, flow
from diversedit_jax.models import heads as heads_lib
from diversedit_jax.models import taps


@dataclasses.dataclass(frozen=True)
class Toy(base.Term):
  """Projected features of block 0 against targets of the batch and the teacher's last block."""

  name: ClassVar[str] = 'toy'

  def heads(self, config, *, rngs):
    return heads_lib.Projector(config.width, 8, 5, rngs=rngs)

  def draw(self, key, n):
    return jax.random.uniform(key, (n,))

  def tap(self, key, depth):
    return taps.chosen([0])

  def loss(self, features, context):
    batch, t_N = context.draw.batch, context.draw.t * context.drawn
    seen = context.teacher(t_N, 2)
    target = jnp.mean(jnp.square(context.heads(features[0]) - batch['targets']))
    teacher = jnp.mean(jnp.square(features[0] - seen))
    return target + context.step * teacher, {'target': target, 'teacher': teacher}


class Differentiated(flow.StochasticInterpolant):
  """As MeanFlow: the loss looks at the derivative of the prediction along time."""

  def forward(self, network, draw, tap):
    def run(x, t):
      output = network.model(x, t, draw.y, tap=tap)
      return output.pred, output.features

    tangents = draw.target, jnp.ones_like(draw.t)
    pred, slope, features = jax.jvp(run, (draw.x_t, draw.t), tangents, has_aux=True)
    loss_N = self.loss(pred + 0.1 * slope, draw.target, draw.t)
    return features, loss_N, {'velocity': jnp.mean(loss_N)}


def test_targets_teacher_draws_and_forward_derivative_reach_their_methods():
  terms = (Toy(),)
  made = Differentiated(
    path=interpolants.linear(),
    time_law=interpolants.TIME_LAWS['uniform'](),
    null_label=tiny.CLASSES,
  )
  objective = base.Objective(flow=made, terms=terms)
  graphdef, params = tiny.parameters(tiny.config(), terms)
  _, teacher = tiny.parameters(tiny.config(), terms, seed=2)
  generator = np.random.default_rng(3)
  targets = jnp.asarray(generator.standard_normal((4, 4, 5)), jnp.float32)
  draw = objective.draw(tiny.batch() | {'targets': targets}, jax.random.key(3))
  np.testing.assert_array_equal(
    draw.drawn['toy'], Toy().draw(rng.stream(jax.random.key(3), 'toy'), 4)
  )

  @jax.jit
  def run(params, teacher, draw, step):
    def loss(params, teacher):
      return objective.loss(
        nnx.merge(graphdef, params),
        draw,
        key=jax.random.key(4),
        step=step,
        teacher=nnx.merge(graphdef, teacher),
      )

    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, teacher)

  (value, metrics), (grads, of_teacher) = run(params, teacher, draw, 2)
  assert set(metrics) == {'loss', 'velocity', 'toy/target', 'toy/teacher'}
  parts = metrics['velocity'] + metrics['toy/target'] + 2 * metrics['toy/teacher']
  np.testing.assert_allclose(value, parts, rtol=1e-6)
  np.testing.assert_array_equal(value, metrics['loss'])
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(grads['heads']['toy']))
  assert all((g == 0).all() for g in jax.tree.leaves(of_teacher))

  moved = dataclasses.replace(draw, batch=draw.batch | {'targets': targets + 1})
  other = run(params, teacher, moved, 2)[0][1]
  assert other['toy/target'] != metrics['toy/target']
  np.testing.assert_array_equal(other['toy/teacher'], metrics['toy/teacher'])
  # At the student's own times the student as its teacher differs by one block only.
  now = dataclasses.replace(draw, drawn={'toy': jnp.ones(4)})
  blocks = lambda p: nnx.merge(graphdef, p).model(draw.x_t, draw.t, draw.y, tap=taps.every())
  first, last = jax.jit(blocks)(params).features
  wanted = jnp.mean(jnp.square(first - last))
  found = run(params, params, now, 2)[0][1]['toy/teacher']
  np.testing.assert_allclose(found, wanted, rtol=1e-5)


def test_a_term_needs_its_loss_only():
  @dataclasses.dataclass(frozen=True)
  class Constant(base.Term):
    name: ClassVar[str] = 'constant'

    def loss(self, features, context):
      assert features is None and context.drawn == () and context.heads is None
      return jnp.float32(3), {}

  objective = base.Objective(flow=tiny.interpolant(), terms=(Constant(),))
  graphdef, params = tiny.parameters(tiny.config(), objective.terms)
  assert not params.get('heads')
  draw = objective.draw(tiny.batch(), jax.random.key(0))
  loss, metrics = jax.jit(
    lambda params: objective.loss(
      nnx.merge(graphdef, params), draw, key=jax.random.key(1), step=jnp.int32(0)
    )
  )(params)
  np.testing.assert_allclose(loss, metrics['velocity'] + 3, rtol=1e-6)
  assert objective.terms[0].flops(tiny.config(), 4) == 0
