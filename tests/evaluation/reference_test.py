"""Files of reference statistics: ADM's, ours, and those that are refused."""

import dataclasses

import numpy as np
import pytest

from diversedit_jax.evaluation import accumulate, reference, scores
from diversedit_jax.types import UserError

FACTS = {
  'inception_sha256': 'ab12',
  'image_size': 32,
  'resize': 'TF1 bilinear to 299; ADM crop',
  'source': 'pictures',
  'source_sha256': 'cd34',
}


def summary(seed=0, spatial=True):
  rng = np.random.default_rng(seed)
  made = accumulate.Statistics(80, keep=20)
  features = {'pool': rng.normal(size=(80, 6)).astype(np.float32)}
  if spatial:
    features['spatial'] = rng.normal(size=(80, 5)).astype(np.float32)
  made.add(features)
  return made.finish()


def adm(**changes):
  """Arrays of an ADM file; None takes one away."""
  mu, sigma = scores.gaussian_statistics(np.random.default_rng(1).normal(size=(40, 6)))
  arrays = {
    'arr_0': np.zeros((3, 32, 32, 3), np.uint8),
    'mu': mu,
    'sigma': sigma,
    'mu_s': mu[:4].astype(np.float32),
    'sigma_s': sigma[:4, :4].astype(np.float32),
  }
  return {k: v for k, v in (arrays | changes).items() if v is not None}


def test_round_trip(tmp_path):
  made = summary()
  digest = reference.write(tmp_path / 'new' / 'stats.npz', made, FACTS | {'crop': 'none'})
  found = reference.read(tmp_path / 'new' / 'stats.npz')
  assert (found.name, found.sha256, found.n) == ('stats.npz', digest, 80)
  assert found.facts == FACTS | {'crop': 'none'}
  for name in ('mu', 'sigma', 'mu_s', 'sigma_s', 'pool_ND'):
    np.testing.assert_array_equal(getattr(found, name), getattr(made, name))
  assert found.images_NHWC is None
  assert [p.name for p in (tmp_path / 'new').iterdir()] == ['stats.npz']


def test_the_digest_is_of_the_contents(tmp_path):
  write = lambda made, facts=FACTS: reference.write(tmp_path / 'x.npz', made, facts)
  first = write(summary())
  assert write(summary()) == first
  others = write(summary(1)), write(summary(spatial=False)), write(summary(), FACTS | {'a': 1})
  assert len({first, *others}) == 4


def test_adm_file(tmp_path):
  arrays = adm(arr_1=np.arange(3))  # Labels, not used.
  np.savez(tmp_path / 'VIRTUAL.npz', **arrays)
  found = reference.read(tmp_path / 'VIRTUAL.npz')
  assert found.facts == {} and found.n is None and found.pool_ND is None
  np.testing.assert_array_equal(found.images_NHWC, arrays['arr_0'])
  for name in ('mu', 'sigma', 'mu_s', 'sigma_s'):
    assert getattr(found, name).dtype == np.float64
    np.testing.assert_array_equal(getattr(found, name), arrays[name])
  # Compressed, it is another file with the same contents.
  np.savez_compressed(tmp_path / 'small.npz', **arrays)
  assert reference.read(tmp_path / 'small.npz').sha256 == found.sha256


@pytest.mark.parametrize(
  'present',
  [('arr_0',), ('mu', 'sigma'), ('mu_s', 'sigma_s'), ('arr_0', 'mu', 'sigma')],
  ids='-'.join,
)
def test_any_part_of_an_adm_file_may_be_missing(tmp_path, present):
  np.savez(tmp_path / 'x.npz', **{k: v for k, v in adm().items() if k in present})
  found = reference.read(tmp_path / 'x.npz')
  there = {'arr_0': found.images_NHWC, 'mu': found.mu, 'sigma': found.sigma}
  there |= {'mu_s': found.mu_s, 'sigma_s': found.sigma_s}
  assert {name for name, x in there.items() if x is not None} == set(present)


LOPSIDED = np.eye(6)
LOPSIDED[0, 1] = 0.1
REFUSED = {
  'nothing of use': (
    dict.fromkeys(('arr_0', 'mu', 'sigma', 'mu_s', 'sigma_s')) | {'x': np.ones(2)},
    'x.npz holds x; expected some of arr_0, mu and sigma',
  ),
  'no sigma': ({'sigma': None}, 'holds mu but not sigma'),
  'shapes': ({'sigma': np.eye(5)}, r'mu and sigma have shapes \(6,\) and \(5, 5\), expected'),
  'NaN': ({'mu': np.full(6, np.nan)}, 'mu or sigma has values that are not finite'),
  'lopsided': ({'sigma': LOPSIDED}, 'sigma is not symmetric'),
  'floating images': ({'arr_0': np.zeros((3, 8, 8, 3))}, 'arr_0 is float64 .* expected uint8'),
  'pickled': ({'mu': np.array([{}], object)}, 'not a .npz archive of plain arrays: Object arrays'),
}


