"""What a file is: a picture that is read, a picture of a kind that is not, or no picture.

The content decides. A file whose suffix is that of a picture that is read is not opened for this;
any other is known by its first bytes. Suffixes of camera negatives and the like count more than the
content: many of those files begin as a TIFF of a thumbnail does.
"""

from collections.abc import Callable
import functools
import importlib.util

from PIL import features

HEAD = 32
"""Number of first bytes that tell the kinds apart."""

MAX_BYTES = 2**30

SUFFIXES = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.jif', '.jfi', '.png', '.webp', '.bmp', '.dib', '.gif'),
  *('.tif', '.tiff', '.ppm', '.pgm', '.pbm', '.pnm', '.avif', '.heic', '.heif', '.hif'),
)
"""Suffixes of pictures that are read; they are no part of a picture's identity."""

# Suffixes whose files are looked into: whether they are read depends on what is installed.
_MODERN = ('.avif', '.heic', '.heif', '.hif')
_NOT_READ = {
  **dict.fromkeys(
    ('.dng', '.cr2', '.cr3', '.nef', '.arw', '.orf', '.rw2', '.raf', '.pef', '.srw'),
    'a negative of a camera',
  ),
  **dict.fromkeys(('.jp2', '.j2k', '.jpx', '.jpf'), 'JPEG 2000'),
  '.jxl': 'JPEG XL',
  '.psd': 'a file of Photoshop',
  '.xcf': 'a file of GIMP',
  '.svg': 'SVG',
  '.tga': 'TGA',
  '.exr': 'OpenEXR',
  '.hdr': 'Radiance HDR',
  '.ico': 'an icon',
  '.dcm': 'DICOM',
}
_MAGIC = {
  b'\xff\xd8\xff': 'JPEG',
  b'\x89PNG\r\n\x1a\n': 'PNG',
  b'GIF87a': 'GIF',
  b'GIF89a': 'GIF',
  b'\0\0\0\x0cjP  ': 'JPEG 2000',
  b'\xff\x4f\xff\x51': 'JPEG 2000',
  b'\0\0\0\x0cJXL ': 'JPEG XL',
  b'\xff\x0a': 'JPEG XL',
  b'8BPS': 'a file of Photoshop',
}
_BRANDS = {
  **dict.fromkeys((b'avif', b'avis'), 'AVIF'),
  **dict.fromkeys((b'heic', b'heix', b'heim', b'heis', b'hevc', b'hevx', b'mif1', b'msf1'), 'HEIF'),
}
_READ = frozenset(('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP'))


def stem(name: str) -> str:
  """A name without the suffix of a picture, if it has one that is read."""
  folder, slash, file = name.rpartition('/')
  start, dot, end = file.rpartition('.')
  return folder + slash + start if dot and start and f'.{end}'.lower() in SUFFIXES else name


def named_as_picture(name: str) -> bool:
  """Whether a file has the suffix of a picture, of a kind that is read or not."""
  return name.lower().endswith((*SUFFIXES, *_NOT_READ))


def by_content(head: bytes) -> str | None:
  """The kind of a picture by its first `HEAD` bytes; None if they are of none that is known."""
  if head[:4] == b'RIFF' and head[8:12] == b'WEBP':
    return 'WEBP'
  if head[:2] == b'BM' and head[6:10] == bytes(4):
    return 'BMP'
  if head[4:8] == b'ftyp':
    brands = {head[i : i + 4] for i in (8, *range(16, HEAD, 4))}
    found = {_BRANDS[brand] for brand in brands if brand in _BRANDS}
    return 'AVIF' if 'AVIF' in found else 'HEIF' if found else None
  return next((kind for magic, kind in _MAGIC.items() if head.startswith(magic)), None)


def not_read(kind: str) -> str | None:
  """Why a kind of picture is not read here, with the way on; None if it is."""
  if kind in _READ or kind in _installed():
    return None
  if kind == 'HEIF':
    return 'HEIC, which is read after `pip install pillow-heif`'
  if kind == 'AVIF':
    return 'AVIF, which is read after `pip install "pillow>=11.3"`'
  return f'{kind}, which is not read; convert it to PNG'


def refusal(name: str, size: int, head: Callable[[], bytes]) -> tuple[str, bool] | None:
  """Why a file is not read as a picture, and whether it may be one; None if it is read.

  Args:
    name: its name.
    size: its bytes.
    head: gives its first `HEAD` bytes; called only if the name does not settle it.
  """
  lower = name.lower()
  if kind := next((kind for end, kind in _NOT_READ.items() if lower.endswith(end)), None):
    return not_read(kind), True
  if not lower.endswith(SUFFIXES) or lower.endswith(_MODERN):
    kind = by_content(head())
    if kind is None:
      named = lower.endswith(_MODERN)
      return ('named as a picture, but none by its content' if named else 'no picture'), named
    if reason := not_read(kind):
      return reason, True
  return (reason, True) if (reason := too_large(size)) else None


def too_large(size: int) -> str | None:
  """Why a file of this many bytes is not read; None if it is."""
  return f'{size} bytes, more than {MAX_BYTES}' if size > MAX_BYTES else None


@functools.cache
def _installed() -> frozenset[str]:
  found = {'AVIF'} if 'avif' in features.modules and features.check('avif') else set()
  return frozenset(found | ({'HEIF'} if importlib.util.find_spec('pillow_heif') else set()))
