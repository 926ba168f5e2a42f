"""Decoding: the content decides, colours, depths, orientations, and what makes a picture bad."""

import io

from helpers import malformed
import numpy as np
from PIL import Image
import pytest

from diversedit_jax.data.pictures import base, decode

ANIMATED = {'save_all': True, 'append_images': [malformed.noise(9, 9, seed=k) for k in (1, 2)]}


def levels(data, orientation='exif'):
  return np.asarray(decode.decode(data, orientation))


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'BMP', 'TIFF', 'PPM'])
def test_lossless_formats_give_their_pixels(kind):
  options = {'lossless': True} if kind == 'WEBP' else {}
  image = malformed.noise(24, 20)
  np.testing.assert_array_equal(levels(malformed.encode(image, kind, **options)), np.asarray(image))


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'CMYK', '1', 'P'])
def test_modes_become_rgb_as_pillow_converts_them(mode):
  if mode in ('1', 'LA', 'P'):
    image = malformed.noise(24, 20, 'RGBA').convert('RGB' if mode == 'P' else 'RGBA').convert(mode)
  else:
    image = malformed.noise(24, 20, mode)
  kind = 'TIFF' if mode == 'CMYK' else 'PNG'
  expected = np.asarray(image.convert('RGB'))
  np.testing.assert_array_equal(levels(malformed.encode(image, kind)), expected)


def test_the_cmyk_of_adobe_is_inverted():
  """Pillow writes JPEGs in CMYK as Adobe does, inverted: no ink must come back as white."""
  data = malformed.encode(Image.new('CMYK', (16, 16), (0, 0, 0, 0)), 'JPEG')
  assert b'Adobe' in data and (levels(data) == 255).all()


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'PPM'])
def test_sixteen_bits_are_scaled(kind):
  """Level 257 k of 65535 is level k of 255 exactly; others are rounded to the nearest."""
  wide = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
  wide[0, :] = 257 * np.arange(64)
  wide[1, :] = 257 * np.arange(192, 256)
  found = levels(malformed.encode(Image.fromarray(wide), kind))
  np.testing.assert_array_equal(found[..., 0], np.rint(wide / 257))
  np.testing.assert_array_equal(found, found[..., :1].repeat(3, -1))


def test_tiff_of_twelve_bits_and_white_as_zero():
  wide = np.array([0, 257, 65535], '<u2')
  sixteen = {258: (3, 16)}
  inverted = {**sixteen, 262: (3, 0)}
  row = lambda *made: levels(malformed.tiff(*made))[0, :, 0].tolist()
  assert row(3, 1, wide.tobytes(), sixteen.items()) == [0, 1, 255]
  assert row(3, 1, wide.tobytes(), inverted.items()) == [255, 254, 0]
  twelve = bytes([0x00, 0x0F, 0xFF])  # 0 and 4095.
  assert row(2, 1, twelve, {258: (3, 12)}.items()) == [0, 255]


def _corner(k, width=24, height=16):
  """An upright picture as a camera stores it under orientation k: its top left is red."""
  upright = Image.new('RGB', (width, height))
  upright.paste((255, 0, 0), (0, 0, 8, 8))
  upright.paste((0, 255, 0), (width - 8, 0, width, 8))
  back = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
  }
  return upright, upright.transpose(back[k]) if k in back else upright


@pytest.mark.parametrize('kind', ['PNG', 'TIFF'])  # Pillow turns a TIFF itself.
@pytest.mark.parametrize('k', range(1, 9))
def test_orientations(kind, k):
  upright, stored = _corner(k)
  exif = Image.Exif()
  exif[0x0112] = k
  data = malformed.encode(stored, kind, exif=exif)
  np.testing.assert_array_equal(levels(data, 'exif'), np.asarray(upright))
  np.testing.assert_array_equal(levels(data, 'stored'), np.asarray(stored))


def test_a_preview_behind_a_jpeg_is_no_animation():
  buffer = io.BytesIO()
  malformed.noise(24, 20).save(
    buffer, 'MPO', save_all=True, append_images=[malformed.noise(12, 10)]
  )
  assert decode.decode(buffer.getvalue()).size == (24, 20)


@pytest.mark.parametrize(
  'data,reason',
  [
    (b'', 'zero bytes'),
    (b'text', 'no JPEG, PNG'),
    (malformed.encode(malformed.noise(9, 9), 'GIF', **ANIMATED), 'animated, 3 frames'),
    (malformed.sound('PNG')[:-30], 'damaged'),
    (b'P6 99999 99999 255\n', 'more than 134217728 pixels'),
    (b'P6 12000 12000 255\n', '12000x12000, more than 134217728 pixels'),
  ],
)
def test_reasons_are_short_and_the_same_every_time(data, reason):
  said = []
  for _ in range(2):
    with pytest.raises(base.BadPicture, match=reason) as caught:
      decode.decode(data)
    said.append(str(caught.value))
  assert said[0] == said[1]
