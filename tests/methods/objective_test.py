"""Objectives: random draws of the flow, the diversity term through its tap, one forward pass."""

import dataclasses
import functools
from typing import ClassVar

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, rng, trees, types
from diversedit_jax.interpolants import times
from diversedit_jax.losses import diversity
from diversedit_jax.losses.diversity_config import DiversityConfig
from diversedit_jax.methods import base, diverse, flow
from diversedit_jax.models import heads as heads_lib
from diversedit_jax.models import sit, stack, taps

CLASSES = 5


def small(**fields):
  defaults = dict(
    input_size=(4, 4), channels=1, num_classes=CLASSES, depth=4, width=16, heads=2, patch_size=2
  )
  return sit.SiTConfig(**(defaults | fields))


def velocity_flow(**fields):
  defaults = dict(path=interpolants.linear(), time_law=times.Uniform(), null_label=CLASSES)
  return flow.VelocityFlow(**(defaults | fields))


def examples(n, shape=(4, 4, 1), classes=CLASSES):
  x_NHWC = jax.random.uniform(jax.random.key(7), (n, *shape), minval=-1, maxval=1)
  return {'images': x_NHWC, 'labels': jnp.arange(n, dtype=jnp.int32) % classes}


def parameters(network, dtype=jnp.float32):
  """(graphdef, params) without zeros: at initialisation all blocks agree, which hides mistakes."""
  graphdef, state = nnx.split(network)
  leaves, treedef = jax.tree.flatten(state)
  generator = np.random.default_rng(1)
  leaves = [
    jnp.asarray(np.asarray(x) + 0.2 * generator.standard_normal(x.shape), dtype) for x in leaves
  ]
  return graphdef, jax.tree.unflatten(treedef, leaves)


class LastBlock:
  """A second term with a head and a tap of its own: the mean square of a projected last block."""

  name: ClassVar[str] = 'last'

  def heads(self, config, *, rngs):
    return heads_lib.Projector(config.width, 8, 4, rngs=rngs)

  def tap(self, key, depth):
    return taps.chosen([depth - 1])

  def loss(self, features, draw, heads, teacher):
    value = jnp.mean(jnp.square(heads(features[0])))
    return 0.5 * value, {'loss': value}


# The diversity term.


def what_to_compare(config, key):
  """The blocks or pairs of a model of four blocks, as `diversity_loss` wants them."""
  if config.layers == 'random':
    drawn_L = config.select(4, rng.stream(key, 'diverse/layers')).selected_L
    return dict(layers=np.flatnonzero(drawn_L).tolist())
  if config.layers == 'authors':
    # Their rule for M = 6 pairs, aligned at e = 4: i from M - e - 1 = 1, j from i + 1.
    return dict(pairs=[(1, 2), (1, 3), (2, 3)])
  return dict(layers=None if config.layers == 'all' else config.layers)


def by_hand(config, f_LNTD, selected):
  """The weighted loss of each group by the plain loop over pairs, averaged; and its parts."""
  parts = jnp.split(f_LNTD, config.groups, axis=1)
  added, metrics = 0.0, []
  for f in parts:
    value, terms = diversity.diversity_loss(
      f, mi=config.mi, dispersion=config.dispersion, usage=config.usage, weights=config.weights,
      **selected,
    )  # fmt: skip
    weight = (value - config.lo) / config.hi  # Of the adaptive weight between lo and hi.
    added = added + weight * value / len(parts)
    metrics.append({'loss': value, 'weight': weight, **terms})
  return added, jax.tree.map(lambda *x: sum(x) / len(x), *metrics)


# Ranges in which every loss below has a weight between 0 and 1, and so a gradient through it.
WIDE = dict(lo=0.0, hi=2.0)
CONFIGS = {
  'streaming': DiversityConfig(**WIDE),
  'random': DiversityConfig(layers='random', num_layers=2, **WIDE),
  'given': DiversityConfig(layers=(3, 0, 1), usage='signed', **WIDE),
  'absolute': DiversityConfig(mi='absolute', dispersion='code', **WIDE),
  'authors': dataclasses.replace(DiversityConfig.authors(4), **WIDE),
  'groups': DiversityConfig(groups=2, lo=0.01, hi=2.0),
}


class Silent(flow.VelocityFlow):
  """Draws as its parent and scores nothing, so that only the terms have a gradient."""

  def loss(self, output, draw):
    return jnp.zeros_like(draw.t)


