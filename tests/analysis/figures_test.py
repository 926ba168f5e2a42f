"""The figure of a sweep: a file that appears whole, sorted curves, a marked best, refusals."""

import numpy as np
from PIL import Image
import pytest

from diversedit_jax.analysis import figures
from diversedit_jax.types import UserError

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
