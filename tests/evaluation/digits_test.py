"""Scores of digits: real ones score well, and each fault shows in the number meant for it."""

import json

import numpy as np
import pytest

from diversedit_jax.data import sources
from diversedit_jax.evaluation import digits
from diversedit_jax.types import UserError


@pytest.fixture(scope='module')
def reference():
  return digits.DigitsReference.build()


@pytest.fixture(scope='module')
def train():
  source = sources.digits('train')
  return source.data, source.labels


@pytest.fixture(scope='module')
def test_split():
  source = sources.digits('test')
  return source.data, source.labels


def test_real_test_digits(reference, test_split):
  result = reference.evaluate(*test_split)
  # An RBF SVM gets about 99 % of these digits.
  assert 0.97 < result['classifier_test_accuracy'] < 1
  assert result['class_consistency'] == result['classifier_test_accuracy']
  assert result['frechet_distance'] < 1e-6 < result['frechet_floor']
  assert result['counts'] == {'samples': 355, 'real_train': 1442, 'real_test': 355}
  assert result['warnings'] == []
  assert '32 principal components' in result['feature_space']
  json.dumps(result, allow_nan=False)


def test_train_split_has_the_floor_as_its_distance(reference, train):
  result = reference.evaluate(*train)
  assert result['frechet_distance'] == pytest.approx(result['frechet_floor'], rel=1e-9)


def test_per_class_shares(reference, test_split):
  """The share per class, weighted by its size, is the whole; wrong labels cost their class."""
  images, labels = test_split
  share, per_class = reference.class_consistency(images, labels)
  sizes = np.bincount(labels)
  assert sum(per_class[str(k)] * sizes[k] for k in range(10)) == pytest.approx(share * 355)
  swapped = np.where(labels == 3, 4, labels)
  found = reference.class_consistency(images, swapped)[1]
  assert found['3'] is None
  right = per_class['4'] * sizes[4] / (sizes[3] + sizes[4])
  assert found['4'] == pytest.approx(right, abs=2 / (sizes[3] + sizes[4]))
  assert {k: found[k] for k in '0125'} == {k: per_class[k] for k in '0125'}


def test_shuffled_labels_are_noticed_by_consistency_alone(reference, train):
  images, labels = train
  result = reference.evaluate(images, np.random.default_rng(0).permutation(labels))
  assert result['class_consistency'] < 0.2
  assert result['frechet_distance'] == pytest.approx(result['frechet_floor'], rel=1e-9)


@pytest.mark.parametrize('fault', ['dropped classes', 'shifted', 'noisy', 'prototypes'])
def test_faults_are_noticed_by_the_distance(reference, train, fault):
  """Each is at least twice the floor; they were chosen without looking at the distance."""
  images, labels = train
  if fault == 'dropped classes':
    images, labels = images[labels > 4], labels[labels > 4]
  elif fault == 'shifted':
    images = np.roll(images, 1, axis=2)
  elif fault == 'noisy':
    images = images + 0.3 * np.random.default_rng(0).normal(size=images.shape)
  else:
    images = np.stack([images[labels == k].mean(axis=0) for k in labels])
  result = reference.evaluate(images, labels)
  assert result['frechet_distance'] > 2 * result['frechet_floor']


def test_values_outside_the_range_count_as_clipped(reference, train):
  images, labels = train
  wild = np.where(images == 1, 1.7, np.where(images == -1, -9, images))
  found, expected = reference.evaluate(wild, labels), reference.evaluate(images, labels)
  assert found == expected


def test_warnings(reference, test_split):
  images, labels = test_split
  few = reference.evaluate(images[:32], labels[:32])['warnings']
  assert any('32 samples cannot give a covariance of full rank' in w for w in few)
  enough = reference.evaluate(images[:33], labels[:33])['warnings']
  assert not any('full rank' in w for w in enough)
  flat = images.copy()
  flat[:5] = 0.25
  found = reference.evaluate(flat, labels)['warnings']
  assert '5 of 355 samples are constant images' in found
  assert '4 of 355 samples are exact copies of another sample' in found
  assert reference.evaluate(images[labels != 7], labels[labels != 7])['warnings'] == [
    'no samples of the classes 7'
  ]


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x, y: (np.where(np.arange(355)[:, None, None, None] < 2, np.nan, x), y), '2 of 355'),
    (lambda x, y: (x[:1], y[:1]), 'N >= 2'),
    (lambda x, y: (x.astype(np.uint8), y), 'floating'),
    (lambda x, y: (x, y[:9]), r'expected integers \(355,\)'),
    (lambda x, y: (x, y + 1), r'\[1, 10\], expected \[0, 9\]'),
  ],
)
def test_refusals(reference, test_split, change, message):
  with pytest.raises(UserError, match=message):
    reference.evaluate(*change(*test_split))
