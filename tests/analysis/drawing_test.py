"""Figures from panels: files that appear whole, colours that mean what the bar says, series."""

import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from diversedit_jax.analysis import drawing, panels
from diversedit_jax.types import UserError

ROOT = pathlib.Path(__file__).parents[2]


def heatmap(values, title='a', label='CKA', **more):
  blocks = list(range(1, len(values) + 1))
  fields = {'x': blocks, 'y': blocks, 'x_label': 'block', 'y_label': 'block', 'high': 1.0}
  return panels.Heatmap(title=title, values=values, label=label, **(fields | more))


def curves(**more):
  fields = {'x': [1, 2], 'x_label': 'block', 'y_label': 'rank', 'series': {'a': [1, 2]}}
  return panels.Curves(title='curves', **(fields | more))


def matrix(depth, value):
  return np.where(np.eye(depth, dtype=bool), 1, value)


def test_heat_maps_share_one_scale_and_count_blocks_from_one(tmp_path, drawn):
  shown = [heatmap(matrix(4, 0.5)), heatmap(matrix(12, -0.1), title='b')]
  written = drawing.draw(tmp_path / 'analysis' / 'cka', shown)
  names = sorted(p.name for p in (tmp_path / 'analysis').iterdir())
  assert names == ['cka.pdf', 'cka.png'] == sorted(pathlib.Path(p).name for p in written)
  assert Image.open(tmp_path / 'analysis' / 'cka.png').format == 'PNG'
  pdf = (tmp_path / 'analysis' / 'cka.pdf').read_bytes()
  assert pdf.startswith(b'%PDF') and b'CreationDate' not in pdf and b'/Type3' not in pdf
  found = [ax for ax in drawn[0].axes if ax.images]
  assert [ax.get_title() for ax in found] == ['a', 'b']
  for ax, depth in zip(found, (4, 12), strict=True):
    assert ax.images[0].get_clim() == (-0.1, 1)
    for axis in (ax.xaxis, ax.yaxis):
      labels = [label.get_text() for label in axis.get_ticklabels()]
      assert labels == ([*'1234'] if depth == 4 else ['1', '4', '8', '12'])
    # Block 1 is centred at 1, at the lower left.
    assert ax.images[0].get_extent() == [0.5, depth + 0.5, 0.5, depth + 0.5]
    assert ax.images[0].origin == 'lower'
  assert len(drawn[0].axes) == 3  # The third is the one colour bar.


def test_heat_maps_draw_the_values_and_what_lies_beyond_has_an_arrow():
  values = np.arange(6.0).reshape(2, 3) / 10
  shown = heatmap(values, x=[0.1, 0.2, 0.3], y=['u', 'v'], low=0.1, high=0.4)
  figure = drawing.figure_of([shown])
  image = figure.axes[0].images[0]
  np.testing.assert_array_equal(image.get_array(), values)
  assert image.get_clim() == (0.1, 0.4)
  assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ['u', 'v']
  assert figure.axes[1].get_ylabel() == 'CKA' and image.colorbar.extend == 'both'


def test_identical_layers_are_drawn_alike():
  rounding = np.ones((3, 3)) - 1e-15 * np.arange(9.0).reshape(3, 3)
  assert drawing.figure_of([heatmap(rounding)]).axes[0].images[0].get_clim() == (0.9, 1)


def test_curves_of_a_quantity_have_its_colours_and_all_have_markers_of_their_own():
  series = {'t = 0.1': [1, 2], 't = 0.5': [2, None], 't = 0.9': [3, 4]}
  one = curves(series=series, ordered=True, low=0, high=5, reference=(2.5, 'chance'))
  (ax,) = drawing.figure_of([one]).axes
  *lines, level = ax.lines
  np.testing.assert_array_equal(lines[1].get_ydata(), [2, np.nan])
  assert len({line.get_marker() for line in lines}) == 3
  brightness = [sum(line.get_color()[:3]) for line in lines]
  assert brightness == sorted(brightness)  # Also without colours.
  assert list(level.get_ydata()) == [2.5, 2.5] and ax.get_ylim() == (0, 5)
  assert [t.get_text() for t in ax.get_legend().get_texts()] == [*series, 'chance']


def test_a_long_title_is_broken_where_the_figure_ends():
  (one,) = (drawing.figure_of([curves()], title='six words of a title ' * 5),)
  lines = one.get_suptitle().splitlines()
  assert len(lines) == 2 and max(map(len, lines)) <= 15 * one.get_figwidth() + 1


def test_stacked_curves_stand_on_each_other():
  one = curves(series={'a': [0.2, 0.3], 'b': [0.8, 0.7]}, stacked=True)
  (ax,) = drawing.figure_of([one]).axes
  assert [(b.get_y(), b.get_height()) for b in ax.patches] == [
    (0, 0.2),
    (0, 0.3),
    (0.2, 0.8),
    (0.3, 0.7),
  ]


def test_pictures_stand_in_rows_and_columns():
  red, grey = np.zeros((2, 2, 3)), np.full((4, 4), 0.5)
  red[..., 0] = 1
  one = panels.Pictures(
    title='p', pictures=[[grey, red], [red, grey]], columns=['x', 'y'], rows=['0', '1'], array='p'
  )
  (ax,) = drawing.figure_of([one]).axes
  page = np.asarray(ax.images[0].get_array())
  assert page.shape[:2] == (32 + 3 + 32, 32 + 3 + 32)
  np.testing.assert_array_equal(page[5, 5], [0.5] * 3)
  np.testing.assert_array_equal(page[5, 40], [1, 0, 0])
  np.testing.assert_array_equal(page[40, 5], [1, 0, 0])
  np.testing.assert_array_equal(page[33, 5], [1, 1, 1])


def test_values_that_are_not_finite_are_refused():
  with pytest.raises(UserError, match="not so in 'a'"):
    heatmap(np.eye(3) * np.nan)
  with pytest.raises(UserError, match="not so in 'curves: a'"):
    curves(series={'a': [1.0, np.inf]})


def test_facts_hold_every_number_and_no_pictures():
  facts = panels.facts(heatmap(np.eye(2)))
  assert facts['kind'] == 'heatmap' and facts['x'] == [1, 2] and facts['values'].shape == (2, 2)
  assert panels.facts(curves())['series'] == {'a': [1, 2]}
  one = panels.Pictures(title='p', pictures=[], columns=[], rows=[], array='p')
  assert panels.facts(one) == {
    'kind': 'pictures',
    'title': 'p',
    'columns': [],
    'rows': [],
    'array': 'p',
  }


def test_no_global_state():
  """In a process of its own: other tests of this one may have imported TensorBoard's writer."""
  code = 'import sys, diversedit_jax.analysis.drawing; sys.exit("matplotlib.pyplot" in sys.modules)'
  assert subprocess.run([sys.executable, '-c', code], cwd=ROOT).returncode == 0