@pytest.mark.parametrize('name', REFUSED)
def test_refused_adm_files(tmp_path, name):
  changes, message = REFUSED[name]
  np.savez(tmp_path / 'x.npz', **adm(**changes))
  with pytest.raises(UserError, match=message) as caught:
    reference.read(tmp_path / 'x.npz')
  assert 'x.npz' in str(caught.value)


def test_refused_files(tmp_path):
  with pytest.raises(UserError, match='no file .*gone.npz'):
    reference.read(tmp_path / 'gone.npz')
  reference.write(tmp_path / 'x.npz', summary(), FACTS)
  whole = (tmp_path / 'x.npz').read_bytes()
  (tmp_path / 'cut.npz').write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match='cut.npz is not a .npz archive'):
    reference.read(tmp_path / 'cut.npz')


def changed(path, **changes):
  """Our own file with arrays replaced, None taken away, and the digest left as it was."""
  with np.load(path) as file:
    arrays = dict(file) | changes
  np.savez(path, **{k: v for k, v in arrays.items() if v is not None})


def test_our_own_files_are_as_they_were_written(tmp_path):
  path = tmp_path / 'x.npz'
  for changes, message in (
    ({'mu': np.zeros(6)}, 'x.npz was changed or damaged'),
    ({'facts': np.array('{"format": "other"}')}, 'x.npz is not in the format'),
    ({'facts': np.array('nothing')}, 'x.npz holds facts that are not JSON'),
  ):
    reference.write(path, summary(), FACTS)
    changed(path, **changes)
    with pytest.raises(UserError, match=message):
      reference.read(path)


def test_refused_to_write(tmp_path):
  with pytest.raises(UserError, match='need the facts inception_sha256, source'):
    reference.write(
      tmp_path / 'x.npz', summary(), FACTS | {'source': None, 'inception_sha256': None}
    )
  with pytest.raises(UserError, match='got x.txt'):
    reference.write(tmp_path / 'x.txt', summary(), FACTS)
  many = dataclasses.replace(summary(), pool_ND=np.zeros((10_001, 6), np.float32))
  with pytest.raises(UserError, match='10001 pool features, expected at most 10000'):
    reference.write(tmp_path / 'x.npz', many, FACTS)
  assert not list(tmp_path.iterdir())


def test_a_reference_that_does_not_fit_is_refused(tmp_path):
  reference.write(tmp_path / 'own.npz', summary(), FACTS)
  own = reference.read(tmp_path / 'own.npz')
  fits = {'width': 6, 'spatial_width': 5, 'inception_sha256': 'ab12', 'image_size': 32}
  reference.check_fits(own, **fits)
  reference.check_fits(own, width=6)
  for name, value, message in (
    ('width', 7, 'the width of mu is 6, expected 7; the width of pool is 6, expected 7'),
    ('spatial_width', 2023, 'the width of mu_s is 5, expected 2023'),
    ('inception_sha256', 'ffff', 'the SHA-256 of Inception is ab12, expected ffff'),
    ('image_size', 256, 'the image size is 32, expected 256'),
  ):
    with pytest.raises(UserError, match=f'own.npz does not fit the samples: {message}$'):
      reference.check_fits(own, **fits | {name: value})
  np.savez(tmp_path / 'adm.npz', **adm())
  with pytest.raises(UserError, match=r'the size of arr_0 is \(32, 32\), expected \(256, 256\)'):
    reference.check_fits(reference.read(tmp_path / 'adm.npz'), width=6, image_size=256)


def test_a_reference_is_known_by_what_it_holds(tmp_path):
  """ADM's file, and a copy of its statistics under another name, as papers pass them on."""
  made = summary()
  statistics = {'mu': made.mu, 'sigma': made.sigma}
  images = np.zeros((3, 8, 8, 3), np.uint8)
  np.savez(tmp_path / 'whole.npz', arr_0=images, mu_s=made.mu, sigma_s=made.sigma, **statistics)
  np.savez(tmp_path / 'copy.npz', **statistics)
  np.savez(tmp_path / 'other.npz', mu=made.mu + 1, sigma=made.sigma)
  np.savez(tmp_path / 'images.npz', arr_0=images)
  whole, copy, other, pictures = (
    reference.read(tmp_path / f'{name}.npz') for name in ('whole', 'copy', 'other', 'images')
  )
  d = len(made.mu)
  assert copy.holds == f'mu and sigma of {d} features'
  assert whole.holds == f'{copy.holds}, mu_s and sigma_s of {d} features, 3 pictures of 8x8'
  assert whole.sha256 != copy.sha256 and whole.statistics_sha256 == copy.statistics_sha256
  assert other.statistics_sha256 != copy.statistics_sha256 and pictures.statistics_sha256 is None
