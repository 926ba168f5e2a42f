"""Tables of arrays: numbers against numpy, and few lines for many names."""

import ml_dtypes
import numpy as np

from diversedit_jax.weights import summary

RNG = np.random.default_rng(0)
BLOCKS = {
  f'blocks.{i}.{name}': RNG.normal(size=shape).astype(np.float32)
  for i in range(12)
  for name, shape in {'mlp.0.weight': (8, 4), 'mlp.2.weight': (4, 8), 'norm.bias': (4,)}.items()
}


def test_numbers_are_those_of_the_values():
  arrays = {
    'a': RNG.normal(size=(3, 5)).astype(ml_dtypes.bfloat16),
    'b/count': np.int64(7),
    'b/bad': np.array([3.0, np.nan, -4.0, np.inf]),
    'b/none': np.zeros((0, 2), np.float16),
    'b/complex': np.array([3 + 4j]),
    'b/²': np.array(['a text']),
  }
  found = {one.name: one for one in summary.measure(arrays)}
  np.testing.assert_allclose(found['a'].norm, np.linalg.norm(arrays['a'].astype(np.float64)))
  assert (found['a'].dtype, found['a'].shape, found['a'].values) == ('bfloat16', (3, 5), 15)
  assert found['b/count'].norm == 7 and found['b/count'].shape == ()
  assert (found['b/bad'].not_finite, found['b/bad'].norm) == (2, 5.0)
  assert (found['b/none'].values, found['b/none'].norm) == (0, 0.0)
  assert (found['b/complex'].norm, found['b/²'].norm) == (5.0, 0.0)
  whole = summary.total(found.values())
  assert (whole.arrays, whole.values, whole.not_finite, whole.shape) == (6, 22, 2, None)


def test_layers_share_a_line_and_nothing_is_lost():
  facts = summary.measure(BLOCKS | {'t_embedder.mlp.0.weight': np.ones((8, 4), np.float32)})
  rows = summary.bounded(facts)
  assert [(row.name, row.arrays, row.shape) for row in rows] == [
    ('blocks.{0-11}.mlp.0.weight', 12, (8, 4)),
    ('blocks.{0-11}.mlp.2.weight', 12, (4, 8)),
    ('blocks.{0-11}.norm.bias', 12, (4,)),
    ('t_embedder.mlp.0.weight', 1, (8, 4)),
  ]
  short = summary.bounded(facts, lines=2)
  assert [(row.name, row.arrays) for row in short] == [('blocks.{0-11}', 36), ('t_embedder.mlp', 1)]
  least = summary.bounded(facts, lines=1)
  assert [(row.name, row.arrays) for row in least] == [('... 2 more', 37)]
  for some in (rows, short, least):
    np.testing.assert_allclose(summary.total(some).norm, summary.total(facts).norm)
  lines = summary.table(rows)
  assert lines[1].split()[:4] == ['blocks.{0-11}.mlp.0.weight', '(12)', '8x4', 'float32']
  assert len(lines) == 5 and len({line.index('float32') for line in lines[1:]}) == 1
