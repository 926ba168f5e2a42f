"""Options of the diversity loss: presets, refusals, selection, the weighted objective."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.losses import diversity, diversity_config, diversity_layers

Config = diversity_config.DiversityConfig


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'layers': 'some'}, "layers is 'some'"),
    ({'layers': (3,)}, r'layers are \(3,\)'),
    ({'layers': (3, 3)}, 'at least two different'),
    ({'num_layers': 5}, "num_layers=5 needs layers='random', got layers='all'"),
    ({'num_layers': 1, 'layers': 'random'}, 'num_layers=1'),
    ({'encoder_depth': 8}, "encoder_depth=8 needs layers='authors'"),
    ({'dispersion_layers': 'none'}, "dispersion_layers='none'"),
    ({'layers': 'authors', 'dispersion_layers': 'selected'}, 'takes all blocks'),
    ({'mi': 'squared'}, "mi is 'squared'"),
    ({'weights': (1.0,)}, 'expected three'),
    ({'groups': 0}, 'groups=0'),
    ({'lo': 0.5, 'hi': 0.5}, 'lo=0.5, hi=0.5'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(types.UserError, match=message):
    Config(**options)


def test_is_hashable_also_from_lists():
  assert hash(Config(layers=[0, 2], weights=[1, 1, 1])) == hash(
    Config(layers=(0, 2), weights=(1.0, 1.0, 1.0))
  )


@pytest.mark.parametrize(
  ('config', 'whole'),
  [
    (Config(), False),
    (Config(layers='random'), False),
    (Config(layers=(1, 2), dispersion='code', usage='signed'), False),
    (Config(mi='absolute'), True),
    (Config(layers='authors'), True),
    (Config.authors(8), True),
  ],
)
def test_needs_all_features_exactly_when_sums_do_not_suffice(config, whole):
  assert config.needs_all_features == whole


def test_select_all_given_random_and_authors():
  everything = Config().select(4)
  np.testing.assert_array_equal(everything.selected_L, [1, 1, 1, 1])
  assert everything.pairs_LL.sum() == 6
  given = Config(layers=(3, 1), dispersion_layers='all').select(4)
  np.testing.assert_array_equal(given.selected_L, [0, 1, 0, 1])
  np.testing.assert_array_equal(given.dispersion_L, [1, 1, 1, 1])
  drawn = jax.jit(lambda key: Config(layers='random').select(28, key))(jax.random.key(1))
  assert int(drawn.selected_L.sum()) == 10 and int(drawn.pairs_LL.sum()) == 45
  np.testing.assert_array_equal(drawn.dispersion_L, drawn.selected_L)
  authors = Config.authors(8).select(12)
  assert np.argwhere(authors.pairs_LL).tolist() == [[1, j] for j in range(2, 12)]
  np.testing.assert_array_equal(authors.dispersion_L, np.ones(12))


@pytest.mark.parametrize(
  ('config', 'depth', 'message'),
  [
    (Config(), 1, 'depth of at least 2, got 1'),
    (Config(layers='authors'), 1, 'depth of at least 2, got 1'),
    (Config(layers=(0, 7)), 4, 'from 0 to 3, got'),
    (Config(layers='random', num_layers=5), 4, '5 random layers'),
  ],
)
def test_select_refuses_depths(config, depth, message):
  with pytest.raises(types.UserError, match=message):
    config.select(depth, jax.random.key(0))


def test_select_random_wants_a_key():
  assert Config(layers='random').needs_key and not Config().needs_key
  with pytest.raises(types.UserError, match='needs a key'):
    Config(layers='random').select(12)


def test_objective_weighs_every_group_by_itself():
  loss_G = jnp.asarray([0.05, 0.3, 0.7])  # Weights 0, 0.4 and 1.
  terms_G = {'orth': loss_G, 'mi': 2 * loss_G, 'disp': -loss_G}
  added, metrics = Config(groups=3).objective(loss_G, terms_G)
  np.testing.assert_allclose(added, (0.4 * 0.3 + 0.7) / 3, rtol=1e-6)
  assert set(metrics) == {'diversity', 'diversity_weight', 'orth', 'mi', 'disp'}
  np.testing.assert_allclose(metrics['diversity'], 0.35, rtol=1e-6)
  np.testing.assert_allclose(metrics['diversity_weight'], 1.4 / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics['mi'], 0.7, rtol=1e-6)
  mean_first, _ = diversity.weighted(jnp.mean(loss_G))
  assert abs(float(added - mean_first)) > 0.05  # Averaging before weighing is another loss.


def test_objective_gradient_options():
  terms = dict.fromkeys(('orth', 'mi', 'disp'), jnp.zeros(1))
  slope = lambda config: float(
    jax.grad(lambda l: config.objective(l[None], terms)[0])(jnp.float32(0.3))
  )
  # w = (L - 0.1) / 0.5 = 0.4 at L = 0.3, and L dw/dL = 0.6.
  np.testing.assert_allclose(slope(Config()), 1.0, rtol=1e-6)
  np.testing.assert_allclose(slope(Config(stop_gradient_weight=True)), 0.4, rtol=1e-6)
  constant = dataclasses.replace(Config(), adaptive=False)
  np.testing.assert_allclose(slope(constant), 1.0, rtol=0)
  np.testing.assert_allclose(
    constant.objective(jnp.asarray([0.3]), terms)[0], np.float32(0.3), rtol=0
  )
  np.testing.assert_allclose(slope(Config(lo=0.0, hi=1.0)), 0.6, rtol=1e-6)


def test_layers_are_not_confused_with_pairs():
  assert (
    Config(layers=(0, 1)).select(3).pairs_LL.tolist()
    == diversity_layers.select_pairs([(0, 1)], 3).pairs_LL.tolist()
  )
