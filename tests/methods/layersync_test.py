"""LayerSync: values and gradients of the reference, several pairs, what is refused."""

import json
import types as types_of_python

from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.methods import layersync

KEY = jax.random.key(0)


def value(term, f_LNTD):
  """The weighted loss and metrics of all block outputs, through the term's tap."""
  return term.loss(tiny.fold(term.tap(KEY, len(f_LNTD)), f_LNTD), None)


def pairs_of(g):
  return [tuple(pair) for pair in json.loads(str(g['config']))['pairs']]


def test_values_and_gradients_match_the_reference(golden):
  g = golden('layersync')
  for k, m in pairs_of(g):
    name, term = f'pair_{k}_{m}', layersync.LayerSync(pairs=f'{k}:{m}', weight=0.2)
    with jax.enable_x64(True):
      f = jnp.asarray(g['features'], jnp.float64)
      elementwise = layersync.distance(f[k - 1], f[m - 1])
      np.testing.assert_allclose(elementwise, g[f'{name}/reg_elementwise_f64'], atol=1e-12)
      grads = jax.grad(lambda f, term=term: value(term, f)[1]['loss'])(f)
      np.testing.assert_allclose(grads[k - 1], g[f'{name}/grad_student_f64'], atol=1e-12)
      # Nothing reaches the later block, nor any other.
      assert not np.delete(np.asarray(grads), k - 1, axis=0).any()
    loss, metrics = value(term, jnp.asarray(g['features']))
    np.testing.assert_allclose(metrics['loss'], g[f'{name}/reg'], atol=1e-6)
    np.testing.assert_allclose(loss, 0.2 * g[f'{name}/reg'], atol=1e-6)


def test_all_pairs_count_where_the_released_code_takes_the_last(golden):
  g = golden('layersync')
  pairs = pairs_of(g)
  term = layersync.LayerSync(pairs=','.join(f'{k}:{m}' for k, m in pairs), weight=0.5)
  loss, metrics = value(term, jnp.asarray(g['features']))
  each = [g[f'pair_{k}_{m}/reg'] for k, m in pairs]
  np.testing.assert_allclose(loss, 0.5 * sum(each), atol=1e-6)
  np.testing.assert_allclose([metrics[f'pair_{k}_{m}'] for k, m in pairs], each, atol=1e-6)
  np.testing.assert_allclose(g['multiple_official/reg'], each[-1], atol=1e-7)  # The slip.


def test_a_block_may_be_in_several_pairs():
  f = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2, 3, 8)), jnp.float32)
  one, other, both = (
    value(layersync.LayerSync(pairs=pairs), f)[1]['loss'] for pairs in ('1:4', '2:4', '1:4,2:4')
  )
  np.testing.assert_allclose(both, one + other, rtol=1e-6)


@pytest.mark.parametrize(
  ('depth', 'pairs'), [(28, '8:16'), (24, '8:18'), (12, '3:7'), (6, '2:3'), (2, '1:2')]
)
def test_pairs_by_depth(depth, pairs):
  setup = types_of_python.SimpleNamespace(architecture=tiny.architecture(depth=depth))
  assert layersync.LayerSync().prepare(setup).pairs == pairs
  assert layersync.LayerSync(pairs='1:2').prepare(setup).pairs == '1:2'


@pytest.mark.parametrize(
  ('pairs', 'words'),
  [
    ('8:8', 'block 8 cannot learn from itself'),
    ('1:2,3', "'3' is no pair"),
    ('0:2', "'0:2' is no pair"),
    ('1-2', "'1-2' is no pair"),
  ],
)
def test_what_is_no_pair_is_refused(pairs, words):
  with pytest.raises(types.UserError, match=words):
    layersync.LayerSync(pairs=pairs)


def test_a_block_that_the_model_lacks_is_refused():
  term = layersync.LayerSync(pairs='1:2,2:5')
  with pytest.raises(types.UserError, match='layersync.pairs: block 5 is not one of 1 to 4'):
    term.check(tiny.architecture(depth=4), 4)
  term.check(tiny.architecture(depth=5), 4)
