"""Precision and recall against ADM's values, a plain loop, and what must not change them."""

import json

import jax
import numpy as np
import pytest

from diversedit_jax import sharding
from diversedit_jax.evaluation import manifold, scores
from diversedit_jax.types import UserError

CASES = [
  'pr_main',
  'pr_integer_ties',
  'pr_identical',
  'pr_disjoint',
  'pr_collapsed_sample',
  'pr_high_dim',
  'pr_overflows_half',
]


def sides(data, name):
  main = data['pr_main/ref']
  made = {'pr_identical': (main, main), 'pr_disjoint': (main, main + 64)}
  return made.get(name) or (data[f'{name}/ref'], data[f'{name}/sample'])


def test_every_golden_case_is_tested(golden):
  cases = json.loads(str(golden('metrics')['meta']))['cases']
  assert {name for name in cases if name.startswith('pr_')} == set(CASES)


@pytest.mark.parametrize('arithmetic', manifold.ARITHMETIC)
@pytest.mark.parametrize('name', CASES)
def test_equals_adm(golden, name, arithmetic):
  data = golden('metrics')
  meta = json.loads(str(data['meta']))['cases'][name]
  found = scores.precision_recall(*sides(data, name), arithmetic=arithmetic)
  expected = meta['adm_half_precision_path'] if arithmetic == 'float16' else meta
  assert found == (expected['precision'], expected['recall'])


@pytest.mark.parametrize('block', [7, 64, 10_000])
@pytest.mark.parametrize('name', ['pr_main', 'pr_integer_ties', 'pr_overflows_half'])
def test_blocks_do_not_matter_in_float32(golden, name, block):
  data = golden('metrics')
  found = scores.precision_recall(*sides(data, name), block=block)
  assert found == (float(data[f'{name}/precision']), float(data[f'{name}/recall']))


def test_ties_at_the_radius_are_inside(golden):
  """A strict comparison would give other values on these integers."""
  data = golden('metrics')
  meta = json.loads(str(data['meta']))['cases']['pr_integer_ties']
  found = scores.precision_recall(*sides(data, 'pr_integer_ties'))
  assert found.precision > meta['precision_if_strict_less']
  assert found.recall > meta['recall_if_strict_less']


def plain(reference, samples, k):
  """Both shares by two loops, float64."""
  reference, samples = np.float64(reference), np.float64(samples)
  distance = lambda a, b: float(np.sum((a - b) ** 2))

  def radii(points):
    return [sorted(distance(a, b) for b in points)[k] for a in points]

  def share(inner, outer):
    balls = radii(outer)
    return np.mean(
      [any(distance(a, b) <= r for b, r in zip(outer, balls, strict=True)) for a in inner]
    )

  return share(samples, reference), share(reference, samples)


@pytest.mark.parametrize('k', [1, 3, 5])
def test_equals_two_plain_loops(k):
  rng = np.random.default_rng(k)
  reference = rng.normal(size=(40, 3)).astype(np.float32)
  samples = rng.normal(0.8, 1.3, (33, 3)).astype(np.float32)
  found = scores.precision_recall(reference, samples, k=k)
  assert found == plain(reference, samples, k)
  assert 0 < found.recall < 1 and 0 < found.precision < 1


def test_rotation_scale_offset_and_order_do_not_matter(golden):
  data = golden('metrics')
  reference, samples = sides(data, 'pr_main')
  expected = scores.precision_recall(reference, samples)
  rng = np.random.default_rng(0)
  turn = np.linalg.qr(rng.normal(size=(6, 6)))[0]
  for change in (
    lambda x: x @ turn,
    lambda x: 1e-3 * x,
    lambda x: 300 * x,
    lambda x: x + 100,
    rng.permutation,
  ):
    assert scores.precision_recall(change(reference), change(samples)) == expected


def test_half_rounds_as_numpy_does():
  """Over all of float16's range, its limits, its subnormals and ties."""
  rng = np.random.default_rng(0)
  x = rng.normal(size=100_000) * 10 ** rng.uniform(-9, 5.2, 100_000)
  edges = [0, -0.0, 65504, 65519.9, 65520, 1e30, np.inf, -np.inf, 2**-14, 2**-14 * (1 - 2**-12)]
  ties = [2**-24, 2**-25, 3 * 2**-25, 1 + 2**-11, 1 + 3 * 2**-11, -1 - 2**-11]
  x = np.concatenate([x, edges, ties]).astype(np.float32)
  with np.errstate(over='ignore'):
    expected = x.astype(np.float16).astype(np.float32)
  np.testing.assert_array_equal(jax.jit(manifold._half)(x), expected)
  assert np.isnan(manifold._half(np.float32(np.nan)))


def half_distances(u, v):
  """ADM's formula operation by operation in numpy's float16; sums in float32."""
  u, v = u.astype(np.float16), v.astype(np.float16)
  half = lambda x: x.astype(np.float16)
  squares = lambda x: half(np.square(x).astype(np.float32).sum(axis=1))
  uv = half(u.astype(np.float32) @ v.astype(np.float32).T)
  return (squares(u)[:, None] - np.float16(2) * uv) + squares(v)[None]


def test_float16_distances_are_those_of_numpys_float16():
  """Bit for bit: products of float16 are exact in float32, and on this grid so are their sums."""
  rng = np.random.default_rng(1)
  u, v = (rng.integers(0, 40, (30, 16)).astype(np.float32) / 8 for _ in range(2))
  expected = np.maximum(half_distances(u, v), np.float16(0)).astype(np.float32)
  found = np.asarray(jax.jit(manifold._half_distances)(u, v))
  np.testing.assert_array_equal(found, expected)
  # And they are not the exact distances, so the rounding is tested.
  assert np.abs(found - np.asarray(manifold._distances(u, v))).max() > 0.01


def test_one_overflow_puts_the_whole_block_in_float32():
  u = np.random.default_rng(2).normal(size=(20, 5)).astype(np.float32)
  exact = np.asarray(manifold._distances(u, u))
  assert np.abs(np.asarray(manifold._half_distances(u, u)) - exact).max() > 1e-4
  u[3] *= 300
  np.testing.assert_array_equal(manifold._half_distances(u, u), manifold._distances(u, u))


def test_a_mesh_changes_nothing(golden):
  data = golden('metrics')
  for arithmetic in manifold.ARITHMETIC:
    one = scores.precision_recall(*sides(data, 'pr_main'), arithmetic=arithmetic, block=50)
    many = scores.precision_recall(
      *sides(data, 'pr_main'), arithmetic=arithmetic, block=50, mesh=sharding.make_mesh()
    )
    assert many == one


def test_refusals():
  x = np.ones((5, 2), np.float32)
  with pytest.raises(UserError, match="unknown arithmetic 'float61'.*float16"):
    scores.precision_recall(x, x, arithmetic='float61')
  with pytest.raises(UserError, match=r'k=3 neighbours need more than 3 points'):
    scores.precision_recall(x, x[:3])
  with pytest.raises(UserError, match=r'\(\(5, 2\), \(5, 3\)\)'):
    scores.precision_recall(x, np.ones((5, 3)))
  bad = x.copy()
  bad[[1, 4]] = np.inf
  with pytest.raises(UserError, match='sample features of 2 samples .* first is sample 1'):
    scores.precision_recall(x, bad)
