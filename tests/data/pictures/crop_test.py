"""Crops: equal to the reference in every bit, and what follows from their definitions."""

import io

from helpers import malformed
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import base, crop


@pytest.mark.parametrize('name', ['landscape', 'portrait', 'small'])
@pytest.mark.parametrize('size', [64, 256])
def test_adm_equals_the_reference_in_every_bit(golden, name, size):
  arrays = golden('adm_center_crop')
  image = Image.open(io.BytesIO(arrays[f'{name}/png'].tobytes())).convert('RGB')
  np.testing.assert_array_equal(crop.crop(image, size, 'adm'), arrays[f'{name}/out{size}'])


@pytest.mark.parametrize('rule', crop.CROPS)
def test_a_picture_of_the_size_is_left_as_it_is(rule):
  image = malformed.noise(32, 32)
  pixels = crop.crop(image, 32, rule)
  np.testing.assert_array_equal(pixels, np.asarray(image))
  assert pixels.flags.writeable and pixels.flags.c_contiguous


@pytest.mark.parametrize('width,height', [(40, 40), (63, 41), (41, 63), (7, 9), (33, 200)])
def test_center_is_adm_where_nothing_is_halved(width, height):
  image = malformed.noise(width, height)
  assert min(width, height) < 2 * 32
  np.testing.assert_array_equal(crop.crop(image, 32, 'center'), crop.crop(image, 32, 'adm'))


@pytest.mark.parametrize('rule', ['adm', 'center'])
def test_the_middle_is_kept(rule):
  """A long picture whose middle third has one colour: the crop has this colour alone."""
  image = Image.new('RGB', (300, 60))
  image.paste((7, 130, 255), (100, 0, 200, 60))
  assert (crop.crop(image, 30, rule) == (7, 130, 255)).all()


def test_what_cannot_be_cropped_is_named():
  with pytest.raises(base.BadPicture, match='24x20, expected exactly 16x16'):
    crop.crop(malformed.noise(24, 20), 16, 'exact')
  with pytest.raises(base.BadPicture, match='1x1000000 is too narrow'):
    crop.crop(Image.new('RGB', (1, 10**6)), 256)
  with pytest.raises(types.UserError, match="did you mean 'center'"):
    crop.crop(malformed.noise(8, 8), 8, 'centre')
  with pytest.raises(types.UserError, match='at least 1, got 0'):
    crop.crop(malformed.noise(8, 8), 0)
