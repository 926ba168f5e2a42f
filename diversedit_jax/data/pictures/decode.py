"""Bytes of a picture to RGB: whatever the bytes, the result is a picture or a `BadPicture`.

The format is known by the content, not by the name. Colours are converted by
`Image.convert('RGB')`, the rule of the ADM crop: alpha is dropped, palettes and CMYK are resolved,
grey is repeated. Grey of 16 bits is scaled, round(255 v / 65535), where `convert` would clip it.
"""

import functools
import io

import numpy as np
from PIL import Image, UnidentifiedImageError

from diversedit_jax import trees
from diversedit_jax.data.pictures import base, kinds

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM', 'AVIF', 'HEIF')
"""Formats of Pillow that are read; the last two where Pillow or a plugin of it reads them."""

ORIENTATIONS = ('exif', 'stored')
MAX_PIXELS = 2**27

_ORIENTATION, _BITS, _PHOTOMETRIC = 274, 258, 262  # Tags of EXIF and TIFF.
_T = Image.Transpose
_UPRIGHT = {
  2: _T.FLIP_LEFT_RIGHT,
  3: _T.ROTATE_180,
  4: _T.FLIP_TOP_BOTTOM,
  5: _T.TRANSPOSE,
  6: _T.ROTATE_270,
  7: _T.TRANSVERSE,
  8: _T.ROTATE_90,
}
_BACK = {**_UPRIGHT, 6: _T.ROTATE_90, 8: _T.ROTATE_270}


def decode(data: bytes, orientation: str = 'exif') -> Image.Image:
  """The picture in RGB, loaded.

  Args:
    data: bytes of a file of one of `FORMATS`.
    orientation: 'exif' turns the picture upright as its EXIF says, 'stored' leaves it as it is.

  Raises:
    BadPicture: no picture, damaged, animated, more than `MAX_PIXELS`, or 32 bits a channel.
    MemoryError, OSError: the machine failed; the bytes may be sound.
    UserError: the orientation is unknown.
  """
  trees.check_known('orientation', orientation, ORIENTATIONS)
  if not data:
    raise base.BadPicture('zero bytes')
  try:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
      return _load(image, orientation)
  except base.BadPicture:
    raise
  except UnidentifiedImageError as error:
    # Pillow's own message holds a memory address, which would differ from run to run.
    kind = kinds.by_content(data[: kinds.HEAD])
    reason = kind and kinds.not_read(kind)
    raise base.BadPicture(
      reason or f'no {", ".join(_formats())}, or its header is damaged'
    ) from error
  except Image.DecompressionBombError as error:
    raise base.BadPicture(f'more than {MAX_PIXELS} pixels') from error
  # Damaged files make Pillow raise almost anything: struct.error, OverflowError, KeyError, ...
  except Exception as error:
    if _machine_failed(error):
      raise
    raise base.BadPicture(f'damaged: {_short(error)}') from error


@functools.cache
def _formats():
  """Those of `FORMATS` that are read here; registers the plugin for HEIC."""
  if not kinds.not_read('HEIF'):
    import pillow_heif  # Optional, the extra [heif].

    pillow_heif.register_heif_opener()
  return tuple(kind for kind in FORMATS if kind in ('TIFF', 'PPM') or not kinds.not_read(kind))


def _load(image, orientation):
  if image.width * image.height > MAX_PIXELS:
    raise base.BadPicture(f'{image.width}x{image.height}, more than {MAX_PIXELS} pixels')
  if not image.width * image.height:
    raise base.BadPicture(f'no pixels: {image.width}x{image.height}')
  # The frames behind a camera's JPEG (MPO) are previews, no animation.
  frames = 1 if image.format == 'MPO' else getattr(image, 'n_frames', 1)
  if frames > 1:
    raise base.BadPicture(f'animated, {frames} frames')
  # Pillow turns a TIFF while it loads it and drops the tag; a PNG may have its EXIF at the end.
  turned = image.format == 'TIFF'
  stored = _orientation(image) if turned else None
  image.load()
  if not turned:
    stored = _orientation(image)
  turns = {'exif': {} if turned else _UPRIGHT, 'stored': _BACK if turned else {}}[orientation]
  # Pillow's mode 'I' stands for 16 bits in formats that have no 32 bits.
  if image.mode.startswith('I;16') or (image.mode == 'I' and image.format in ('PNG', 'PPM')):
    image = Image.fromarray(_eight_bits(image))
  if image.mode in ('I', 'F'):
    kind = 'integers' if image.mode == 'I' else 'floating-point numbers'
    raise base.BadPicture(f'{kind} of 32 bits, expected 8 or 16 bits a channel')
  image = image.convert('RGB')
  return image.transpose(turns[stored]) if stored in turns else image


def _orientation(image):
  """The orientation, 1 to 8; 1 if the EXIF cannot be read, which is no reason to lose a picture."""
  try:
    stored = image.getexif().get(_ORIENTATION)
    return stored if isinstance(stored, int) else 1
  except Exception:  # As in `decode`.
    return 1


def _eight_bits(image):
  """Levels of a grey picture of 9 to 16 bits, scaled to uint8."""
  tags = getattr(image, 'tag_v2', {})
  top = 2 ** tags.get(_BITS, (16,))[0] - 1
  levels = np.asarray(image).astype(np.int64)
  if tags.get(_PHOTOMETRIC) == 0:  # White is zero.
    levels = top - levels
  return np.clip((levels * 255 + top // 2) // top, 0, 255).astype(np.uint8)


def _machine_failed(error):
  """Whether an error comes from the machine: system errors have a number, Pillow's have none."""
  return (
    isinstance(error, MemoryError)
    or (isinstance(error, OSError) and error.errno is not None)
    or str(error).startswith('out of memory')  # Raised by Pillow's decoders.
  )


def _short(error):
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= 120 else text[:117] + '...'
