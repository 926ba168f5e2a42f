"""The arithmetic of studies, against what can be worked out by hand and against scipy."""

import numpy as np
import pytest
from scipy import stats

from diversedit_jax.analysis import studies, study_figure


def run(variant, seed, curve, **more):
  return {
    'variant': variant,
    'seed': seed,
    'failed': None,
    'scores': {'fid': curve},
    'series': {},
  } | more


@pytest.fixture
def results():
  """b costs twice the time of a, and as many FLOPs."""
  return {
    'title': 'Two',
    'baseline': 'a',
    'score': 'fid',
    'best': 'min',
    'steps': 100,
    'floors': {'fid': 1.0},
    'variants': {
      'a': {'seconds_per_step': 1.0, 'flops_per_step': 3e9},
      'b': {'seconds_per_step': 2.0, 'flops_per_step': 3e9},
    },
    'runs': [
      run('a', 0, [[40, 30.0], [100, 10.0]]),
      run('a', 1, [[40, 40.0], [100, 20.0]]),
      run('b', 0, [[40, 26.0], [100, 8.0]]),
      run('b', 1, [[40, 38.0], [100, 14.0]]),
    ],
  }


def test_scores_at_equal_steps_time_and_compute(results):
  assert studies.scores(results, 'fid') == {'a': [10.0, 20.0], 'b': [8.0, 14.0]}
  # In the 100 seconds of a, b makes 50 steps: a sixth of the way from 40 to 100.
  assert studies.scores(results, 'fid', 'time') == {'a': [10.0, 20.0], 'b': [23.0, 34.0]}
  assert studies.scores(results, 'fid', 'compute') == studies.scores(results, 'fid')


def test_a_score_before_the_first_evaluation_is_not_made_up(results):
  results['variants']['b']['seconds_per_step'] = 3.0  # 33 steps; the first score is of step 40.
  assert studies.scores(results, 'fid', 'time')['b'] == []


def test_differences_are_taken_seed_by_seed(results):
  found = studies.against(results, 'fid', 'a')['b']
  # -2 and -6: their spread is not that of all four scores.
  assert (found.mean, found.n) == (-4.0, 2)
  np.testing.assert_allclose(found.deviation, np.std([-2, -6], ddof=1))


def test_runs_that_failed_or_are_not_done_count_nowhere(results):
  results['runs'] += [
    run('b', 2, [[40, 1.0]]),
    run('b', 3, [], failed={'step': 7, 'because': 'loss is nan'}),
  ]
  assert studies.scores(results, 'fid')['b'] == [8.0, 14.0]
  assert studies.against(results, 'fid', 'a')['b'].n == 2
  line = next(line for line in studies.markdown(results).splitlines() if line.startswith('| b'))
  assert line.split(' | ')[1] == '2' and line.endswith('| 1 |')


def test_a_run_that_failed_after_the_step_of_equal_cost_counts_nowhere_either(results):
  failed = {'step': 90, 'because': 'loss is nan'}
  results['runs'] += [run('b', 2, [[40, 1.0], [80, 1.0]], failed=failed)]
  assert studies.scores(results, 'fid', 'time')['b'] == [23.0, 34.0]


def test_runs_that_went_on_are_compared_at_the_steps_of_the_study(results):
  for one in results['runs']:
    one['scores']['fid'].append([200, 0.0])
  assert studies.against(results, 'fid', 'a')['b'].mean == -4.0


def test_the_table(results):
  head, _, a, b, real = studies.markdown(results).splitlines()
  assert head.startswith('| variant | n | fid, equal steps | equal time | equal compute |')
  assert a == '| a | 2 | 15 ± 7.1 | 15 ± 7.1 | 15 ± 7.1 |  | 1 | 3 |  |'
  assert b == '| b | 2 | 11 ± 4.2 | 28.5 ± 7.8 | 11 ± 4.2 | -4 ± 2.8 | 2 | 3 |  |'
  assert real.startswith('| *real data* |  | 1 |')


def test_correlations_are_spearmans_over_the_runs_of_all_studies(results):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 6))
  runs = [
    run('a', i, [[100, b]], series={'similarity/token': [[50, 9.0], [100, a]]})
    for i, (a, b) in enumerate(zip(x, y, strict=True))
  ]
  found = studies.correlations([{**results, 'runs': runs[:2]}, {**results, 'runs': runs[2:]}])
  expected = stats.spearmanr(x, y)
  (row,) = found
  assert (row['series'], row['score'], row['n']) == ('similarity/token', 'fid', 6)
  np.testing.assert_allclose((row['rho'], row['p']), expected, rtol=1e-12)


def curves_of(monkeypatch, results, path):
  """The axes of scores over steps, as they are drawn."""
  seen = []
  drawn = study_figure._curves
  monkeypatch.setattr(
    study_figure, '_curves', lambda ax, *rest: (drawn(ax, *rest), seen.append(ax))
  )
  study_figure.draw(path, results)
  return seen[0]


def test_a_run_that_failed_does_not_cut_the_curve_of_the_others(results, tmp_path, monkeypatch):
  results['runs'] += [run('b', 2, [[40, 99.0]], failed={'step': 50, 'because': 'loss is nan'})]
  ax = curves_of(monkeypatch, results, tmp_path / 'one')
  mean = next(line for line in ax.lines if line.get_label() == 'b')
  np.testing.assert_array_equal(mean.get_xydata(), [[40, 32], [100, 11]])


@pytest.mark.parametrize(
  'best, last, scale', [('min', 8.0, 'log'), ('min', -0.1, 'linear'), ('max', 8.0, 'linear')]
)
def test_only_distances_above_0_are_drawn_by_their_logarithm(
  best, last, scale, results, tmp_path, monkeypatch
):
  results['best'] = best
  results['runs'][2]['scores']['fid'][-1][1] = last
  assert curves_of(monkeypatch, results, tmp_path / 'one').get_yscale() == scale


def test_the_figure_is_the_same_file_for_the_same_results(results, tmp_path):
  results['runs'][2]['series'] = {'diverse/weight': [[10, 0.5], [20, 0.1]]}
  results['runs'][3]['failed'] = {'step': 3, 'because': 'loss is nan'}
  svg, png = study_figure.draw(tmp_path / 'one', results)
  again, _ = study_figure.draw(tmp_path / 'two', results)
  text = svg.read_text()
  assert text == again.read_text()
  for words in ('b (diverged)', 'weight of the diversity loss', 'real data', 'FID after 100 steps'):
    assert words in text, words  # As text, which readers of the page can search.
  assert png.read_bytes().startswith(b'\x89PNG')