@functools.cache
def setting(dtype, skip):
  """A network and a draw in that type, all its features, and their pull-back to the parameters."""
  silent = Silent(path=interpolants.linear(), time_law=times.Uniform(), null_label=CLASSES)
  graphdef, params = parameters(base.Network(small(skip=skip), rngs=nnx.Rngs(0)), dtype)
  batch = examples(4) | {'images': examples(4)['images'].astype(dtype)}
  draw = silent.draw(batch, jax.random.key(3))

  def features(params):
    model = nnx.merge(graphdef, params).model
    return model(draw.x_t, draw.t, draw.y, tap=taps.every()).features

  pull_back = jax.jit(lambda params, cotangent: jax.vjp(features, params)[1](cotangent)[0])
  return silent, graphdef, params, draw, jax.jit(features)(params), pull_back


def compare(config, dtype, skip, tolerance):
  """The term through its tap against the same by hand, values and gradients."""
  silent, graphdef, params, draw, f_LNTD, pull_back = setting(dtype, skip)
  objective, key = (
    base.Objective(flow=silent, terms=(diverse.Diverse(config=config),)),
    jax.random.key(4),
  )
  assert f_LNTD.dtype == dtype
  selected = what_to_compare(config, key)
  (expected, expected_metrics), cotangent = jax.jit(
    jax.value_and_grad(lambda f: by_hand(config, f, selected), has_aux=True)
  )(f_LNTD)
  expected_grads = pull_back(params, cotangent)

  loss_fn = lambda params: objective.loss(nnx.merge(graphdef, params), draw, key)
  (loss, metrics), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)

  assert loss.dtype == dtype and loss == metrics.pop('loss') and metrics.pop('velocity') == 0
  assert 0.01 < float(metrics['diverse/weight']) < 0.99
  assert {k.removeprefix('diverse/') for k in metrics} == expected_metrics.keys()
  # The terms are cosines and shares: their unit is 1.
  np.testing.assert_allclose(loss, expected, rtol=0, atol=tolerance)
  for name, value in expected_metrics.items():
    np.testing.assert_allclose(
      metrics[f'diverse/{name}'], value, rtol=0, atol=tolerance, err_msg=name
    )
  largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(expected_grads))
  assert largest > 1e-2
  for name, grad in trees.named_leaves(grads).items():
    other = trees.named_leaves(expected_grads)[name]
    np.testing.assert_allclose(grad, other, rtol=0, atol=tolerance * largest, err_msg=name)


@pytest.mark.parametrize('name', CONFIGS)
def test_diverse_equals_the_plain_loop_over_all_features(name):
  with jax.enable_x64(True):
    # Sums in another order: some hundreds of float64 roundings.
    compare(CONFIGS[name], jnp.float64, None, tolerance=1e-10)


def test_diverse_equals_the_plain_loop_in_float32_with_long_skips():
  # Sums in another order: some tens of float32 roundings.
  compare(CONFIGS['given'], jnp.float32, stack.Skip(), tolerance=1e-5)


def test_random_layers_follow_the_key_of_the_step():
  term = diverse.Diverse(config=DiversityConfig(layers='random', num_layers=2, adaptive=False))
  generator = np.random.default_rng(0)
  f_LNTD = jnp.asarray(generator.standard_normal((6, 2, 4, 8)), jnp.float32)

  def loss(step):
    tap = term.tap(rng.stream(jax.random.key(0), 'step', step), 6)
    carry, ys = tap.init(f_LNTD[0], 6), []
    for i, f_NTD in enumerate(f_LNTD):
      carry, y = tap.step(carry, f_NTD, i)
      ys.append(y)
    features = tap.finish(carry, jax.tree.map(lambda *y: jnp.stack(y), *ys))
    return term.loss(features, None, None, None)[0]

  losses = [float(x) for x in jax.lax.map(loss, jnp.arange(12))]
  assert losses == [float(x) for x in jax.lax.map(loss, jnp.arange(12))]
  # 15 pairs of blocks, 12 draws: all alike would be one value.
  assert len({round(x, 5) for x in losses}) >= 6


def test_a_model_of_one_block_is_refused():
  with pytest.raises(types.UserError, match='depth of at least 2, got 1'):
    base.Network(small(depth=1), (diverse.Diverse(),), rngs=nnx.Rngs(0))


# The objective.


