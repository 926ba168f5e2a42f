"""Bytes of a picture -> RGB. Whatever the bytes, the result is a picture or a `BadPicture`.

The content decides, not the name. Colours as `Image.convert('RGB')` makes them, which is the rule
of the ADM crop: alpha is dropped, palettes and CMYK are resolved, grey is repeated. Grey of 16 bits
is scaled, round(255 v / 65535), where `convert` would clip it.
"""

import io
import threading
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from diversedit_jax import trees
from diversedit_jax.data.pictures import base

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF', 'TIFF', 'PPM')
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
    data: a file of one of `FORMATS`.
    orientation: 'exif' turns the picture upright as its EXIF says, 'stored' leaves it as it lies.

  Raises:
    BadPicture: no picture, damaged, animated, more than `MAX_PIXELS`, 32 bits a channel.
    MemoryError, OSError: of the machine, not of the bytes.
    UserError: for an unknown orientation.
  """
  trees.check_known('orientation', orientation, ORIENTATIONS)
  if not data:
    raise base.BadPicture('zero bytes')
  try:
    with _QUIET, Image.open(io.BytesIO(data), formats=FORMATS) as image:
      return _load(image, orientation)
  except base.BadPicture:
    raise
  except UnidentifiedImageError as error:
    # Its message has an address of memory in it.
    raise base.BadPicture(f'no {", ".join(FORMATS)}, or its header is damaged') from error
  except Image.DecompressionBombError as error:
    raise base.BadPicture(f'more than {MAX_PIXELS} pixels') from error
  # Damaged files make Pillow raise almost anything: struct.error, OverflowError, KeyError, ...
  except Exception as error:
    if _of_the_machine(error):
      raise
    raise base.BadPicture(f'damaged: {_short(error)}') from error


class _Quiet:
  """Pillow's warnings are off while any thread is inside.

  `warnings.catch_warnings` belongs to the whole process: two threads that leave it in another order
  than they entered would leave its filters behind.
  """

  def __init__(self):
    self._lock = threading.Lock()
    self._inside = 0

  def __enter__(self):
    with self._lock:
      if not self._inside:
        self._filters = warnings.catch_warnings()
        self._filters.__enter__()
        warnings.filterwarnings('ignore', module='PIL')
      self._inside += 1

  def __exit__(self, *error):
    with self._lock:
      self._inside -= 1
      if not self._inside:
        self._filters.__exit__(*error)


_QUIET = _Quiet()


def _load(image, orientation):
  if image.width * image.height > MAX_PIXELS:
    raise base.BadPicture(f'{image.width}x{image.height}, more than {MAX_PIXELS} pixels')
  if not image.width * image.height:
    raise base.BadPicture(f'no pixels: {image.width}x{image.height}')
  # A camera's JPEG may have a preview or a map of brightness behind it (MPO): no animation.
  frames = 1 if image.format == 'MPO' else getattr(image, 'n_frames', 1)
  if frames > 1:
    raise base.BadPicture(f'animated, {frames} frames')
  # Pillow turns TIFFs while it loads them, and forgets how; the EXIF of a PNG may lie at its end.
  turned = image.format == 'TIFF'
  if turned:
    stored = _orientation(image)
  image.load()
  if not turned:
    stored = _orientation(image)
  turns = {'exif': {} if turned else _UPRIGHT, 'stored': _BACK if turned else {}}[orientation]
  grey = _sixteen_bits(image)
  if image.mode in ('I', 'F') and grey is None:
    kind = 'integers' if image.mode == 'I' else 'floating-point numbers'
    raise base.BadPicture(f'{kind} of 32 bits, expected 8 or 16 bits a channel')
  image = image.convert('RGB') if grey is None else Image.fromarray(grey).convert('RGB')
  return image.transpose(turns[stored]) if stored in turns else image


def _orientation(image):
  """1 to 8; 1 if the EXIF cannot be read, which is no reason to lose the picture."""
  try:
    stored = image.getexif().get(_ORIENTATION)
    return stored if isinstance(stored, int) else 1
  except Exception:  # As in `decode`.
    return 1


def _sixteen_bits(image):
  """The bytes of a picture of 9 to 16 bits grey; None of any other."""
  # Some formats have no 32 bits: there Pillow's 'I' stands for 16.
  if not image.mode.startswith('I;16') and (image.mode, image.format) not in (
    ('I', 'PNG'),
    ('I', 'PPM'),
  ):
    return None
  tags = getattr(image, 'tag_v2', {})
  top = 2 ** tags.get(_BITS, (16,))[0] - 1
  levels = np.asarray(image).astype(np.int64)
  if tags.get(_PHOTOMETRIC) == 0:  # White is zero.
    levels = top - levels
  return np.clip((levels * 255 + top // 2) // top, 0, 255).astype(np.uint8)


def _of_the_machine(error):
  """Errors of the system have a number, unlike those that Pillow makes of damage."""
  return (
    isinstance(error, MemoryError)
    or (isinstance(error, OSError) and error.errno is not None)
    or str(error).startswith('out of memory')  # Of Pillow's own decoders.
  )


def _short(error):
  text = ' '.join(str(error).split()) or type(error).__name__
  return text if len(text) <= 120 else text[:117] + '...'
