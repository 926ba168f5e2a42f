"""Scores of pictures: sums that no batch size changes, identities of scores, what is refused."""

import dataclasses

from helpers import picture_eval
import numpy as np
import pytest

from diversedit_jax import sharding
from diversedit_jax.evaluation import feature_network, picture_metrics, reference, scores
from diversedit_jax.types import UserError

N = 40
# A feature is a float32 sum of 768 products, of order 1; the sums over samples are float64.
ROUNDING = 2e-6
pytestmark = pytest.mark.usefixtures('compilation_cached')


def pictures(seed=0, n=N):
  return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 3), np.uint8)


def in_batches(x, size):
  return [x[i : i + size] for i in range(0, len(x), size)]


def extract(x, size, given=7, network=None, **more):
  extractor = feature_network.Extractor(
    network or picture_eval.network(), sharding.make_mesh(), size
  )
  return extractor.summarise(in_batches(x, given), len(x), **more)


@pytest.fixture(scope='module')
def against():
  """Statistics of 40 pictures with all their features, as a file of ours holds them."""
  found = extract(pictures(1), 16, keep=N)
  facts = {'inception_sha256': picture_eval.network().sha256, 'image_size': 16}
  parts = {k: getattr(found, k) for k in ('n', 'mu', 'sigma', 'mu_s', 'sigma_s', 'pool_ND')}
  return reference.Reference(name='theirs', sha256='0' * 64, facts=facts, **parts)


def make(against, network=None, size=16, **options):
  """Metrics by prefix, as `picture_metrics.score` takes them."""
  metrics = picture_metrics.PictureMetrics(
    network or picture_eval.network(),
    against,
    image_size=size,
    mesh=sharding.make_mesh(),
    options=picture_metrics.MetricOptions(**{'batch_size': 16, 'kid_subsets': 2} | options),
  )
  return {'': metrics}


def score(metrics, batches, count=N):
  return picture_metrics.score(metrics, batches, count)


def test_statistics_are_numpys(against):
  network, x = picture_eval.network(), pictures()
  features = {k: np.asarray(v, np.float64) for k, v in network.features(network.params, x).items()}
  found = extract(x, 16, keep=5)
  tolerance = {'rtol': 0, 'atol': ROUNDING}
  np.testing.assert_allclose(found.mu, features['pool'].mean(0), **tolerance)
  np.testing.assert_allclose(found.sigma, np.cov(features['pool'], rowvar=False), **tolerance)
  np.testing.assert_allclose(found.mu_s, features['spatial'].mean(0), **tolerance)
  np.testing.assert_allclose(found.pool_ND, features['pool'][:5], **tolerance)
  p = np.exp(features['logits']) / np.exp(features['logits']).sum(1, keepdims=True)
  expected = np.exp((p * np.log(p / p.mean(0))).sum(1).mean())
  assert found.inception_score == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(('size', 'given'), [(1, 40), (7, 3), (16, 16), (64, 1)])
def test_no_batch_size_changes_a_score(against, size, given):
  found = score(make(against, batch_size=size), in_batches(pictures(), given))['scores']
  expected = score(make(against), [pictures()])['scores']
  # Kernel distances are differences of float32 sums of order 1.
  assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_what_is_compared_with_itself_has_distance_zero(against):
  found = score(make(against), [pictures(1)])['scores']
  assert 0 <= found['fid'] < 1e-6 and 0 <= found['sfid'] < 1e-6
  assert (found['precision'], found['recall']) == (1, 1)
  other = score(make(against), [pictures(2)])['scores']
  assert other['fid'] > 1e-2 and other['sfid'] > 1e-3


