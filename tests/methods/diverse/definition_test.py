"""The definition of the diversity loss: reference values, finite differences, invariances."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.methods.diverse import definition, layers

GOLDEN = np.load(pathlib.Path(__file__).parents[2] / 'golden' / 'diversity.npz')
# Reference values are float64 sums of fewer than 1e5 terms of order one.
EXACT = {'rtol': 1e-12, 'atol': 1e-13}
AUTHORS = {'mi': 'absolute', 'dispersion': 'code', 'weights': definition.THIRDS}


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def golden(name):
  return GOLDEN[name]


def features(case):
  return jnp.asarray(GOLDEN[f'{case}/feats'], jnp.float64)


@pytest.mark.parametrize('case', ['big', 'small'])
@pytest.mark.parametrize('which', ['all', 'subset'])
def test_terms_match_reference(case, which):
  f_LNTD = features(case)
  chosen = None if which == 'all' else golden(f'{case}/subset')
  plain = definition.diversity_loss(f_LNTD, layers=chosen)[1]
  np.testing.assert_allclose(plain['orth'], golden(f'{case}/{which}/orth'), **EXACT)
  np.testing.assert_allclose(plain['mi'], golden(f'{case}/{which}/mi'), **EXACT)
  np.testing.assert_allclose(plain['disp'], golden(f'{case}/disp_paper/{which}'), **EXACT)
  code = definition.diversity_loss(f_LNTD, layers=chosen, mi='absolute', dispersion='code')[1]
  np.testing.assert_allclose(code['mi'], golden(f'{case}/{which}/mi_abs'), **EXACT)
  np.testing.assert_allclose(code['disp'], golden(f'{case}/disp_official/{which}'), **EXACT)
  signed = definition.diversity_loss(f_LNTD, layers=chosen, usage='signed')[1]
  # The signed usage is divided by a small maximum, which costs a digit or two.
  np.testing.assert_allclose(signed['disp'], golden(f'{case}/disp_paper_noabs/{which}'), rtol=1e-10)


@pytest.mark.parametrize('case', ['big', 'small'])
@pytest.mark.parametrize('which', ['all', 'subset'])
def test_channel_usage_matches_reference(case, which):
  f_LNTD = features(case)
  blocks = range(len(f_LNTD)) if which == 'all' else golden(f'{case}/subset')
  a_D = definition.channel_usage(f_LNTD, blocks)
  np.testing.assert_allclose(a_D, golden(f'{case}/usage_abs_unnormalised/{which}'), **EXACT)
  np.testing.assert_allclose(a_D / a_D.max(), golden(f'{case}/usage/{which}'), **EXACT)
  np.testing.assert_allclose(-jnp.var(a_D), golden(f'{case}/disp_paper_nomax/{which}'), **EXACT)
  np.testing.assert_allclose(
    definition.channel_usage(f_LNTD, blocks, 'signed'),
    golden(f'{case}/usage_noabs_unnormalised/{which}'),
    **EXACT,
  )


@pytest.mark.parametrize('case', ['big', 'small'])
def test_totals_match_reference(case):
  f_LNTD = features(case)
  subset = golden(f'{case}/subset')
  selections = {
    'all': {},
    'subset_disp_subset': {'layers': subset},
    'subset_disp_all': {'layers': subset, 'dispersion_layers': range(len(f_LNTD))},
  }
  for suffix, weights in (('033', definition.PAPER_WEIGHTS), ('third', definition.THIRDS)):
    for name, selection in selections.items():
      loss, _ = definition.diversity_loss(f_LNTD, weights=weights, **selection)
      np.testing.assert_allclose(loss, golden(f'{case}/L_div_paper_{suffix}/{name}'), **EXACT)
    loss, _ = definition.diversity_loss(f_LNTD, weights=weights)
    np.testing.assert_allclose(
      definition.weighted(loss)[0],
      golden(f'{case}/weighted_L_div_paper_{suffix}/all'),
      rtol=1e-11,  # L - 0.1 loses a digit.
      atol=1e-14,
    )
    loss, _ = definition.diversity_loss(f_LNTD, weights=weights, usage='signed')
    np.testing.assert_allclose(loss, golden(f'{case}/L_div_paper_noabs_{suffix}/all'), rtol=1e-10)


@pytest.mark.parametrize('case', ['big', 'small'])
@pytest.mark.parametrize('encoder_depth', [None, 2, 4, 8, 10])
def test_authors_code_matches_reference(case, encoder_depth):
  rule = 'first10' if encoder_depth is None else f'proj_enc{encoder_depth}'
  f_LNTD = features(case)
  pairs = layers.authors_pairs(len(f_LNTD), encoder_depth)
  assert pairs == [tuple(pair) for pair in golden(f'{case}/official/{rule}/pairs').tolist()]
  loss, terms = definition.diversity_loss(f_LNTD, pairs=pairs, **AUTHORS)
  for name, value in {**terms, 'total': loss}.items():
    np.testing.assert_allclose(value, golden(f'{case}/official/{rule}/{name}'), **EXACT)
  loss, terms = definition.diversity_loss(f_LNTD.astype(jnp.float32), pairs=pairs, **AUTHORS)
  for name, value in {**terms, 'total': loss}.items():
    assert value.dtype == jnp.float32
    # Two float32 evaluations in different order; terms are of order one.
    np.testing.assert_allclose(
      value, golden(f'{case}/official/{rule}/{name}_f32'), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
  ('name', 'options', 'term'),
  [
    ('orth', {}, 'orth'),
    ('mi', {}, 'mi'),
    ('disp_paper', {}, 'disp'),
    ('L_div_paper_033', {}, None),
    (
      'L_div_official_first10',
      {'pairs': layers.authors_pairs(5), **AUTHORS},
      None,
    ),
  ],
)
def test_gradients_match_reference(name, options, term):
  def loss(f_LNTD):
    total, terms = definition.diversity_loss(f_LNTD, **options)
    return total if term is None else terms[term]

  value, gradient = jax.jit(jax.value_and_grad(loss))(features('small'))
  wanted = golden(f'small/grad/{name}')
  np.testing.assert_allclose(value, golden(f'small/grad_value/{name}'), **EXACT)
  # Relative to the largest entry: entries near zero are differences of larger ones.
  np.testing.assert_allclose(gradient, wanted, rtol=1e-12, atol=1e-12 * np.abs(wanted).max())


VARIANTS = [
  {},
  {'mi': 'absolute'},
  {'dispersion': 'code'},
  {'usage': 'signed', 'weights': (0.1, 0.2, 0.3)},
  {'layers': (0, 2), 'groups': 2},
  {'pairs': [(2, 0), (1, 2), (0, 2)], 'mi': 'absolute', 'dispersion': 'code'},
]


@pytest.mark.parametrize('options', VARIANTS, ids=str)
def test_gradient_is_the_finite_difference(options):
  rng = np.random.default_rng(2)
  f_LNTD = jnp.asarray(rng.normal(size=(3, 2, 2, 6)) + 0.5)
  direction = jnp.asarray(rng.normal(size=f_LNTD.shape))
  loss = jax.jit(
    jax.value_and_grad(lambda s: definition.diversity_loss(f_LNTD + s * direction, **options)[0])
  )
  # Error h^2 f'''/6 + eps/h, both about 1e-10 at this h.
  h = 1e-5
  wanted = (loss(h)[0] - loss(-h)[0]) / (2 * h)
  np.testing.assert_allclose(loss(0.0)[1], wanted, rtol=1e-6, atol=1e-9)
  assert abs(wanted) > 1e-4, 'the direction must change the loss for the test to mean anything'


def test_invariances():
  rng = np.random.default_rng(3)
  f_LNTD = jnp.asarray(rng.normal(size=(5, 4, 3, 8)) + 0.3)
  for options in ({}, {'mi': 'absolute', 'dispersion': 'code'}):
    compute = jax.jit(lambda f, options=options: definition.diversity_loss(f, **options))
    loss, terms = compute(f_LNTD)
    for changed in (
      f_LNTD[rng.permutation(5)],
      f_LNTD[:, rng.permutation(4)],
      f_LNTD[:, :, rng.permutation(3)],
      f_LNTD[..., rng.permutation(8)],
      f_LNTD * jnp.asarray([1e-8, 0.1, 1, 30, 1e8])[:, None, None, None],
    ):
      assert not np.array_equal(changed, f_LNTD)
      same, same_terms = compute(changed)
      np.testing.assert_allclose(same, loss, rtol=1e-12)
      for name in terms:
        np.testing.assert_allclose(same_terms[name], terms[name], rtol=1e-12)


def test_signed_and_absolute_mi_differ_where_they_should():
  f_LNTD = jnp.stack([jnp.ones((2, 3, 4)), -jnp.ones((2, 3, 4))])
  for mi, wanted in (('signed', -1.0), ('absolute', 1.0)):
    terms = definition.diversity_loss(f_LNTD, mi=mi)[1]
    np.testing.assert_allclose(terms['mi'], wanted, rtol=1e-15)
    np.testing.assert_allclose(terms['orth'], -1.0, rtol=1e-15)


def test_groups_average_the_losses_of_the_parts():
  f_LNTD = jnp.asarray(np.random.default_rng(4).normal(size=(3, 6, 2, 5)))
  loss, terms = definition.diversity_loss(f_LNTD, groups=3)
  parts = [definition.diversity_loss(f_LNTD[:, n : n + 2])[0] for n in (0, 2, 4)]
  np.testing.assert_allclose(loss, np.mean(parts), rtol=1e-14)
  whole, whole_terms = definition.diversity_loss(f_LNTD)
  assert abs(loss - whole) > 1e-3 and abs(terms['orth'] - whole_terms['orth']) > 1e-3
  np.testing.assert_allclose(terms['mi'], whole_terms['mi'], rtol=1e-13)  # Already a mean.


def test_bfloat16_features_are_measured_in_float32():
  f_LNTD = features('small').astype(jnp.bfloat16)
  loss, terms = definition.diversity_loss(f_LNTD)
  wanted, _ = definition.diversity_loss(f_LNTD.astype(jnp.float64))
  assert loss.dtype == jnp.float32 and all(t.dtype == jnp.float32 for t in terms.values())
  np.testing.assert_allclose(loss, wanted, rtol=1e-5)


def test_adaptive_weight_matches_reference():
  loss = jnp.asarray(golden('weight/L'))
  np.testing.assert_allclose(definition.adaptive_weight(loss), golden('weight/w'), **EXACT)
  for stop, name in ((True, 'stop_gradient'), (False, 'official_no_detach')):
    value, weight = definition.weighted(loss, stop_gradient=stop)
    np.testing.assert_allclose(weight, golden('weight/w'), **EXACT)
    np.testing.assert_allclose(value, golden('weight/weighted_loss'), **EXACT)
    slope = jax.vmap(jax.grad(lambda l, stop=stop: definition.weighted(l, stop_gradient=stop)[0]))
    np.testing.assert_allclose(slope(loss), golden(f'weight/grad_factor_{name}'), **EXACT)


def test_adaptive_weight_of_another_range():
  weight = definition.adaptive_weight(jnp.asarray([0.2, 0.45, 0.7, 0.71]), 0.2, 0.7)
  np.testing.assert_allclose(weight, [0, 0.25 / 0.7, 0.5 / 0.7, 1], rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize('case', ['big', 'small'])
def test_similarity_matrices_match_reference(case):
  matrices = definition.similarity_matrices(features(case))
  np.testing.assert_allclose(matrices['token'], golden(f'{case}/mi_matrix'), **EXACT)
  np.testing.assert_allclose(matrices['mean'], golden(f'{case}/orth_matrix'), **EXACT)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'layers': [1]}, 'at least two different layers from 0 to 3, got'),
    ({'layers': [1, 1]}, 'at least two different layers'),
    ({'layers': [1, 4]}, 'at least two different layers'),
    ({'layers': [0, 1], 'pairs': [(0, 1)]}, 'layers or pairs'),
    ({'dispersion_layers': []}, 'dispersion layers'),
    ({'mi': 'square'}, "unknown mi 'square'"),
    ({'dispersion': 'x'}, "unknown dispersion 'x'"),
    ({'usage': 'x'}, "unknown usage 'x'"),
    ({'weights': (1, 1)}, 'expected three'),
    ({'groups': 2}, 'divide the batch of 3'),
  ],
)
def test_refuses(options, message):
  with pytest.raises(types.UserError, match=message):
    definition.diversity_loss(jnp.ones((4, 3, 2, 5)), **options)
