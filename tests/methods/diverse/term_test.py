"""The diversity term through its tap, against the plain loop over all block outputs."""

from flax import nnx
from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, rng, types
from diversedit_jax.interpolants import times
from diversedit_jax.methods import diverse, flow
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.methods.diverse import definition
from diversedit_jax.models import config as model_config
from diversedit_jax.models import taps


def what_to_compare(term, key):
  """The blocks or pairs of a model of four blocks, as `diversity_loss` wants them."""
  if term.layers == 'random':
    drawn_L = term.select(4, rng.stream(key, 'diverse/layers')).selected_L
    return dict(layers=np.flatnonzero(drawn_L).tolist())
  if term.layers == 'authors':
    # Their rule for M = 6 pairs, aligned at e = 4: i from M - e - 1 = 1, j from i + 1.
    return dict(pairs=[(1, 2), (1, 3), (2, 3)])
  return dict(layers={'all': None, '4,1,2': [3, 0, 1]}[term.layers])


def by_hand(term, f_LNTD, selected):
  """The weighted loss of each group by the plain loop over pairs, averaged; and its parts."""
  parts = jnp.split(f_LNTD, term.groups, axis=1)
  added, metrics = 0.0, []
  for f in parts:
    value, terms = definition.diversity_loss(
      f,
      mi=term.mi,
      dispersion=term.dispersion,
      usage=term.usage,
      weights=term.weights,
      **selected,
    )
    weight = (value - term.lo) / term.hi  # The adaptive weight: 0 at lo.
    added = added + weight * value / len(parts)
    metrics.append({'loss': value, 'weight': weight, **terms})
  return added, jax.tree.map(lambda *x: sum(x) / len(x), *metrics)


# Ranges in which every loss below has a weight between 0 and 1, and so a gradient through it.
WIDE = dict(lo=0.0, hi=2.0)
TERMS = {
  'streaming': diverse.Diverse(**WIDE),
  'random': diverse.Diverse(layers='random', num_layers=2, **WIDE),
  'given': diverse.Diverse(layers='4,1,2', usage='signed', **WIDE),
  'absolute': diverse.Diverse(mi='absolute', dispersion='code', **WIDE),
  'authors': diverse.Diverse(
    layers='authors', encoder_depth=4, mi='absolute', dispersion='code', **WIDE
  ),
  'groups': diverse.Diverse(groups=2, lo=0.01, hi=2.0),
}


def check_metrics(metrics, expected, tolerance):
  assert metrics.keys() == expected.keys()
  assert 0.01 < float(metrics['weight']) < 0.99
  for name, value in expected.items():
    # The terms are cosines and shares: their unit is 1.
    np.testing.assert_allclose(metrics[name], value, rtol=0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize('name', TERMS)
def test_diverse_equals_the_plain_loop_over_all_features(name):
  """Through its tap; four blocks with something in common."""
  term, key = TERMS[name], jax.random.key(4)
  generator = np.random.default_rng(0)
  with jax.enable_x64(True):
    common, own = generator.standard_normal((1, 4, 4, 16)), generator.standard_normal((4, 4, 4, 16))
    selected = what_to_compare(term, key)

    def streamed(f_LNTD):
      return term.loss(tiny.fold(term.tap(key, 4), f_LNTD), None)

    both = lambda f: [
      jax.value_and_grad(g, has_aux=True)(f)
      for g in (streamed, lambda f: by_hand(term, f, selected))
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
  term, key = TERMS['given'], jax.random.key(4)
  silent = Silent(path=interpolants.linear(), time_law=times.Uniform(), null_label=tiny.CLASSES)
  objective = objective_lib.Objective(flow=silent, terms=(term,))
  graphdef, params = tiny.parameters(
    tiny.architecture(depth=4, skip=model_config.Skip(enabled=True))
  )
  images, t_N = tiny.batch()['images'], jnp.asarray([0.2, 0.5, 0.7, 0.9])
  draw = tiny.noisy_of(images, images[::-1], jnp.arange(4), t_N, {'diverse': ()})
  draw = silent.at(draw, t_N)

  def loss_fn(params):
    return objective.loss(nnx.merge(graphdef, params), draw, key=key, step=jnp.int32(0))

  def plain(params):
    model = nnx.merge(graphdef, params).model
    f_LNTD = model(draw.x_t, draw.t, draw.y, tap=taps.every()).features
    return by_hand(term, f_LNTD, what_to_compare(term, key))

  (loss, metrics), (expected, parts) = jax.jit(lambda p: (loss_fn(p), plain(p)))(params)
  assert loss == metrics.pop('loss') and metrics.pop('velocity') == 0
  # Sums in another order: some tens of float32 roundings.
  check_metrics({k.removeprefix('diverse/'): v for k, v in metrics.items()}, parts, 1e-5)
  np.testing.assert_allclose(loss, expected, rtol=0, atol=1e-5)


def test_random_layers_follow_the_key_of_the_step():
  term = diverse.Diverse(layers='random', num_layers=2, adaptive=False)
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
    diverse.Diverse().check(tiny.architecture(depth=1), 4)
  grouped = diverse.Diverse(groups=3)
  grouped.check(tiny.architecture(), 6)
  with pytest.raises(types.UserError, match='groups=3 does not divide the 4 examples'):
    grouped.check(tiny.architecture(), 4)