def test_scores_are_those_of_the_functions(against):
  found = score(make(against), [pictures()])['scores']
  mine = extract(pictures(), 16, keep=N)
  expected = scores.frechet_distance(mine.mu, mine.sigma, against.mu, against.sigma)
  assert found['fid'] == pytest.approx(expected, rel=1e-9)
  pair = scores.precision_recall(against.pool_ND, mine.pool_ND)
  assert (found['precision'], found['recall']) == tuple(pair)
  kid = scores.kernel_distance(mine.pool_ND, against.pool_ND, subsets=2, size=N)
  assert (found['kid'], found['kid_std']) == pytest.approx(tuple(kid), rel=1e-6)


def variant(against, *lacking, **more):
  return dataclasses.replace(against, **dict.fromkeys(lacking), **more)


STATISTICS = ('mu', 'sigma', 'mu_s', 'sigma_s')
# What is lacking in the reference, options, and the scores that are left.
KNOWN = {
  'all': ((), {}, 'fid sfid is precision kid'),
  'no options': ((), {'precision_recall': 'none', 'kid_subsets': 0}, 'fid sfid is'),
  'no features': (('pool_ND',), {}, 'fid sfid is'),
  'no spatial': (('mu_s', 'sigma_s'), {}, 'fid is precision kid'),
  'no pool': (('mu', 'sigma'), {}, 'sfid is precision kid'),
  'nothing': ((*STATISTICS, 'pool_ND'), {}, 'is'),
}
NAMES = {
  'fid': ['fid'],
  'sfid': ['sfid'],
  'is': ['inception_score', 'inception_score_std'],
  'precision': ['precision', 'recall'],
  'kid': ['kid', 'kid_std'],
}


@pytest.mark.parametrize('name', KNOWN)
@pytest.mark.parametrize('images', [False, True])
def test_the_scores_are_known_before(against, name, images):
  lacking, options, left = KNOWN[name]
  theirs = variant(against, *lacking)
  if images:  # As in ADM's files, which hold no features.
    theirs = variant(theirs, 'pool_ND', images_NHWC=pictures(1))
  metrics = make(theirs, **options)
  names = metrics[''].names
  found = score(metrics, [pictures()])
  assert tuple(found['scores']) == names
  if not images:
    assert list(names) == [k for part in left.split() for k in NAMES[part]]
    told = any('has no mu and sigma, so there is no FID' in line for line in found['warnings'])
    assert told == ('fid' not in names)


def test_images_stand_in_for_all_that_is_lacking(against):
  """As in ADM's evaluator; they are looked at once."""
  alone = variant(against, *STATISTICS, 'pool_ND', 'n', facts={}, images_NHWC=pictures(1))
  metrics = make(alone)
  expected = score(make(against), [pictures()])
  for _ in range(2):
    found = score(metrics, [pictures()])
    assert found['scores'] == pytest.approx(expected['scores'], rel=1e-9)
  theirs = found['references']['inception']
  assert theirs['images'] == theirs['images_of_precision_recall'] == N


@pytest.mark.parametrize(
  ('change', 'options', 'message'),
  [
    ({'facts': {'inception_sha256': 'f' * 64}}, {}, 'SHA-256 of Inception is ffff'),
    ({'mu_s': np.zeros(5), 'sigma_s': np.eye(5)}, {}, 'width of mu_s is 5, expected 8'),
    ({'pool_ND': np.zeros((9, 5), np.float32)}, {}, 'width of pool is 5'),
  ],
)
def test_references_that_do_not_fit_are_refused_at_once(against, change, options, message):
  with pytest.raises(UserError, match=f'theirs does not fit the samples: .*{message}'):
    make(variant(against, **change), **options)


@pytest.mark.parametrize('name', ['pool_ND', 'images_NHWC'])
def test_too_few_pictures_for_precision_and_recall_are_refused_at_once(against, name):
  points = {'pool_ND': against.pool_ND[:3], 'images_NHWC': pictures(n=3)}[name]
  few = variant(against, 'pool_ND') if name == 'images_NHWC' else against
  few = variant(few, **{name: points})
  with pytest.raises(UserError, match='theirs brings 3 pictures, but .* need at least 4'):
    make(few)
  make(few, precision_recall='none')