@pytest.mark.parametrize(
  'terms',
  [
    (), (diverse.Diverse(),), (diverse.Diverse(config=CONFIGS['absolute']),),
    (diverse.Diverse(), LastBlock()),
  ],
  ids=lambda terms: '+'.join(term.name for term in terms) or 'flow',
)  # fmt: skip
def test_one_forward_pass_whatever_is_combined(terms, monkeypatch):
  objective = base.Objective(flow=velocity_flow(), terms=terms)
  graphdef, params = nnx.split(base.Network(small(), terms, rngs=nnx.Rngs(0)))
  draw = objective.draw(examples(2), jax.random.key(0))
  calls, original = [], stack.Stack.__call__

  def counted(self, *args, **kwargs):
    calls.append(self)
    return original(self, *args, **kwargs)

  monkeypatch.setattr(stack.Stack, '__call__', counted)
  loss = lambda params: objective.loss(nnx.merge(graphdef, params), draw, jax.random.key(1))
  jax.make_jaxpr(jax.grad(loss, has_aux=True))(params)
  assert len(calls) == 1


def test_terms_add_up_and_keep_their_names_and_heads():
  terms = (diverse.Diverse(config=CONFIGS['streaming']), LastBlock())
  objective = base.Objective(flow=velocity_flow(), terms=terms)
  graphdef, params = parameters(base.Network(small(), terms, rngs=nnx.Rngs(0)))
  draw, key = objective.draw(examples(4), jax.random.key(0)), jax.random.key(1)

  loss_fn = lambda params: objective.loss(nnx.merge(graphdef, params), draw, key)
  (loss, metrics), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
  assert set(metrics) == {
    'loss', 'velocity', 'last/loss', 'diverse/loss', 'diverse/weight', 'diverse/orth',
    'diverse/mi', 'diverse/disp',
  }  # fmt: skip
  parts = [
    metrics['velocity'], metrics['diverse/weight'] * metrics['diverse/loss'],
    0.5 * metrics['last/loss'],
  ]  # fmt: skip
  assert min(float(p) for p in parts) > 0.01
  np.testing.assert_allclose(loss, sum(parts), rtol=1e-6)  # Three float32 roundings.
  assert list(nnx.merge(graphdef, params).heads) == ['last']
  assert all(float(jnp.max(jnp.abs(g))) > 0 for g in jax.tree.leaves(grads['heads']['last']))


# The flow.


@pytest.fixture(scope='module')
def many():
  """20,000 one-pixel examples and their draw, label dropout 0.1."""
  batch = examples(20_000, shape=(1, 1, 1))
  return batch, velocity_flow().draw(batch, jax.random.key(5))


def noise_of(batch, draw):
  """The noise of a draw on the linear path: x_t + (1 - t) v."""
  t = draw.t.reshape(-1, 1, 1, 1)
  return np.asarray(draw.x_t + (1 - t) * draw.target)


def test_labels_are_dropped_with_their_probability(many):
  batch, draw = many
  dropped = np.asarray(draw.y) == CLASSES
  n, p = len(dropped), 0.1
  # Four standard deviations of a binomial share.
  assert abs(dropped.mean() - p) < 4 * np.sqrt(p * (1 - p) / n)
  np.testing.assert_array_equal(draw.y[~dropped], batch['labels'][~dropped])
  for label in range(CLASSES):  # Each class as often as any other.
    share = dropped[np.asarray(batch['labels']) == label].mean()
    assert abs(share - p) < 4 * np.sqrt(p * (1 - p) * CLASSES / n)


def test_no_dropout_and_no_classes():
  batch = examples(50)
  kept = velocity_flow(label_dropout=0.0).draw(batch, jax.random.key(0))
  np.testing.assert_array_equal(kept.y, batch['labels'])
  unconditional = velocity_flow(null_label=None).draw(batch, jax.random.key(0))
  np.testing.assert_array_equal(unconditional.y, np.zeros(50))
  assert unconditional.y.dtype == batch['labels'].dtype


@pytest.mark.parametrize('probability', [-0.1, 1.0, 1.5])
def test_impossible_dropout_is_refused(probability):
  with pytest.raises(types.UserError, match=rf'must lie in \[0, 1\), got {probability}'):
    velocity_flow(label_dropout=probability)


@pytest.mark.parametrize('space', ['images', 'latents'])
def test_linear_path_gives_the_data_back(space):
  batch = examples(64)
  x_NHWC = batch.pop('images')
  draw = velocity_flow().draw(batch | {space: x_NHWC}, jax.random.key(0))
  t = draw.t.reshape(-1, 1, 1, 1)
  # x_t - t v = (1 - t) x + t e - t (e - x); float32 roundings of numbers up to 5.
  np.testing.assert_allclose(draw.x_t - t * draw.target, x_NHWC, rtol=0, atol=3e-6)


