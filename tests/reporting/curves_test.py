"""Points of curves against NumPy's extremes, ticks against matplotlib's."""

from matplotlib import ticker
import numpy as np
import pytest

from diversedit_jax.reporting import curves


@pytest.mark.parametrize(('n', 'limit'), [(10_000, 1000), (1001, 1000), (997, 40), (5, 4)])
def test_thinning_keeps_the_ends_and_the_extremes_of_every_stretch(n, limit):
  rng = np.random.default_rng(n)
  xs, ys = np.arange(n) * 50.0, rng.normal(size=n).cumsum()
  ys[n // 3], ys[n // 2] = 1e3, -1e3  # Single spikes.
  x, y = curves.thin(xs, ys, limit)
  assert len(x) <= limit and (np.diff(x) > 0).all()
  assert (x[0], x[-1], y[0], y[-1]) == (xs[0], xs[-1], ys[0], ys[-1])
  assert y.min() == ys.min() and y.max() == ys.max()
  np.testing.assert_array_equal(y, ys[np.searchsorted(xs, x)])  # They are points of the curve.
  stretch = -(-n // (limit // 2 - 1)) + 1
  for start in range(0, n - 2 * stretch, stretch):  # Each holds a whole stretch of the thinning.
    within = ys[start : start + 2 * stretch]
    kept = y[(x >= xs[start]) & (x < xs[start] + 50.0 * 2 * stretch)]
    assert kept.max() >= np.sort(within)[len(within) // 2]


def test_a_short_curve_is_left_alone():
  xs = np.arange(7.0)
  assert curves.thin(xs, xs, 7)[0] is xs


@pytest.mark.parametrize('count', [0, 1, 2, 5, 12, 13, 400])
def test_frames_are_spread_evenly_with_the_first_and_the_last(count):
  found = curves.evenly(count, 12)
  assert len(found) == min(count, 12) and found == sorted(set(found))
  assert not count or (found[0], found[-1]) == (0, count - 1)
  assert curves.evenly(count, 1) == ([count - 1] if count else [])
  gaps = np.diff(found)
  assert not len(gaps) or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize(
  ('low', 'high'),
  [(0.41, 1.17), (0.0, 3e-7), (-5.0, 12.0), (1.2e6, 9.9e6), (-1.8e-3, -1.1e-3), (2, 3)],
)
def test_linear_ticks_are_round_as_those_of_matplotlib_and_hold_all_values(low, high):
  axis = curves.linear(low, high)
  assert axis.low <= low and axis.high >= high and axis.ticks[0] == axis.low
  gaps = np.diff(axis.ticks)
  np.testing.assert_allclose(gaps, gaps[0], rtol=1e-9)
  steps = ticker.MaxNLocator(nbins=4, steps=[1, 2, 5, 10])
  theirs = np.diff(steps.tick_values(axis.low, axis.high))[0]
  assert 0.39 < gaps[0] / theirs < 2.6  # The same, or the next of 1, 2, 5.
  mantissa = gaps[0] / 10 ** np.floor(np.log10(gaps[0]) + 1e-9)
  assert min(abs(mantissa - round_one) for round_one in (1, 2, 5)) < 1e-6
  assert len({curves.short(tick) for tick in axis.ticks}) == len(axis.ticks)


@pytest.mark.parametrize(('low', 'high'), [(3e-5, 0.9), (1.0, 1.01), (0.2, 40.0), (7e-3, 8e-3)])
def test_logarithmic_ticks_hold_all_values(low, high):
  axis = curves.logarithmic(low, high)
  assert axis.low <= low < high <= axis.high and 2 <= len(axis.ticks) <= 7
  assert all(axis.low <= tick <= axis.high for tick in axis.ticks)
  np.testing.assert_allclose(
    axis.at(np.array([low, high])),
    np.interp(np.log([low, high]), np.log([axis.low, axis.high]), [0, 1]),
    rtol=1e-9,
  )


@pytest.mark.parametrize(('low', 'high'), [(4.0, 4.0), (0.0, 0.0), (-2.0, -2.0), (1e-12, 1e-12)])
def test_a_constant_has_an_axis_around_it(low, high):
  axis = curves.linear(low, high)
  assert axis.low < low < axis.high or axis.low <= 0 <= axis.high != axis.low


def test_steps_end_where_the_run_does():
  axis = curves.between(0, 437)
  assert (axis.low, axis.high) == (0, 437) and axis.ticks == [0, 200, 400]
  assert curves.between(1, 3).ticks == [1, 2, 3]


def test_numbers_take_few_letters():
  told = [curves.short(v) for v in (0.0, 0.002, 1500.0, 20_000.0, 3e6, -1e-5)]
  assert told == ['0', '0.002', '1,500', '20k', '3M', '-1e-05']
  assert [curves.number(v) for v in (12_345, 0.123456, 'ema', True)] == [
    '12,345',
    '0.1235',
    'ema',
    'True',
  ]
