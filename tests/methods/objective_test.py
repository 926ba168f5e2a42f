"""Objectives: random draws of the flow, the diversity term through its tap, terms that add up."""

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
from diversedit_jax.interpolants import times
from diversedit_jax.losses import diversity
from diversedit_jax.losses.diversity_config import DiversityConfig
from diversedit_jax.methods import base, diverse, flow
from diversedit_jax.models import heads as heads_lib
from diversedit_jax.models import stack, taps

CLASSES = tiny.CLASSES
STEP = jnp.zeros((), jnp.int32)


class LastBlock(base.Term):
  """A second term with a head and a tap of its own: the mean square of a projected last block."""

  name: ClassVar[str] = 'last'

  def heads(self, config, *, rngs):
    return heads_lib.Projector(config.width, 8, 4, rngs=rngs)

  def tap(self, key, depth):
    return taps.chosen([depth - 1])

  def loss(self, features, context):
    value = jnp.mean(jnp.square(context.heads(features[0])))
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
      f,
      mi=config.mi,
      dispersion=config.dispersion,
      usage=config.usage,
      weights=config.weights,
      **selected,
    )
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


def check_metrics(metrics, expected, tolerance):
  assert metrics.keys() == expected.keys()
  assert 0.01 < float(metrics['weight']) < 0.99
  for name, value in expected.items():
    # The terms are cosines and shares: their unit is 1.
    np.testing.assert_allclose(metrics[name], value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize('name', CONFIGS)
def test_diverse_equals_the_plain_loop_over_all_features(name):
  """Through its tap; four blocks with something in common."""
  config, key = CONFIGS[name], jax.random.key(4)
  term, generator = diverse.Diverse(config=config), np.random.default_rng(0)
  with jax.enable_x64(True):
    common, own = generator.standard_normal((1, 4, 4, 16)), generator.standard_normal((4, 4, 4, 16))
    selected = what_to_compare(config, key)

    def streamed(f_LNTD):
      return term.loss(tiny.fold(term.tap(key, 4), f_LNTD), None)

    both = lambda f: [
      jax.value_and_grad(g, has_aux=True)(f)
      for g in (streamed, lambda f: by_hand(config, f, selected))
    ]
    found, expected = jax.jit(both)(jnp.asarray(2 * common + own))
    # Sums in another order: some hundreds of float64 roundings.
    check_metrics(found[0][1], expected[0][1], 1e-10)
    np.testing.assert_allclose(found[0][0], expected[0][0], rtol=0, atol=1e-10)
    assert np.abs(expected[1]).max() > 1e-4
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-12)


class Silent(flow.StochasticInterpolant):
  """Draws as its parent and scores nothing, so that only the terms have a gradient."""

  def loss(self, pred, target, t_N):
    return jnp.zeros_like(t_N)


def test_diverse_equals_the_plain_loop_in_float32_with_long_skips():
  """Through the whole network, whose second half runs backwards; see also `gradients_test`."""
  config, key = CONFIGS['given'], jax.random.key(4)
  silent = Silent(path=interpolants.linear(), time_law=times.Uniform(), null_label=CLASSES)
  objective = base.Objective(flow=silent, terms=(diverse.Diverse(config=config),))
  graphdef, params = tiny.parameters(tiny.config(depth=4, skip=stack.Skip()))
  images, t_N = tiny.batch()['images'], jnp.asarray([0.2, 0.5, 0.7, 0.9])
  draw = tiny.draw_of(images, images[::-1], jnp.arange(4), t_N, {'diverse': ()})
  draw = silent.at(draw, t_N)

  def loss_fn(params):
    return objective.loss(nnx.merge(graphdef, params), draw, key=key, step=STEP)

  def plain(params):
    model = nnx.merge(graphdef, params).model
    f_LNTD = model(draw.x_t, draw.t, draw.y, tap=taps.every()).features
    return by_hand(config, f_LNTD, what_to_compare(config, key))

  (loss, metrics), (expected, parts) = jax.jit(lambda p: (loss_fn(p), plain(p)))(params)
  assert loss == metrics.pop('loss') and metrics.pop('velocity') == 0
  # Sums in another order: some tens of float32 roundings.
  check_metrics({k.removeprefix('diverse/'): v for k, v in metrics.items()}, parts, 1e-5)
  np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-5)


def test_random_layers_follow_the_key_of_the_step():
  term = diverse.Diverse(config=DiversityConfig(layers='random', num_layers=2, adaptive=False))
  generator = np.random.default_rng(0)
  f_LNTD = jnp.asarray(generator.standard_normal((6, 2, 4, 8)), jnp.float32)

  def loss(step):
    tap = term.tap(rng.stream(jax.random.key(0), 'step', step), 6)
    features = tiny.fold(tap, f_LNTD)
    return term.loss(features, None)[0]

  losses = [float(x) for x in jax.lax.map(loss, jnp.arange(12))]
  assert losses == [float(x) for x in jax.lax.map(loss, jnp.arange(12))]
  # 15 pairs of blocks, 12 draws: all alike would be one value.
  assert len({round(x, 5) for x in losses}) >= 6


def test_diverse_refuses_models_and_batches_that_it_cannot_use():
  with pytest.raises(types.UserError, match='depth of at least 2, got 1'):
    diverse.Diverse().check(tiny.config(depth=1), 4)
  grouped = diverse.Diverse(config=DiversityConfig(groups=3))
  grouped.check(tiny.config(), 6)
  with pytest.raises(types.UserError, match='groups=3 does not divide the 4 examples'):
    grouped.check(tiny.config(), 4)


# The objective.