@pytest.mark.parametrize('path', ['cosine', 'vp'])
def test_other_paths_give_the_data_back(path):
  path, batch = interpolants.PATHS[path], examples(64)
  law = times.Uniform(epsilon=0.05)  # vp leaves e^-10 of the data at t = 1.
  draw = velocity_flow(path=path, time_law=law).draw(batch, jax.random.key(0))
  convert = lambda target: interpolants.convert.convert(
    draw.target, draw.x_t, draw.t, path, source='velocity', target=target
  )
  np.testing.assert_allclose(convert('x0'), batch['images'], rtol=0, atol=1e-3)
  # 1,024 standard normal values: four standard deviations of their mean square.
  assert abs(float(jnp.mean(jnp.square(convert('epsilon')))) - 1) < 4 * np.sqrt(2 / 1024)


def test_a_draw_is_a_function_of_the_key():
  batch = examples(8)
  draw = lambda seed: velocity_flow(label_dropout=0.5).draw(batch, jax.random.key(seed))
  jax.tree.map(np.testing.assert_array_equal, draw(0), draw(0))
  jitted = jax.jit(velocity_flow(label_dropout=0.5).draw)(batch, jax.random.key(0))
  # Compiled as one, products and sums may be contracted: one float32 rounding of numbers up to 5.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), jitted, draw(0))
  for name in ('x_t', 't', 'y', 'target'):
    assert not np.array_equal(getattr(draw(0), name), getattr(draw(1), name)), name


def test_time_noise_and_dropout_have_streams_of_their_own(many):
  batch, draw = many
  key, noise = jax.random.key(5), noise_of(batch, draw)
  # Changing one law leaves the other two draws as they were.
  no_dropout = velocity_flow(label_dropout=0.0).draw(batch, key)
  np.testing.assert_array_equal(no_dropout.t, draw.t)
  np.testing.assert_array_equal(no_dropout.x_t, draw.x_t)
  other_times = velocity_flow(time_law=times.LogitNormal()).draw(batch, key)
  assert not np.array_equal(other_times.t, draw.t)
  np.testing.assert_array_equal(other_times.y, draw.y)
  np.testing.assert_allclose(noise_of(batch, other_times), noise, rtol=0, atol=3e-6)
  # The streams are known by name, so that a resumed or repeated run draws the same.
  np.testing.assert_array_equal(draw.t, times.Uniform()(rng.stream(key, 'time'), len(noise)))
  by_name = jax.random.normal(rng.stream(key, 'noise'), noise.shape)
  np.testing.assert_allclose(noise, by_name, rtol=0, atol=3e-6)
  # The three are uncorrelated: four standard deviations, 1 / sqrt(n) each.
  three = np.stack([np.asarray(draw.t), noise.ravel(), np.asarray(draw.y) == CLASSES])
  correlation = np.corrcoef(three)[np.triu_indices(3, 1)]
  assert np.abs(correlation).max() < 4 / np.sqrt(three.shape[1]), correlation
  assert abs(noise.std() - 1) < 4 / np.sqrt(2 * noise.size)


# Microbatches.


def test_microbatches_keep_every_example_once_and_whole():
  n, parts = 12, 3
  rows = jnp.arange(n, dtype=jnp.float32)
  draw = base.Draw(
    x_t=jnp.broadcast_to(rows[:, None, None, None], (n, 2, 2, 1)), t=rows, y=jnp.arange(n),
    target=jnp.broadcast_to(-rows[:, None, None, None], (n, 2, 2, 1)),
    noise=jnp.zeros((n, 2, 2, 1)), batch={'labels': jnp.arange(n)},
  )  # fmt: skip
  split = base.microbatches(draw, parts)
  assert split.x_t.shape == (parts, n // parts, 2, 2, 1) and split.y.shape == (parts, n // parts)
  assert sorted(split.y.ravel().tolist()) == list(range(n))
  np.testing.assert_array_equal(split.t, split.y)  # The fields stay together.
  np.testing.assert_array_equal(split.x_t[..., 1, 1, 0], split.t)
  np.testing.assert_array_equal(split.target[..., 0, 1, 0], -split.t)
  # Neighbours go to different parts, so that each part lies on all devices.
  np.testing.assert_array_equal(split.y[:, 0], [0, 1, 2])


def test_mean_metrics():
  means = base.mean_metrics({'loss': jnp.asarray([1.0, 3.0]), 'velocity': jnp.asarray([0.0, 4.0])})
  assert {k: float(v) for k, v in means.items()} == {'loss': 2.0, 'velocity': 2.0}
