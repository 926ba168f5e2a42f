"""Sentences about samples whose scores mean little, and refusals of those that have none."""

import numpy as np
import pytest

from diversedit_jax.evaluation import checks
from diversedit_jax.types import UserError


def images(n=6):
  return np.random.default_rng(0).integers(0, 256, (n, 4, 4, 3), np.uint8)


def test_bad_values_are_counted_and_the_first_is_named():
  x = np.zeros((5, 2, 2))
  checks.check_finite('images', x)
  x[2, 1, 1], x[4, 0, 0] = np.nan, np.inf
  with pytest.raises(UserError, match='images of 2 samples are NaN .*; the first is sample 2'):
    checks.check_finite('images', x)
  with pytest.raises(UserError, match='the first is sample 70'):
    checks.check_finite('images', x, np.array([9, 8, 70, 6, 5]))


def test_counts():
  assert checks.count_warnings(50_000, 2048) == []
  (few,) = checks.count_warnings(49_999, 2048)
  assert 'FID-49999 is not FID-50K' in few
  rank, few = checks.count_warnings(2048, 2048, 'the pool features')
  assert '2048 dimensions of the pool features; their Fréchet distance needs at least 2049' in rank
  assert len(checks.count_warnings(2049, 2048)) == 1


def test_parts_of_the_inception_score():
  assert checks.split_warnings(50_000, 5000) == []
  assert '12 samples instead of 5000' in checks.split_warnings(10_012, 5000)[0]
  assert 'one part of 12 samples' in checks.split_warnings(12, 5000)[0]


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
def test_constant_images_and_copies(dtype):
  x = images().astype(dtype)
  made = checks.ImageChecks()
  made.add(x)
  assert made.warnings() == []
  x[[1, 4]] = x[[1, 4], :1, :1]  # Each of one colour.
  x[[3, 5]] = x[0]
  made = checks.ImageChecks()
  made.add(x[:3])
  made.add(x[3:])
  assert made.warnings() == [
    '2 of 6 images are of one colour; the first is sample 1',
    '2 of 6 images are exact copies of an earlier one; the first is sample 3',
  ]


def test_refused_images():
  made = checks.ImageChecks()
  with pytest.raises(UserError, match=r'shape \(6, 4, 4\), expected \(N, H, W, C\)'):
    made.add(images()[..., 0])
  made.add(images(10))
  x = images().astype(np.float32)
  x[2] = np.nan
  with pytest.raises(UserError, match='images of 1 samples .* first is sample 12'):
    made.add(x)


@pytest.mark.parametrize('labels', [np.arange(3000) // 100, -(np.arange(3000) // 100)])
def test_order_by_class_is_found_with_and_without_labels(labels):
  rng = np.random.default_rng(0)
  seen = np.where(rng.random(3000) < 0.5, labels, rng.integers(1000, size=3000))  # Half are right.
  assert 'sorted by label' in checks.order_warnings(labels)[0]
  assert 'sorted by label' in checks.order_warnings(np.roll(labels, 150))[0]  # Still in blocks.
  (told,) = checks.alike_warnings(seen)
  assert told.startswith(checks.ALIKE) and 'the score is too small' in told
  for shuffled in (rng.permutation(labels), np.arange(3000) % 30, np.zeros(3000, int)):
    assert not checks.order_warnings(shuffled) and not checks.alike_warnings(shuffled)
  assert not checks.alike_warnings(rng.permutation(seen))
  # Few samples, and a network that sees one class nearly everywhere.
  for _ in range(200):
    assert not checks.alike_warnings(rng.integers(3, size=24))
    assert not checks.alike_warnings((rng.random(500) < 0.02).astype(int))
