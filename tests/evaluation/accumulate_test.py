"""Statistics of batches: padded, unordered, merged; scores of parts; rows held once."""

import numpy as np
import pytest

from diversedit_jax.evaluation import accumulate, rows, scores, splits
from diversedit_jax.types import UserError

COUNT = 430


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return {
    'pool': np.maximum(rng.normal(0.3, 1, (COUNT, 12)), 0).astype(np.float32),
    'spatial': rng.normal(size=(COUNT, 3, 3, 2)).astype(np.float32),
    'logits': rng.normal(size=(COUNT, 9)).astype(np.float32),
  }


def select(batch, index):
  return {kind: x[index] for kind, x in batch.items()}


def padded(batch, index, size):
  """Rows of the batch, then NaN up to a size."""
  return {
    kind: np.concatenate([x[index], np.full((size - len(index), *x.shape[1:]), np.nan, x.dtype)])
    for kind, x in batch.items()
  }


def check_same(summary, batch, keep=COUNT):
  flat = batch['spatial'].reshape(COUNT, -1)
  assert summary.n == COUNT
  for found, x in (
    ((summary.mu, summary.sigma), batch['pool']),
    ((summary.mu_s, summary.sigma_s), flat),
  ):
    for a, b in zip(found, scores.gaussian_statistics(x), strict=True):
      np.testing.assert_allclose(a, b, atol=1e-13)
  np.testing.assert_array_equal(summary.pool_ND, batch['pool'][:keep])
  expected = scores.inception_score(batch['logits'], logits=True, split=100)
  found = summary.inception_score, summary.inception_score_std
  assert found == pytest.approx(expected, rel=1e-12)


def test_one_batch(batch):
  made = accumulate.Statistics(COUNT, keep=COUNT, split=100)
  made.add(batch)
  check_same(made.finish(), batch)


@pytest.mark.parametrize('size', [64, 100, 333])
def test_padded_batches_in_order(batch, size):
  made = accumulate.Statistics(COUNT, keep=COUNT, split=100)
  for i in range(0, COUNT, size):
    index = np.arange(i, min(i + size, COUNT))
    made.add(padded(batch, index, size), mask_N=np.arange(size) < len(index))
  check_same(made.finish(), batch)


def test_batches_out_of_order(batch):
  """Parts of the Inception Score and kept features follow the indices, not the batches."""
  made = accumulate.Statistics(COUNT, keep=50, split=100)
  for index in np.array_split(np.random.default_rng(1).permutation(COUNT), 7):
    made.add(select(batch, index), indices_N=index)
  check_same(made.finish(), batch, keep=50)


def test_three_uneven_processes_merge_to_one_pass(batch):
  made = accumulate.Statistics(COUNT, keep=60, split=100)
  order = np.random.default_rng(2).permutation(COUNT)
  for share in np.split(order, [20, 300]):
    other = accumulate.Statistics(COUNT, keep=60, split=100)
    for index in np.array_split(share, 3):
      other.add(select(batch, index), indices_N=index)
    made.merge(other)
  check_same(made.finish(), batch, keep=60)


def test_features_are_kept_only_if_asked_and_once(batch, tmp_path):
  made = accumulate.Statistics(COUNT)
  made.add(batch)
  assert made._kept is None and made.finish().pool_ND is None
  made = accumulate.Statistics(COUNT, keep=COUNT, folder=tmp_path / 'features')
  made.add(batch)
  held = made.finish().pool_ND
  assert isinstance(held, np.memmap) and held is made._kept.values
  np.testing.assert_array_equal(np.load(tmp_path / 'features' / 'pool.npy'), batch['pool'])


def test_pool_features_alone(batch):
  made = accumulate.Statistics(COUNT)
  made.add({'pool': batch['pool']})
  summary = made.finish()
  assert summary.mu_s is None and summary.inception_score is None


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


def test_missing_and_repeated_samples_are_refused(batch):
  made = accumulate.Statistics(COUNT)
  made.add(select(batch, slice(0, 100)))
  made.add(select(batch, slice(110, 200)), indices_N=np.arange(110, 200))
  with pytest.raises(UserError, match='240 of 430 samples are missing; the first is sample 100'):
    made.finish()
  with pytest.raises(UserError, match='sample 120 was added twice'):
    made.add(select(batch, slice(0, 2)), indices_N=np.array([105, 120]))
  with pytest.raises(UserError, match='sample 7 was added twice'):
    accumulate.Statistics(COUNT).add(select(batch, slice(0, 2)), indices_N=np.array([7, 7]))
  with pytest.raises(UserError, match='sample index 430 is beyond the 430 samples'):
    made.add(select(batch, slice(0, 1)), indices_N=np.array([COUNT]))
  same = accumulate.Statistics(COUNT)
  same.add(select(batch, slice(199, 210)), indices_N=np.arange(199, 210))
  with pytest.raises(UserError, match='sample 199 was added twice'):
    made.merge(same)


def test_other_refusals(batch):
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
  with pytest.raises(UserError, match=r'mask \(3,\) and indices \(9,\)'):
    made.add(select(batch, slice(0, 9)), mask_N=np.ones(3), indices_N=np.arange(9))
  with pytest.raises(UserError, match=r'430 samples \(0 kept.* and of 430 \(5 kept'):
    made.merge(accumulate.Statistics(COUNT, keep=5))
  for kind in ('pool', 'spatial', 'logits'):
    bad = {k: x[9:20].copy() for k, x in batch.items()}
    bad[kind][4].flat[1] = np.nan
    with pytest.raises(UserError, match='of 1 samples are NaN or infinite; the first is sample 13'):
      start = accumulate.Statistics(COUNT)
      start.add(bad, indices_N=np.arange(9, 20))


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
  with pytest.raises(UserError, match='other parts'):
    made.merge(splits.SplitScores(30, split=11))
  other = splits.SplitScores(30, split=10)
  other.add(p[15:], np.arange(15, 30), logits=False)
  made.merge(other)
  assert made.score() == pytest.approx(scores.inception_score(p, split=10), rel=1e-12)


def test_rows_are_written_to_their_places():
  made = rows.Rows(5, (2,), np.int16)
  made.add(np.array([[1, 2], [3, 4]]), np.array([4, 0]))
  np.testing.assert_array_equal(made.values[[0, 4]], [[3, 4], [1, 2]])
  np.testing.assert_array_equal(made.seen_N, [1, 0, 0, 0, 1])
  made.across_processes()  # Of one process: nothing to add.
  assert made.seen_N.sum() == 2
