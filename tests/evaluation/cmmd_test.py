"""CMMD against its definition in float64, in blocks of any size, with a mesh and without."""

import numpy as np
import pytest

from diversedit_jax import sharding, types
from diversedit_jax.evaluation import cmmd


def unit(seed, count, width=16, shift=0.0):
  x = np.random.default_rng(seed).normal(shift, 1, (count, width))
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def defined(x, y):
  """(2) of `cmmd`, from all distances, in float64."""
  x, y = x.astype(np.float64), y.astype(np.float64)
  kernel = lambda a, b: np.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * 10.0**2)).mean()
  return 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))


@pytest.mark.parametrize(('rows', 'columns'), [(2048, 4096), (16, 8), (7, 64)])
@pytest.mark.parametrize(('n', 'm'), [(50, 50), (33, 70), (1, 2)])
def test_the_definition_in_blocks(monkeypatch, rows, columns, n, m):
  monkeypatch.setattr(cmmd, '_ROWS', rows)
  monkeypatch.setattr(cmmd, '_COLUMNS', columns)
  x, y = unit(0, n), unit(1, m, shift=0.3)
  expected = defined(x, y)
  for mesh in (None, sharding.make_mesh()):
    assert cmmd.cmmd(x, y, mesh=mesh) == pytest.approx(expected, rel=2e-5)


def test_small_distances_are_not_lost():
  """As CMMD is used: two sets of one distribution, whose distance is 1e-4 of the kernels' means."""
  x, y = unit(2, 1500, 768), unit(3, 1500, 768)
  expected = defined_by_products(x, y)
  assert expected < 0.02
  assert cmmd.cmmd(x, y) == pytest.approx(expected, rel=2e-4)
  assert cmmd.cmmd(x, x) == pytest.approx(0, abs=1e-9)


def defined_by_products(x, y):
  x, y = x.astype(np.float64), y.astype(np.float64)
  square = lambda a: (a**2).sum(1)
  kernel = lambda a, b: np.exp((2 * a @ b.T - square(a)[:, None] - square(b)[None]) / 200).mean()
  return 1000 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))


def test_the_known_value_of_two_points():
  """x and y opposite: 1000 (1 + 1 - 2 exp(-4 / 200))."""
  x = np.array([[1.0, 0.0]], np.float32)
  assert cmmd.cmmd(x, -x) == pytest.approx(2000 * (1 - np.exp(-0.02)), rel=1e-6)


def test_what_is_no_set_of_features_is_refused():
  x = unit(0, 4)
  for wrong, message in ((x[:, :3], r'\(N, D\) and \(M, D\)'), (x[:0], 'at least one point')):
    with pytest.raises(types.UserError, match=message):
      cmmd.cmmd(x, wrong)
  with pytest.raises(types.UserError, match='NaN or infinite'):
    cmmd.cmmd(x, np.full_like(x, np.nan))