def test_terms_add_up_and_keep_their_names_and_heads():
  terms = (diverse.Diverse(config=CONFIGS['streaming']), LastBlock())
  objective = base.Objective(flow=tiny.interpolant(), terms=terms)
  graphdef, params = tiny.parameters(tiny.config(depth=4), terms)
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

  @dataclasses.dataclass(frozen=True, kw_only=True)
  class Looks(flow.StochasticInterpolant):
    encoders: ClassVar[tuple[str, ...]] = ('b',)

  looks = Looks(path=interpolants.linear(), time_law=times.Uniform(), null_label=CLASSES)
  objective = base.Objective(flow=looks, encoders=(encoder('a', 3), encoder('b', 2)))
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
  objective = base.Objective(flow=tiny.interpolant(), encoders=(encoder,))
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
  labels = np.arange(n, dtype=np.int32) % CLASSES
  return mean, std, {'moments': np.concatenate([mean, std], axis=-1), 'labels': labels}


def test_latents_are_drawn_anew_from_their_moments_at_every_step():
  mean, std, batch = moments()
  scaling = latents.Scaling(scale=0.5, shift=2.0)
  objective = base.Objective(flow=tiny.interpolant(), scaling=scaling)
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
  objective, key = base.Objective(flow=tiny.interpolant()), jax.random.key(0)
  as_bytes = objective.draw({'images': levels, 'labels': labels}, key)
  as_floats = objective.draw(
    {'images': (levels / 127.5 - 1).astype(np.float32), 'labels': labels}, key
  )
  # One float32 rounding each of the division and the subtraction.
  np.testing.assert_allclose(as_bytes.clean, as_floats.clean, atol=2e-7)
  np.testing.assert_allclose(as_bytes.x_t, as_floats.x_t, atol=1e-6)
  np.testing.assert_allclose(base.pixels({'images': levels}), levels / 127.5 - 1, atol=2e-7)


# What is random.


@pytest.fixture(scope='module')
def many():
  """20,000 one-pixel examples and their draw, label dropout 0.1."""
  batch = tiny.batch(20_000, shape=(1, 1, 1))
  return batch, tiny.interpolant().draw(batch, jax.random.key(5))


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
  batch = tiny.batch(50)
  kept = tiny.interpolant(label_dropout=0.0).draw(batch, jax.random.key(0))
  np.testing.assert_array_equal(kept.y, batch['labels'])
  unconditional = tiny.interpolant(null_label=None).draw(batch, jax.random.key(0))
  np.testing.assert_array_equal(unconditional.y, np.zeros(50))
  assert unconditional.y.dtype == batch['labels'].dtype


@pytest.mark.parametrize('probability', [-0.1, 1.0, 1.5])
def test_impossible_dropout_is_refused(probability):
  with pytest.raises(types.UserError, match=rf'must lie in \[0, 1\), got {probability}'):
    tiny.interpolant(label_dropout=probability)


@pytest.mark.parametrize('space', ['images', 'latents'])
def test_linear_path_gives_the_data_back(space):
  batch = tiny.batch(64)
  x_NHWC = batch.pop('images')
  draw = tiny.interpolant().draw(batch | {space: x_NHWC}, jax.random.key(0))
  t = draw.t.reshape(-1, 1, 1, 1)
  # x_t - t v = (1 - t) x + t e - t (e - x); float32 roundings of numbers up to 5.
  np.testing.assert_allclose(draw.x_t - t * draw.target, x_NHWC, rtol=0, atol=3e-6)


@pytest.mark.parametrize('path', ['cosine', 'vp'])
def test_other_paths_give_the_data_back(path):
  path, batch = interpolants.PATHS[path], tiny.batch(64)
  law = times.Uniform(epsilon=0.05)  # vp leaves e^-10 of the data at t = 1.
  draw = tiny.interpolant(path=path, time_law=law).draw(batch, jax.random.key(0))
  convert = lambda target: interpolants.convert.convert(
    draw.target, draw.x_t, draw.t, path, source='velocity', target=target
  )
  np.testing.assert_allclose(convert('x0'), batch['images'], rtol=0, atol=1e-3)
  # 1,024 standard normal values: four standard deviations of their mean square.
  assert abs(float(jnp.mean(jnp.square(convert('epsilon')))) - 1) < 4 * np.sqrt(2 / 1024)


def test_a_draw_is_a_function_of_the_key():
  batch = tiny.batch(8)
  draw = lambda seed: tiny.interpolant(label_dropout=0.5).draw(batch, jax.random.key(seed))
  jax.tree.map(np.testing.assert_array_equal, draw(0), draw(0))
  jitted = jax.jit(tiny.interpolant(label_dropout=0.5).draw)(batch, jax.random.key(0))
  # Compiled as one, products and sums may be contracted: one float32 rounding of numbers up to 5.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-6), jitted, draw(0))
  for name in ('x_t', 't', 'y', 'target'):
    assert not np.array_equal(getattr(draw(0), name), getattr(draw(1), name)), name


def test_time_noise_and_dropout_have_streams_of_their_own(many):
  batch, draw = many
  key, noise = jax.random.key(5), noise_of(batch, draw)
  # Changing one law leaves the other two draws as they were.
  no_dropout = tiny.interpolant(label_dropout=0.0).draw(batch, key)
  np.testing.assert_array_equal(no_dropout.t, draw.t)
  np.testing.assert_array_equal(no_dropout.x_t, draw.x_t)
  other_times = tiny.interpolant(time_law=times.LogitNormal()).draw(batch, key)
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
    x_t=jnp.broadcast_to(rows[:, None, None, None], (n, 2, 2, 1)),
    t=rows,
    y=jnp.arange(n),
    target=jnp.broadcast_to(-rows[:, None, None, None], (n, 2, 2, 1)),
    noise=jnp.zeros((n, 2, 2, 1)),
    batch={'labels': jnp.arange(n)},
  )
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
