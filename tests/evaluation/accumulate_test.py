"""Statistics of batches are those of all samples at once; samples lie where their places say."""

import numpy as np
import pytest

from diversedit_jax.evaluation import accumulate, scores, splits
from diversedit_jax.types import UserError

COUNT = 430


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return {
    'pool': np.maximum(rng.normal(0.3, 1, (COUNT, 12)), 0).astype(np.float32),
    'spatial': rng.normal(size=(COUNT, 18)).astype(np.float32),
    'logits': rng.normal(size=(COUNT, 9)).astype(np.float32),
  }


def select(batch, index):
  return {kind: x[index] for kind, x in batch.items()}


def check_same(summary, batch, keep=COUNT):
  assert summary.n == COUNT
  for found, x in (
    ((summary.mu, summary.sigma), batch['pool']),
    ((summary.mu_s, summary.sigma_s), batch['spatial']),
  ):
    for a, b in zip(found, scores.gaussian_statistics(x), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-13)
  np.testing.assert_array_equal(summary.pool_ND, batch['pool'][:keep])
  expected = scores.inception_score(batch['logits'], logits=True, split=100)
  found = summary.inception_score, summary.inception_score_std
  assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize('size', [64, 100, 333, COUNT])
def test_batches_in_order(batch, size):
  made = accumulate.Statistics(COUNT, keep=COUNT, split=100)
  for i in range(0, COUNT, size):
    made.add(select(batch, slice(i, i + size)))
  check_same(made.finish(), batch)


def test_batches_out_of_order(batch):
  """Parts of the Inception Score and kept features follow the places, not the batches."""
  places = np.random.default_rng(1).permutation(COUNT)
  made = accumulate.Statistics(COUNT, keep=50, places_N=places, split=100)
  for index in np.array_split(places, 7):
    made.add(select(batch, index))
  check_same(made.finish(), batch, keep=50)


def test_pool_features_alone_and_none_kept(batch):
  made = accumulate.Statistics(COUNT)
  made.add({'pool': batch['pool']})
  summary = made.finish()
  assert summary.mu_s is None and summary.inception_score is None and summary.pool_ND is None


def test_warnings(batch):
  made = accumulate.Statistics(COUNT, split=100)
  made.add(batch)
  few, parts = made.finish().warnings
  assert few.startswith('FID-430 is not FID-50K')
  assert 'last part of the Inception Score has 30 samples instead of 100' in parts
  made = accumulate.Statistics(15)
  made.add(select(batch, np.arange(15)))
  _, spatial, short = made.finish().warnings
  assert spatial.startswith('15 samples cannot give a covariance of full rank in the 18 dim')
  assert 'one part of 15 samples instead of parts of 5000' in short


def test_refusals(batch):
  made = accumulate.Statistics(COUNT)
  with pytest.raises(UserError, match=r"\['logits'\], expected 'pool'"):
    made.add({'logits': batch['logits']})
  with pytest.raises(UserError, match="different numbers of rows: .*'spatial': 4"):
    made.add(batch | {'spatial': batch['spatial'][:4]})
  made.add(select(batch, slice(0, 9)))
  with pytest.raises(
    UserError, match=r"are \['pool'\], but \['logits', 'pool', 'spatial'\] before"
  ):
    made.add({'pool': batch['pool'][:9]})
  with pytest.raises(UserError, match='9 samples came, expected 430'):
    made.finish()
  with pytest.raises(UserError, match='more than 430 samples came'):
    made.add(batch)
  for kind in ('pool', 'spatial', 'logits'):
    made = accumulate.Statistics(COUNT)
    made.add(select(batch, slice(0, 9)))
    bad = {k: x[9:20].copy() for k, x in batch.items()}
    bad[kind][4, 1] = np.nan
    with pytest.raises(UserError, match='of 1 samples are NaN or infinite; the first is sample 13'):
      made.add(bad)


def test_parts_of_the_score_are_complete():
  made = splits.SplitScores(30, split=10)
  p = np.random.default_rng(0).dirichlet(np.ones(4), size=30)
  made.add(p[:15], np.arange(15), logits=False)
  with pytest.raises(UserError, match='part 1 of the Inception Score has 5 samples, expected 10'):
    made.score()
  with pytest.raises(UserError, match='beyond the 30 samples'):
    made.add(p[:1], np.array([30]), logits=False)
  with pytest.raises(UserError, match=r'shape \(2, 3\)'):
    made.add(p[:2, :3], np.arange(2), logits=False)
  made.add(p[15:], np.arange(15, 30), logits=False)
  assert made.score() == pytest.approx(scores.inception_score(p, split=10), rel=1e-12)
