"""Objectives: terms that add up, frozen features, the teacher, latents of moments, microbatches."""

import dataclasses
from typing import ClassVar

from flax import nnx
from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, rng, types
from diversedit_jax.data import latents
from diversedit_jax.frozen.encoders import base as encoders_lib
from diversedit_jax.methods import base, batches, diverse, flow
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import heads as heads_lib
from diversedit_jax.models import taps

STEP = jnp.int32(0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LastBlock(base.Term):
  """A second term with a head and a tap of its own: the mean square of a projected last block."""

  name: ClassVar[str] = 'last'

  def heads(self, architecture, execution, *, rngs):
    return heads_lib.Projector(architecture.width, 8, 4, rngs=rngs)

  def tap(self, key, depth):
    return taps.chosen([depth - 1])

  def loss(self, features, context):
    value = jnp.mean(jnp.square(context.heads(features[0])))
    return 0.5 * value, {'loss': value}


# The objective.


def test_terms_add_up_and_keep_their_names_and_heads():
  terms = (diverse.Diverse(lo=0.0, hi=2.0), LastBlock())
  objective = objective_lib.Objective(flow=tiny.interpolant(), terms=terms)
  graphdef, params = tiny.parameters(tiny.architecture(depth=4), terms)
  draw, key = objective.draw(tiny.batch(), jax.random.key(0)), jax.random.key(1)

  loss_fn = lambda params: objective.loss(nnx.merge(graphdef, params), draw, key=key, step=STEP)
  (loss, metrics), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
  assert set(metrics) == {
    'loss',
    'velocity',
    'last/loss',
    'diverse/loss',
    'diverse/weight',
    'diverse/orth',
    'diverse/mi',
    'diverse/disp',
  }
  parts = [
    metrics['velocity'],
    metrics['diverse/weight'] * metrics['diverse/loss'],
    0.5 * metrics['last/loss'],
  ]
  assert min(float(p) for p in parts) > 0.01
  np.testing.assert_allclose(loss, sum(parts), rtol=1e-6)  # Three float32 roundings.
  assert list(nnx.merge(graphdef, params).heads) == ['last']
  assert all(float(jnp.max(jnp.abs(g))) > 0 for g in jax.tree.leaves(grads['heads']['last']))


def test_frozen_features_join_the_batch_without_gradient():
  """Two toy encoders: what they see are pixels in [-1, 1], wherever these lie in the batch."""

  def encoder(name, width):
    return encoders_lib.Encoder(
      name=name,
      params={'w': jax.ShapeDtypeStruct((), 'float32')},
      apply=lambda params, x: encoders_lib.Features(
        params['w'] * jnp.ones((len(x), 4, width)) * x[:, :1, 0, :1], params['w'] * x[:, 0, 0, :1]
      ),
      load=lambda: {'w': jnp.float32(width)},
      image_shape=(2, 2, 1),
      flops=1.0,
    )

  looks = flow.StochasticInterpolant(null_label=tiny.CLASSES, opened=(encoder('b', 2),))
  objective = objective_lib.Objective(flow=looks, encoders=(encoder('a', 3), *looks.opened))
  frozen = objective.frozen()
  assert {name: float(params['w']) for name, params in frozen.items()} == {'a': 3, 'b': 2}
  pixels = jnp.arange(8, dtype=jnp.uint8).reshape(2, 2, 2, 1) * 32
  unit = pixels.astype(jnp.float32) / 127.5 - 1
  for batch in ({'latents': unit[:, :1], 'pixels': pixels}, {'images': unit}):
    seen = objective.encode(frozen, batch)
    assert set(seen) == {*batch, 'a/tokens', 'a/summary', 'b/tokens', 'b/summary'}
    assert seen['a/tokens'].shape == (2, 4, 3) and seen['b/summary'].shape == (2, 1)
    np.testing.assert_allclose(seen['a/tokens'][:, 0, 0], 3 * unit[:, 0, 0, 0], rtol=1e-6)
    np.testing.assert_allclose(seen['b/summary'], 2 * unit[:, 0, 0], rtol=1e-6)
  grads = jax.grad(lambda f: sum(jnp.sum(v) for v in objective.encode(f, batch).values()))(frozen)
  assert all((g == 0).all() for g in jax.tree.leaves(grads))
  assert [e.name for e in objective.flow_only().encoders] == ['b']
  assert objective.flow_only().terms == ()


@pytest.mark.parametrize('parts', [2, 3, 6])
def test_encoding_in_parts_changes_nothing_and_keeps_the_order(parts):
  """Each example's features are its own, so that a mixed-up row would show."""
  apply = lambda params, x: encoders_lib.Features(
    params * x.reshape(len(x), 4, 1), jnp.mean(x, axis=(1, 2))
  )
  encoder = encoders_lib.Encoder(
    name='a',
    params=jax.ShapeDtypeStruct((), 'float32'),
    apply=apply,
    load=lambda: jnp.float32(3),
    image_shape=(2, 2, 1),
    flops=1.0,
  )
  objective = objective_lib.Objective(flow=tiny.interpolant(), encoders=(encoder,))
  images = jnp.arange(24, dtype=jnp.float32).reshape(6, 2, 2, 1) / 24
  whole = objective.encode(objective.frozen(), {'images': images})
  cut = jax.jit(lambda x: objective.encode(objective.frozen(), {'images': x}, parts))(images)
  assert cut.keys() == whole.keys() and len(np.unique(whole['a/tokens'])) == 24
  for name, array in whole.items():
    np.testing.assert_allclose(cut[name], array, rtol=1e-6, err_msg=name)


# Latents of moments, images of bytes.


def moments(n=3):
  generator = np.random.default_rng(0)
  mean = generator.normal(size=(n, 4, 4, 2)).astype(np.float16)
  std = generator.uniform(0.5, 1.5, size=mean.shape).astype(np.float16)
  labels = np.arange(n, dtype=np.int32) % tiny.CLASSES
  return mean, std, {'moments': np.concatenate([mean, std], axis=-1), 'labels': labels}


def test_latents_are_drawn_anew_from_their_moments_at_every_step():
  mean, std, batch = moments()
  scaling = latents.Scaling(scale=0.5, shift=2.0)
  objective = objective_lib.Objective(flow=tiny.interpolant(), scaling=scaling)
  draws = jax.jit(jax.vmap(lambda key: objective.draw(batch, key).clean))
  many = np.asarray(draws(jax.random.split(jax.random.key(0), 4000)), np.float64)
  # The mean of 4000 draws is normal with std / sqrt(4000), their spread with std / sqrt(8000).
  wide = std.astype(np.float64) * 0.5
  error = (many.mean(axis=0) - (mean.astype(np.float64) - 2) * 0.5) / (wide / np.sqrt(4000))
  assert np.abs(error).max() < 5
  assert np.abs((many.std(axis=0) / wide - 1) * np.sqrt(8000)).max() < 5
  # Noise of the posterior is not the noise of the interpolant.
  draw = objective.draw(batch, jax.random.key(0))
  eps = (np.asarray(draw.clean) / 0.5 + 2 - mean) / std
  assert abs(np.corrcoef(eps.ravel(), np.asarray(draw.noise).ravel())[0, 1]) < 0.5
  assert 'moments' not in draw.batch and draw.clean.dtype == jnp.float32


def test_bytes_are_the_images_they_stand_for():
  levels = np.random.default_rng(1).integers(0, 256, (3, 4, 4, 1), np.uint8)
  labels = np.zeros(3, np.int32)
  objective, key = objective_lib.Objective(flow=tiny.interpolant()), jax.random.key(0)
  as_bytes = objective.draw({'images': levels, 'labels': labels}, key)
  as_floats = objective.draw(
    {'images': (levels / 127.5 - 1).astype(np.float32), 'labels': labels}, key
  )
  # One float32 rounding each of the division and the subtraction.
  np.testing.assert_allclose(as_bytes.clean, as_floats.clean, atol=2e-7)
  np.testing.assert_allclose(as_bytes.x_t, as_floats.x_t, atol=1e-6)
  np.testing.assert_allclose(batches.pixels({'images': levels}), levels / 127.5 - 1, atol=2e-7)


# What a term and a flow may ask for.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Toy(base.Term):
  """Projected features of block 0 against targets of the batch and the teacher's last block."""

  name: ClassVar[str] = 'toy'

  def heads(self, architecture, execution, *, rngs):
    return heads_lib.Projector(architecture.width, 8, 5, rngs=rngs)

  def draw(self, key, n):
    return jax.random.uniform(key, (n,))

  def tap(self, key, depth):
    return taps.chosen([0])

  def loss(self, features, context):
    batch, t_N = context.noisy.batch, context.noisy.t * context.drawn
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
    return types.Output(pred, features), loss_N, {'velocity': jnp.mean(loss_N)}


def test_targets_teacher_draws_and_forward_derivative_reach_their_methods():
  terms = (Toy(),)
  made = Differentiated(
    path=interpolants.linear(),
    time_law=interpolants.TIME_LAWS['uniform'](),
    null_label=tiny.CLASSES,
  )
  objective = objective_lib.Objective(flow=made, terms=terms)
  graphdef, params = tiny.parameters(tiny.architecture(), terms)
  _, teacher = tiny.parameters(tiny.architecture(), terms, seed=2)
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
  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Constant(base.Term):
    name: ClassVar[str] = 'constant'

    def loss(self, features, context):
      assert features is None and context.drawn == () and context.heads is None
      return jnp.float32(3), {}

  objective = objective_lib.Objective(flow=tiny.interpolant(), terms=(Constant(),))
  graphdef, params = tiny.parameters(tiny.architecture(), objective.terms)
  assert not params.get('heads')
  draw = objective.draw(tiny.batch(), jax.random.key(0))
  loss, metrics = jax.jit(
    lambda params: objective.loss(
      nnx.merge(graphdef, params), draw, key=jax.random.key(1), step=jnp.int32(0)
    )
  )(params)
  np.testing.assert_allclose(loss, metrics['velocity'] + 3, rtol=1e-6)
  assert objective.terms[0].flops(tiny.architecture(), 4) == 0


# Microbatches.


def test_microbatches_keep_every_example_once_and_whole():
  n, parts = 12, 3
  rows = jnp.arange(n, dtype=jnp.float32)
  noisy = base.NoisyBatch(
    x_t=jnp.broadcast_to(rows[:, None, None, None], (n, 2, 2, 1)),
    t=rows,
    y=jnp.arange(n),
    target=jnp.broadcast_to(-rows[:, None, None, None], (n, 2, 2, 1)),
    noise=jnp.zeros((n, 2, 2, 1)),
    batch={'labels': jnp.arange(n)},
  )
  split = batches.microbatches(noisy, parts)
  assert split.x_t.shape == (parts, n // parts, 2, 2, 1) and split.y.shape == (parts, n // parts)
  assert sorted(split.y.ravel().tolist()) == list(range(n))
  np.testing.assert_array_equal(split.t, split.y)  # The fields stay together.
  np.testing.assert_array_equal(split.x_t[..., 1, 1, 0], split.t)
  np.testing.assert_array_equal(split.target[..., 0, 1, 0], -split.t)
  # Neighbours go to different parts, so that each part lies on all devices.
  np.testing.assert_array_equal(split.y[:, 0], [0, 1, 2])


def test_mean_metrics():
  means = batches.mean_metrics(
    {'loss': jnp.asarray([1.0, 3.0]), 'velocity': jnp.asarray([0.0, 4.0])}
  )
  assert {k: float(v) for k, v in means.items()} == {'loss': 2.0, 'velocity': 2.0}
