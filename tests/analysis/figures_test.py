"""Figures: files that appear whole, colours that mean what the bar says, refusals."""

import pathlib
import subprocess
import sys

from matplotlib import figure
import numpy as np
from PIL import Image
import pytest

from diversedit_jax.analysis import figures
from diversedit_jax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def drawn(monkeypatch):
  """The figures that were saved, so that tests can read their axes."""
  saved = []
  save = figure.Figure.savefig

  def savefig(self, *args, **kwargs):
    saved.append(self)
    save(self, *args, **kwargs)

  monkeypatch.setattr(figure.Figure, 'savefig', savefig)
  return saved


def matrix(depth, value):
  return np.where(np.eye(depth, dtype=bool), 1, value)


def test_heatmaps_share_one_scale_and_count_blocks_from_one(tmp_path, drawn):
  path = tmp_path / 'analysis' / 'cka.png'
  figures.similarity_heatmaps(path, {'a': matrix(4, 0.5), 'b': matrix(12, -0.1)})
  assert [p.name for p in path.parent.iterdir()] == ['cka.png']
  assert Image.open(path).format == 'PNG'
  panels = [ax for ax in drawn[0].axes if ax.images]
  assert [ax.get_title() for ax in panels] == [
    'a\nmean off-diagonal 0.500',
    'b\nmean off-diagonal -0.100',
  ]
  for ax, depth in zip(panels, (4, 12), strict=True):
    assert ax.images[0].get_clim() == (-0.1, 1)
    for ticks in (ax.get_xticks(), ax.get_yticks()):
      assert list(ticks) == ([1, 2, 3, 4] if depth == 4 else [1, 4, 8, 12])
    # Block 1 is centred at 1, at the lower left.
    assert ax.images[0].get_extent() == [0.5, depth + 0.5, 0.5, depth + 0.5]
    assert ax.images[0].origin == 'lower'
  assert len(drawn[0].axes) == 3  # The third is the one colour bar.


def test_heatmaps_draw_the_values(tmp_path, drawn):
  values = np.arange(9.0).reshape(3, 3) / 10
  figures.similarity_heatmaps(tmp_path / 'x.png', {'a': values}, low=0, high=1)
  np.testing.assert_array_equal(drawn[0].axes[0].images[0].get_array(), values)
  assert drawn[0].axes[0].images[0].get_clim() == (0, 1)


@pytest.mark.parametrize(
  ('matrices', 'options', 'message'),
  [
    ({}, {}, 'got 0'),
    ({'a': np.ones((2, 3))}, {}, r'\(L, L\)'),
    ({'a': np.eye(3), 'b': np.eye(3) * np.nan}, {}, "not so in 'b'"),
    ({'a': np.eye(3)}, {'low': 2.0}, 'low < high'),
  ],
)
def test_heatmap_refusals_leave_no_file(tmp_path, matrices, options, message):
  with pytest.raises(UserError, match=message):
    figures.similarity_heatmaps(tmp_path / 'x.png', matrices, **options)
  assert not list(tmp_path.iterdir())


def test_identical_layers_are_drawn_alike(tmp_path, drawn):
  rounding = np.ones((3, 3)) - 1e-15 * np.arange(9.0).reshape(3, 3)
  figures.similarity_heatmaps(tmp_path / 'x.png', {'a': rounding})
  assert drawn[0].axes[0].images[0].get_clim() == (0.9, 1)


CURVES = {'[0, 1]': {2.0: 3.0, 1.0: 5.0, 1.5: 2.5}, '[0, 0.7]': {1.0: 5.0, 2.0: 2.0}}


@pytest.mark.parametrize(('lowest', 'best'), [(True, (2.0, 2.0)), (False, (1.0, 5.0))])
def test_guidance_curves_are_sorted_and_the_best_point_is_marked(tmp_path, drawn, lowest, best):
  path = tmp_path / 'eval' / 'sweep.png'
  figures.guidance_curves(path, CURVES, label='fid of 5 samples', lowest_is_best=lowest)
  assert [p.name for p in path.parent.iterdir()] == ['sweep.png']
  assert Image.open(path).format == 'PNG'
  (ax,) = drawn[0].axes
  first, second, mark = ax.lines
  np.testing.assert_array_equal(first.get_xydata(), [[1, 5], [1.5, 2.5], [2, 3]])
  np.testing.assert_array_equal(second.get_xydata(), [[1, 5], [2, 2]])
  np.testing.assert_array_equal(mark.get_xydata(), [best])
  assert ax.texts[0].get_text() == f'{best[1]:.4g}'
  assert (ax.get_xlabel(), ax.get_ylabel()) == ('guidance scale', 'fid of 5 samples')
  assert [text.get_text() for text in ax.get_legend().get_texts()] == list(CURVES)
  assert first.get_color() is not second.get_color()


@pytest.mark.parametrize('curves', [{}, {'a': {}}, {'a': {1.0: np.nan}}, {'a': {1.0: np.inf}}])
def test_guidance_curves_without_finite_points_are_refused(tmp_path, curves):
  with pytest.raises(UserError, match='points with finite scores'):
    figures.guidance_curves(tmp_path / 'x.png', curves, label='fid', lowest_is_best=True)
  assert not list(tmp_path.iterdir())


def test_no_global_state():
  """In a process of its own: other tests of this one may have imported TensorBoard's writer."""
  code = 'import sys, diversedit_jax.analysis.figures; sys.exit("matplotlib.pyplot" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
