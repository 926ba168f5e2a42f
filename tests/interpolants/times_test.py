"""Laws of time: distributions, reference values, strata, the cut at the ends."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import interpolants, types
from diversedit_jax.interpolants import times

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / 'golden' / 'interpolant.npz')
N = 20_000
# Kolmogorov-Smirnov distance of N draws exceeds 1.95 / sqrt(N) with probability 0.001.
FARTHEST = 1.95 / np.sqrt(N)


def distance(t_N, distribution):
  """Largest gap between the empirical and a given distribution function."""
  t_N = np.sort(np.asarray(t_N, np.float64))
  return np.abs((np.arange(len(t_N)) + 0.5) / len(t_N) - distribution(t_N)).max()


def normal_distribution(x):
  return np.asarray(jax.scipy.stats.norm.cdf(x))


@pytest.mark.parametrize('name', interpolants.TIME_LAWS)
@pytest.mark.parametrize('epsilon', [0.0, 0.1])
def test_shape_type_range_and_randomness(name, epsilon):
  law = interpolants.TIME_LAWS[name](epsilon=epsilon)
  draw = jax.jit(law, static_argnums=1)
  t_N = draw(jax.random.key(0), 1000)
  assert t_N.shape == (1000,) and t_N.dtype == jnp.float32
  # The mapping rounds once.
  assert t_N.min() >= epsilon - 1e-7 and t_N.max() <= 1 - epsilon + 1e-7
  assert not np.array_equal(t_N, draw(jax.random.key(1), 1000))
  np.testing.assert_array_equal(t_N, draw(jax.random.key(0), 1000))


@pytest.mark.parametrize('name', ['uniform', 'stratified'])
def test_uniform_laws_are_uniform_also_when_cut(name):
  t_N = interpolants.TIME_LAWS[name](epsilon=0.2)(jax.random.key(3), N)
  assert distance(t_N, lambda t: (t - 0.2) / 0.6) < FARTHEST


def test_logit_normal_distribution():
  t_N = times.LogitNormal(mean=-0.4, std=1.5)(jax.random.key(4), N)
  logit = lambda t: np.log(t) - np.log1p(-t)
  assert distance(t_N, lambda t: normal_distribution((logit(t) + 0.4) / 1.5)) < FARTHEST
  assert distance(t_N, lambda t: normal_distribution(logit(t))) > 5 * FARTHEST


LAWS = [
  *((name, {}) for name in interpolants.TIME_LAWS),
  *(('lognormal', {'path': path}) for path in interpolants.PATHS if path != 'linear'),
]


@pytest.mark.parametrize(('name', 'options'), LAWS)
def test_laws_up_to_the_latest_time_are_themselves_given_that(name, options):
  """F(t) / F(latest), and nothing later; in a traced step, as in training."""
  law = interpolants.TIME_LAWS[name]
  draw = jax.jit(law(latest=0.7, shift=3.0, **options), static_argnums=1)
  t_N = draw(jax.random.key(7), N)
  assert t_N.max() <= times.shifted(0.7, 3.0) + 1e-6
  path = interpolants.PATHS[options.get('path', 'linear')]
  log_ratio = lambda t: np.log(path.sigma(t) / path.alpha(t))
  whole = (lambda t: t) if 'normal' not in name else lambda t: normal_distribution(log_ratio(t))
  found = lambda t: whole(t) / whole(np.float64(0.7))
  assert distance(times.shifted(np.float64(t_N), 1 / 3), found) < FARTHEST
  if 'normal' in name and not options:
    np.testing.assert_allclose(law().from_uniform(0.5), 0.5, atol=1e-6)


@pytest.mark.parametrize('name', interpolants.PATHS)
def test_lognormal_distribution_of_the_noise_ratio(name):
  t_N = times.LogNormal(path=name, mean=0.3, std=0.8)(jax.random.key(5), N)
  path = interpolants.PATHS[name]
  log_ratio = lambda t: np.log(path.sigma(t) / path.alpha(t))
  assert distance(t_N, lambda t: normal_distribution((log_ratio(t) - 0.3) / 0.8)) < FARTHEST


@pytest.mark.parametrize('name', ['linear', 'cosine'])
def test_lognormal_matches_reference(name):
  t_N = times.LogNormal(path=name).from_normal(jnp.asarray(GOLDEN['rnd_normal']))
  np.testing.assert_allclose(t_N, GOLDEN[f'{name}/t_lognormal'], rtol=1e-6)


def test_lognormal_never_leaves_the_vp_path():
  t_N = times.LogNormal(path='vp').from_normal(jnp.asarray([-20.0, 4.0, 30.0]))
  assert 0 <= t_N[0] < 1e-4 and 0.8 < t_N[1] < 1 and t_N[2] == 1


def test_stratified_has_one_draw_in_every_stratum_in_random_order():
  t_N = np.asarray(times.Stratified()(jax.random.key(6), 64))
  np.testing.assert_array_equal(np.sort(np.floor(t_N * 64)), np.arange(64))
  assert np.abs(np.corrcoef(t_N, np.arange(64))[0, 1]) < 0.5  # Not sorted; 4 deviations of chance.


# Shifts.


def test_shift_matches_reference(golden):
  g = golden('time_shift')
  for i, (dimension, base) in enumerate(json.loads(str(g['config']))['shift']['dims']):
    assert base == times.SHIFT_BASE
    a, t = times.shift_of(dimension), g['shift/t']
    # Sums of products in two orders, of which float32 rounds each.
    found = times.shifted(t.astype(np.float64), a)
    np.testing.assert_allclose(found, g[f'shift/{i}/t_shifted_f64'], rtol=2e-7)
    np.testing.assert_allclose(times.shifted(t, a), g[f'shift/{i}/t_shifted'], rtol=1e-6)


def test_shift_by_dimension():
  assert times.shift_of(196_608) == pytest.approx(6.928203230275509, rel=1e-15)  # RAE at 256.
  assert times.shift_of(262_144) == 8  # RAEv2.
  assert times.shift_of(32 * 32 * 4) == 1


@pytest.mark.parametrize('a', [0.125, 1.0, 6.93])
def test_shift_rises_keeps_the_ends_and_is_undone_by_its_inverse(a):
  t = np.linspace(0, 1, 1001)
  found = times.shifted(t, a)
  assert (np.diff(found) > 0).all() and found[0] == 0 and found[-1] == 1
  np.testing.assert_allclose(times.shifted(found, 1 / a), t, rtol=1e-12)
  np.testing.assert_allclose((1 - t) * found, a * t * (1 - found), rtol=1e-9)  # sigma / alpha.


def test_shifted_times_match_references(golden):
  g, jit = golden('time_shift'), golden('x_prediction')
  a = json.loads(str(g['config']))['shift']['train_shift']
  for latest in (1.0, 0.999):  # RAE's is the second; the first has a share of 2e-12 beyond.
    law = times.LogitNormal(shift=a, latest=latest)
    # By the inverse of the normal distribution function, whose float32 rounds in the tails.
    np.testing.assert_allclose(law.from_uniform(g['train/uniform']), g['train/t'], rtol=2e-6)
  raev2 = times.LogitNormal(shift=8.0).from_normal(jit['raev2/time_normal'])
  np.testing.assert_allclose(raev2, jit['raev2/time'], rtol=1e-6)
  # JiT's clock runs the other way, so mean and draws change their sign.
  ours = times.LogitNormal(mean=0.8, std=0.8).from_normal(-jit['jit/time_normal'])
  np.testing.assert_allclose(1 - ours, jit['jit/time'], rtol=0, atol=2e-7)


@pytest.mark.parametrize('name', interpolants.TIME_LAWS)
def test_every_law_is_shifted_before_it_is_cut(name):
  key, law = jax.random.key(0), interpolants.TIME_LAWS[name]
  plain, found = law()(key, 100), law(shift=3.0, epsilon=0.1)(key, 100)
  np.testing.assert_allclose(found, 0.1 + 0.8 * times.shifted(plain, 3.0), rtol=1e-6)


@pytest.mark.parametrize(
  ('law', 'options', 'message'),
  [
    ('stratified', {'epsilon': -0.1}, 'epsilon=-0.1'),
    ('logit_normal', {'std': 0.0}, 'std=0.0'),
    ('uniform', {'shift': 0.0}, 'shift=0.0'),
    ('logit_normal', {'latest': 0.0}, 'latest=0.0'),
    ('lognormal', {'epsilon': 0.5}, 'epsilon=0.5'),
    ('lognormal', {'path': 'cosin'}, "'cosin'; did you mean 'cosine'"),
  ],
)
def test_refuses(law, options, message):
  with pytest.raises(types.UserError, match=message):
    interpolants.TIME_LAWS[law](**options)
