"""The protocol admits what comes next: frozen targets, a teacher, a differentiated forward pass."""

import dataclasses
from typing import ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import interpolants
from diversedit_jax.methods import base, flow
from diversedit_jax.models import heads as heads_lib
from diversedit_jax.models import sit, taps

CONFIG = sit.SiTConfig(
  input_size=(4, 4), depth=2, width=16, heads=2, patch_size=2, channels=1, num_classes=3
)


@dataclasses.dataclass(frozen=True)
class Aligned:
  """As REPA: projected features of block 0 against targets that come with the batch."""

  name: ClassVar[str] = 'aligned'

  def heads(self, config, *, rngs):
    return heads_lib.Projector(config.width, 8, 5, rngs=rngs)

  def tap(self, key, depth):
    return taps.chosen([0])

  def loss(self, features, draw, heads, teacher):
    value = jnp.mean(jnp.square(heads(features[0]) - draw.batch['targets']))
    return value, {'loss': value}


@dataclasses.dataclass(frozen=True)
class SelfAligned:
  """As SRA: block 0 against the last block of the teacher, same noise and labels."""

  name: ClassVar[str] = 'self_aligned'

  def heads(self, config, *, rngs):
    return None

  def tap(self, key, depth):
    return taps.chosen([0])

  def loss(self, features, draw, heads, teacher):
    seen = teacher.model(draw.x_t, draw.t, draw.y, tap=taps.chosen([1])).features
    value = jnp.mean(jnp.square(features[0] - jax.lax.stop_gradient(seen[0])))
    return value, {'loss': value}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Differentiated(flow.VelocityFlow):
  """As MeanFlow: the loss looks at the derivative of the prediction along time."""

  def forward(self, network, draw, tap):
    def run(x, t):
      output = network.model(x, t, draw.y, tap=tap)
      return output.pred, output.features

    tangents = draw.target, jnp.ones_like(draw.t)
    pred, slope, features = jax.jvp(run, (draw.x_t, draw.t), tangents, has_aux=True)
    return features, jnp.mean(jnp.square(pred - draw.target + 0.1 * slope), axis=(1, 2, 3))


def test_targets_teacher_and_forward_derivative_reach_their_methods():
  terms = (Aligned(), SelfAligned())
  made = Differentiated(
    path=interpolants.linear(), time_law=interpolants.TIME_LAWS['uniform'](), null_label=3
  )
  objective = base.Objective(flow=made, terms=terms)
  graphdef, params = nnx.split(base.Network(CONFIG, terms, rngs=nnx.Rngs(0)))
  keys = jax.random.split(jax.random.key(0), len(jax.tree.leaves(params)))
  params = jax.tree.map(
    lambda x, k: x + 0.2 * jax.random.normal(k, x.shape),
    params, jax.tree.unflatten(jax.tree.structure(params), list(keys)),
  )  # fmt: skip
  teacher = jax.tree.map(lambda x: 0.5 * x, params)
  batch = {
    'images': jax.random.normal(jax.random.key(1), (4, 4, 4, 1)), 'labels': jnp.arange(4) % 3,
    'targets': jax.random.normal(jax.random.key(2), (4, 4, 5)),
  }  # fmt: skip
  draw = objective.draw(batch, jax.random.key(3))

  def loss(params, teacher, draw):
    return objective.loss(
      nnx.merge(graphdef, params), draw, jax.random.key(4), nnx.merge(graphdef, teacher)
    )

  (value, metrics), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, teacher, draw)
  parts = metrics['velocity'] + metrics['aligned/loss'] + metrics['self_aligned/loss']
  np.testing.assert_allclose(value, parts, rtol=1e-6)
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert float(jnp.max(jnp.abs(grads['heads']['aligned']['fc3']['kernel'][...]))) > 0
  of_teacher = jax.grad(lambda teacher: loss(params, teacher, draw)[0])(teacher)
  assert all((g == 0).all() for g in jax.tree.leaves(of_teacher))
  other = dataclasses.replace(draw, batch=batch | {'targets': batch['targets'] + 1})
  assert loss(params, teacher, other)[1]['aligned/loss'] != metrics['aligned/loss']
  assert loss(params, params, draw)[1]['self_aligned/loss'] != metrics['self_aligned/loss']