def test_what_a_reference_or_a_network_does_not_state_is_flagged(against):
  told = lambda theirs, network: ' '.join(score(make(theirs, network), [pictures()])['warnings'])
  network = picture_eval.network()
  open_, closed = 'unless it is ADM', 'are not verified: tiny-0 has their shapes'
  assert open_ not in told(against, network) and closed not in told(against, network)
  bare = variant(against, facts={})
  assert 'theirs states neither network, resize nor size of its pictures' in told(bare, network)
  assert open_ not in told(variant(bare, images_NHWC=pictures(1)), network)
  for verified, random, expected in (
    (False, False, True),
    (False, True, False),
    (None, False, False),
  ):
    other = dataclasses.replace(network, verified=verified, random=random)
    assert (closed in told(against, other)) == expected
    assert other.facts()['verified'] is verified


def test_warnings_say_what_makes_numbers_doubtful(against):
  small = variant(against, n=10)
  random = dataclasses.replace(picture_eval.network(), random=True)
  told = ' '.join(score(make(small, random), [pictures(n=8)], 8)['warnings'])
  for words in (
    '8 samples cannot give a covariance of full rank in the 16 dimensions',
    'FID-8 is not FID-50K',
    '10 samples cannot give a covariance of full rank in the 16 dimensions of the reference',
    'the weights of inception are random',
  ):
    assert words in told


@pytest.mark.parametrize(('count', 'given'), [(N + 1, N), (N - 1, N), (1, 1)])
def test_another_number_of_pictures_is_refused(against, count, given):
  with pytest.raises(UserError):
    score(make(against), [pictures(n=given)], count)


def test_features_that_are_not_finite_are_refused(against):
  network = picture_eval.network()
  broken = dataclasses.replace(
    network, features=lambda p, x: {k: v / (x.sum() > 0) for k, v in network.features(p, x).items()}
  )
  with pytest.raises(UserError, match='NaN or infinite'):
    score(make(against, broken), [np.zeros((N, 16, 16, 3), np.uint8)])


@pytest.mark.parametrize('size', [1, 3, 10, 11])
@pytest.mark.parametrize('given', [[10], [3, 0, 7], [4, 6]])
def test_pictures_come_in_order_and_fill_batches(size, given):
  x, seen = pictures(n=10), []
  extractor = feature_network.Extractor(picture_eval.network(), sharding.make_mesh(), size)
  call = extractor._features
  extractor._features = lambda params, x: seen.append(np.asarray(x)) or call(params, x)
  extractor.summarise(np.split(x, np.cumsum(given)[:-1]), 10)
  assert len(seen) == -(-10 // size)
  np.testing.assert_array_equal(np.concatenate(seen)[:10], x)


def test_several_networks_see_the_pictures_once(against):
  """Each has the scores that it has alone; the warnings are said once."""
  batches = iter(in_batches(pictures(), 7))
  found = score({**make(against), 'other_': make(against)['']}, batches)
  alone = score(make(against), [pictures()])
  for name, value in alone['scores'].items():
    assert found['scores'][name] == found['scores'][f'other_{name}'] == pytest.approx(value)
  assert found['warnings'] == alone['warnings']


def test_consistency_is_the_share_of_pictures_whose_likeliest_class_is_their_own(against):
  network = dataclasses.replace(
    picture_eval.network(), labelled=True, measured={'test_accuracy': 0.75}
  )
  x = pictures()
  features = network.features(network.params, x)
  labels = np.asarray(features['logits']).argmax(axis=1)
  labels[:10] = (labels[:10] + 1) % 10
  metrics = {'classifier_': make(against, network)['']}
  found = picture_metrics.score(metrics, in_batches(x, 7), N, labels)
  assert found['scores']['classifier_consistency'] == 0.75
  assert 'consistency' in metrics['classifier_'].names
  assert found['classifier_test_accuracy'] == 0.75
