"""What the diversity loss compares and how it weighs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.methods import diverse
from diversedit_jax.methods.diverse import definition

Diverse = diverse.Diverse


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    *(({'layers': text}, 'at least two different') for text in ('some', '3', '3,3', '0,2', '1,,2')),
    ({'num_layers': 5}, "num_layers=5 is for diversity.layers='random', got 'all'"),
    ({'encoder_depth': 8}, "encoder_depth=8 is for diversity.layers='authors'"),
    ({'layers': 'authors', 'dispersion_layers': 'selected'}, 'takes all blocks'),
    ({'weights': (0.0, 0.0, 0.0)}, 'weigh nothing; leave diverse out'),
    ({'lo': 0.5, 'hi': 0.5}, 'lo=0.5 must be below diversity.hi=0.5'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(types.UserError, match=message):
    Diverse(**options)


@pytest.mark.parametrize(
  ('term', 'whole'),
  [
    (Diverse(), False),
    (Diverse(layers='random'), False),
    (Diverse(layers='2,3', dispersion='code', usage='signed'), False),
    (Diverse(mi='absolute'), True),
    (Diverse(layers='authors'), True),
  ],
)
def test_needs_all_features_exactly_when_sums_do_not_suffice(term, whole):
  assert term.needs_all_features == whole


def test_select_all_given_random_and_authors():
  everything = Diverse().select(4)
  np.testing.assert_array_equal(everything.selected_L, [1, 1, 1, 1])
  assert everything.pairs_LL.sum() == 6
  given = Diverse(layers='4,2', dispersion_layers='all').select(4)
  np.testing.assert_array_equal(given.selected_L, [0, 1, 0, 1])
  np.testing.assert_array_equal(given.dispersion_L, [1, 1, 1, 1])
  drawn = jax.jit(lambda key: Diverse(layers='random').select(28, key))(jax.random.key(1))
  assert int(drawn.selected_L.sum()) == 10 and int(drawn.pairs_LL.sum()) == 45
  np.testing.assert_array_equal(drawn.dispersion_L, drawn.selected_L)
  authors = Diverse(layers='authors', encoder_depth=8).select(12)
  assert np.argwhere(authors.pairs_LL).tolist() == [[1, j] for j in range(2, 12)]
  np.testing.assert_array_equal(authors.dispersion_L, np.ones(12))


@pytest.mark.parametrize(
  ('term', 'depth', 'message'),
  [
    (Diverse(), 1, 'depth of at least 2, got 1'),
    (Diverse(layers='authors'), 1, 'depth of at least 2, got 1'),
    (Diverse(layers='1,8'), 4, 'block 8 is not one of 1 to 4'),
    (Diverse(layers='random', num_layers=5), 4, '5 random layers'),
  ],
)
def test_select_refuses_depths(term, depth, message):
  with pytest.raises(types.UserError, match=message):
    term.select(depth, jax.random.key(0))


def test_select_random_wants_a_key():
  with pytest.raises(types.UserError, match='needs a key'):
    Diverse(layers='random').select(12)


def test_objective_weighs_every_group_by_itself():
  loss_G = jnp.asarray([0.05, 0.3, 0.7])  # Weights 0, 0.4 and 1.
  terms_G = {'orth': loss_G, 'mi': 2 * loss_G, 'disp': -loss_G}
  added, metrics = Diverse(groups=3).objective(loss_G, terms_G)
  np.testing.assert_allclose(added, (0.4 * 0.3 + 0.7) / 3, rtol=1e-6)
  assert set(metrics) == {'loss', 'weight', 'orth', 'mi', 'disp'}
  np.testing.assert_allclose(metrics['loss'], 0.35, rtol=1e-6)
  np.testing.assert_allclose(metrics['weight'], 1.4 / 3, rtol=1e-6)
  np.testing.assert_allclose(metrics['mi'], 0.7, rtol=1e-6)
  mean_first, _ = definition.weighted(jnp.mean(loss_G))
  assert abs(float(added - mean_first)) > 0.05  # Averaging before weighing is another loss.


def test_objective_gradient_options():
  terms = dict.fromkeys(('orth', 'mi', 'disp'), jnp.zeros(1))
  slope = lambda term: float(
    jax.grad(lambda l: term.objective(l[None], terms)[0])(jnp.float32(0.3))
  )
  # w = (L - 0.1) / 0.5 = 0.4 at L = 0.3, and L dw/dL = 0.6.
  np.testing.assert_allclose(slope(Diverse()), 1.0, rtol=1e-6)
  np.testing.assert_allclose(slope(Diverse(stop_gradient_weight=True)), 0.4, rtol=1e-6)
  np.testing.assert_allclose(slope(Diverse(lo=0.0, hi=1.0)), 0.6, rtol=1e-6)
  constant = Diverse(adaptive=False)
  np.testing.assert_allclose(slope(constant), 1.0, rtol=0)
  np.testing.assert_allclose(
    constant.objective(jnp.asarray([0.3]), terms)[0], np.float32(0.3), rtol=0
  )
