"""Quantisers against their formulas, and where the pixels of a grid lie."""

import numpy as np
from PIL import Image
import pytest

from diversedit_jax.data import files, images
from diversedit_jax.types import UserError


def test_quantisers_follow_their_formulas():
  """On a grid of multiples of 1/64, where float32 is exact in both formulas."""
  x = np.arange(-96, 97, dtype=np.float64) / 64
  truncate = np.floor(np.clip(127.5 * x + 127.5, 0, 255))
  round_half = np.floor(np.clip(127.5 * x + 128, 0, 255))
  for quantiser, expected in (('truncate', truncate), ('round_half', round_half)):
    found = images.to_uint8(x.astype(np.float32), quantiser)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)
  assert images.to_uint8(np.float32(0), 'truncate') == 127
  assert images.to_uint8(np.float32(0), 'round_half') == 128
  assert (images.to_uint8(x) == truncate).all()


def test_round_half_inverts_the_normalisation():
  levels = np.arange(256, dtype=np.uint8)
  x = levels.astype(np.float32) / np.float32(127.5) - np.float32(1)
  np.testing.assert_array_equal(images.to_uint8(x, 'round_half'), levels)
  lost = levels.astype(int) - images.to_uint8(x, 'truncate')
  assert set(lost) <= {0, 1}


@pytest.mark.parametrize('channels', [1, 3])
def test_grid_holds_every_image(tmp_path, channels):
  """Finds each tile where row and column say, enlarged, lines around it, and else white."""
  rng = np.random.default_rng(0)
  x = rng.integers(0, 255, (5, 4, 6, channels), dtype=np.uint8)
  path = tmp_path / 'made' / 'grid.png'
  images.save_grid(path, x, 3, scale=2)
  page = Image.open(path)
  assert page.mode == ('L' if channels == 1 else 'RGB') and page.format == 'PNG'
  assert page.size == (8 + 3 * 12 + 2 * 2 + 8, 8 + 2 * 8 + 2 + 8)
  pixels = np.asarray(page).reshape(page.size[1], page.size[0], channels)
  covered = np.zeros(pixels.shape[:2], bool)
  for i in range(5):
    top, left = 8 + (i // 3) * 10, 8 + (i % 3) * 14
    tile = pixels[top : top + 8, left : left + 12]
    np.testing.assert_array_equal(tile, np.kron(x[i], np.ones((2, 2, 1), np.uint8)))
    covered[top - 2 : top + 10, left - 2 : left + 14] = True
    lines = pixels[top - 2 : top + 10, left - 2 : left + 14].copy()
    lines[2:-2, 2:-2] = 144
    assert (lines == 144).all()
  assert (pixels[~covered] == 255).all() and not covered[18:26, 36:48].all()


def test_labels_and_title_take_their_own_space(tmp_path):
  x = np.full((4, 8, 8, 1), 200, np.uint8)
  sizes = {}
  for name, options in {
    'plain': {},
    'labels': {'row_labels': ['zero', 'one']},
    'title': {'title': 'a title that is wider than the grid itself'},
  }.items():
    images.save_grid(tmp_path / f'{name}.png', x, 2, **options)
    page = np.asarray(Image.open(tmp_path / f'{name}.png'))
    sizes[name] = page.shape
    assert (page == 200).sum() >= 4 * 40 * 40  # No text over the images.
    assert (page < 128).any() == bool(options)
  assert sizes['labels'][1] > sizes['plain'][1] and sizes['labels'][0] == sizes['plain'][0]
  assert sizes['title'][0] > sizes['plain'][0] and sizes['title'][1] > sizes['plain'][1]


def test_grid_quantises_floats_and_enlarges_digits(tmp_path):
  x = np.linspace(-1.2, 1.2, 64, dtype=np.float32).reshape(1, 8, 8, 1)
  tiles = []
  for smooth in (False, True):
    images.save_grid(tmp_path / 'grid.png', x, 1, smooth=smooth)
    tiles.append(np.asarray(Image.open(tmp_path / 'grid.png'))[8:-8, 8:-8])
  assert tiles[0].shape == (40, 40)
  np.testing.assert_array_equal(tiles[0][::5, ::5], images.to_uint8(x[0, ..., 0], 'round_half'))
  assert len(np.unique(tiles[1])) > len(np.unique(tiles[0])) + 8


def test_refusals_leave_no_file(tmp_path):
  with pytest.raises(UserError, match="did you mean 'truncate'"):
    images.to_uint8(np.zeros(3), 'trunkate')
  with pytest.raises(UserError, match='2 of 3 values are not finite'):
    images.to_uint8(np.array([0, np.nan, np.inf]))
  with pytest.raises(UserError, match='1 or 3'):
    images.save_grid(tmp_path / 'grid.png', np.zeros((4, 8, 8, 2), np.uint8), 2)
  with pytest.raises(UserError, match='2 rows needs 2 row labels; got 1'):
    images.save_grid(tmp_path / 'grid.png', np.zeros((4, 8, 8, 1)), 2, row_labels=['a'])
  assert not list(tmp_path.iterdir())


def test_atomic_keeps_the_old_file_when_writing_fails(tmp_path):
  path = tmp_path / 'file.txt'
  path.write_text('old')
  with pytest.raises(RuntimeError), files.atomic(path) as temporary:
    temporary.write_text('half')
    raise RuntimeError
  assert [p.name for p in tmp_path.iterdir()] == ['file.txt'] and path.read_text() == 'old'


def test_a_grid_has_at_most_so_many_pixels(tmp_path):
  rows, columns = images.grid_limit(256, 256)
  assert rows == columns == 15
  x = np.zeros((20 * 18, 256, 256, 1), np.uint8)
  path = tmp_path / 'grid.png'
  images.save_grid(path, x, 18, row_labels=[str(i) for i in range(20)], title='many')
  page = np.asarray(Image.open(path))
  assert max(page.shape) < 4096 + 100
