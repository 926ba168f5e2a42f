"""Decoding: the content decides, colours, depths, orientations, and warnings in many threads."""

from concurrent import futures
import io
import warnings

from helpers import malformed
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import base, decode


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


def test_alpha_is_dropped_not_painted():
  image = Image.new('RGBA', (4, 4), (200, 100, 50, 0))
  assert (levels(malformed.encode(image)) == (200, 100, 50)).all()


def test_adobes_cmyk_is_turned_round():
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


def test_plain_grey_maps_are_scaled_by_their_top():
  found = levels(b'P2 3 1 1000\n0 500 1000\n')
  # 500 / 1000 is 127.5 of 255: Pillow widens to 16 bits first, so either neighbour is right.
  assert found[0, 0, 0] == 0 and found[0, 1, 0] in (127, 128) and found[0, 2, 0] == 255


def test_tiff_of_twelve_bits_and_white_as_zero():
  wide = np.array([0, 257, 65535], '<u2')
  sixteen = {258: (3, 16)}
  assert levels(malformed.tiff(3, 1, wide.tobytes(), sixteen.items()))[0, :, 0].tolist() == [
    0,
    1,
    255,
  ]
  inverted = {**sixteen, 262: (3, 0)}
  assert levels(malformed.tiff(3, 1, wide.tobytes(), inverted.items()))[0, :, 0].tolist() == [
    255,
    254,
    0,
  ]
  twelve = bytes([0x00, 0x0F, 0xFF])  # 0 and 4095.
  assert levels(malformed.tiff(2, 1, twelve, {258: (3, 12)}.items()))[0, :, 0].tolist() == [0, 255]


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


@pytest.mark.parametrize('kind', ['PNG', 'WEBP', 'TIFF'])
@pytest.mark.parametrize('k', range(1, 9))
def test_orientations(kind, k):
  upright, stored = _corner(k)
  exif = Image.Exif()
  exif[0x0112] = k
  options = {'lossless': True} if kind == 'WEBP' else {}
  data = malformed.encode(stored, kind, exif=exif, **options)
  np.testing.assert_array_equal(levels(data, 'exif'), np.asarray(upright))
  np.testing.assert_array_equal(levels(data, 'stored'), np.asarray(stored))


def test_orientation_of_a_jpeg():
  upright, stored = _corner(6)
  data = malformed.encode(stored, 'JPEG', exif=malformed.exif(6), quality=95, subsampling=0)
  # The colours lie in whole blocks of 8 x 8, which JPEG keeps to a few levels.
  for orientation, image in (('exif', upright), ('stored', stored)):
    difference = levels(data, orientation).astype(int) - np.asarray(image).astype(int)
    assert abs(difference).max() <= 4


@pytest.mark.parametrize('block', [malformed.exif(0), malformed.exif(9), b'Exif\0\0rubbish'])
def test_a_senseless_orientation_costs_no_picture(block):
  image = malformed.noise(24, 20)
  expected = levels(malformed.encode(image, 'JPEG'))
  np.testing.assert_array_equal(levels(malformed.encode(image, 'JPEG', exif=block)), expected)


def test_a_preview_behind_a_jpeg_is_no_animation():
  buffer = io.BytesIO()
  malformed.noise(24, 20).save(
    buffer, 'MPO', save_all=True, append_images=[malformed.noise(12, 10)]
  )
  assert decode.decode(buffer.getvalue()).size == (24, 20)


@pytest.mark.parametrize('kind', ['GIF', 'WEBP', 'PNG', 'TIFF'])
def test_animations_are_counted(kind):
  frames = [malformed.noise(24, 20, seed=k) for k in range(3)]
  data = malformed.encode(frames[0], kind, save_all=True, append_images=frames[1:])
  with pytest.raises(base.BadPicture, match='animated, 3 frames'):
    decode.decode(data)


@pytest.mark.parametrize(
  'data,reason',
  [
    (b'', 'zero bytes'),
    (b'text', 'no JPEG, PNG'),
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


def test_an_unknown_orientation_is_named():
  with pytest.raises(types.UserError, match="did you mean 'stored'"):
    decode.decode(malformed.sound('PNG'), 'store')


def test_warnings_stay_inside_and_their_filters_are_put_back():
  """In threads too: each of these pictures makes Pillow warn."""
  quantized = malformed.noise(24, 20).quantize(4)
  data = malformed.encode(quantized, transparency=b'\0\x40\x80')
  with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter('always')
    before = list(warnings.filters)
    with futures.ThreadPoolExecutor(8) as pool:
      images = list(pool.map(decode.decode, [data] * 64))
    assert warnings.filters == before
    warnings.warn('heard again', stacklevel=1)
  assert [str(w.message) for w in seen] == ['heard again']
  expected = np.asarray(quantized.convert('RGB'))
  for image in images:
    np.testing.assert_array_equal(np.asarray(image), expected)
