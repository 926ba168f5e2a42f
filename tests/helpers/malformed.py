"""Damaged, odd and hostile files, always the same ones, and a tree of sound pictures."""

import dataclasses
import gzip
import io
import pathlib
import random
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image

SUFFIX = {
  'JPEG': '.jpg',
  'PNG': '.png',
  'WEBP': '.webp',
  'GIF': '.gif',
  'TIFF': '.tif',
  'BMP': '.bmp',
  'PPM': '.ppm',
}
_EITHER = ('picture', 'bad')


@dataclasses.dataclass(frozen=True)
class Case:
  """A file and how it may end: as a 'picture', as 'bad' (a `BadPicture`), or 'skipped'.

  name: name of the file, with its suffix.
  """

  kind: str
  name: str
  data: bytes
  may: tuple[str, ...]


def noise(width, height, mode='RGB', seed=0):
  """An image that does not compress."""
  return Image.frombytes(
    mode, (width, height), np.random.default_rng(seed).bytes(width * height * len(mode))
  )


def encode(image, kind='PNG', **options):
  """The bytes of a file."""
  buffer = io.BytesIO()
  image.save(buffer, kind, **options)
  return buffer.getvalue()


def sound(kind):
  """A sound picture of a format."""
  return encode(noise(24, 20), kind, **({'lossless': True} if kind == 'WEBP' else {}))


def cases():
  """All of them."""
  for kind, suffix in SUFFIX.items():
    yield from _of_format(kind, suffix)
  for files, may in (
    (_pictures(), ('picture',)),
    (_bad(), ('bad',)),
    (dict.fromkeys(('.a.png', '.cache/a.png', '__MACOSX/a.png', 'a.svg'), b''), ('skipped',)),
  ):
    for name, data in files.items():
      yield Case('odd', name, data, may)


def _of_format(kind, suffix):
  whole = sound(kind)
  yield Case('renamed', f'{kind}.png', whole, ('picture',))
  if kind not in ('TIFF', 'PPM'):  # Which are known by their names alone.
    yield Case('renamed', f'{kind}.txt', whole, ('picture',))
  for part in (0.1, 0.5, 0.9):
    yield Case('truncated', f'{part}{suffix}', whole[: int(len(whole) * part)], ('bad',))
  for seed in range(4):
    source, data = random.Random(f'{kind} {seed}'), bytearray(whole)
    for _ in range(1 + seed):
      # Every other case hits the headers.
      data[source.randrange(len(data) if seed % 2 else 60)] ^= 1 << source.randrange(8)
    yield Case('flipped', f'{seed}{suffix}', bytes(data), _EITHER)
  if kind in ('GIF', 'WEBP', 'PNG', 'TIFF'):
    more = {'save_all': True, 'append_images': [noise(24, 20, seed=1)]}
    yield Case('animated', f'2{suffix}', encode(noise(24, 20), kind, **more), ('bad',))


def _pictures():
  png = sound('PNG')
  return {
    'A.PNG': png,
    '日本 q\'"&.png': png,
    'deep/er/a.png': png,
    'palette_key.gif': encode(noise(24, 20).quantize(4), 'GIF', transparency=2),
    'lzw.tif': encode(noise(24, 20).convert('YCbCr'), 'TIFF', compression='tiff_lzw'),
    'plain.ppm': b'P3 2 2 255 ' + b'7 ' * 12,
    'progressive.jpg': encode(noise(24, 20), 'JPEG', progressive=True),
    'one.png': encode(noise(1, 1)),
    'behind.jpg': sound('JPEG') + png,
    'exif.jpg': encode(noise(24, 20), 'JPEG', exif=b'Exif\0\0' + random.Random(1).randbytes(90)),
  }


def _bad():
  jpeg, empty, bmp = (bytearray(sound(kind)) for kind in ('JPEG', 'JPEG', 'BMP'))
  struct.pack_into('>HH', jpeg, jpeg.index(b'\xff\xc0') + 5, 65535, 65535)
  struct.pack_into('>HH', empty, empty.index(b'\xff\xc0') + 5, 0, 0)
  struct.pack_into('<ii', bmp, 18, 10**5, 10**5)
  png, text = sound('PNG'), b'zTXtk\0\0' + zlib.compress(bytes(10**8 // 2))
  bomb = struct.pack('>I', len(text) - 4) + text + struct.pack('>I', zlib.crc32(text))
  levels = np.arange(480).reshape(20, 24)
  return {
    'huge.jpg': bytes(jpeg),
    'huge.bmp': bytes(bmp),
    'bomb.png': png[:33] + bomb + png[33:],
    'huge.ppm': b'P6 100000 100000 255\n' + bytes(99),
    'huge.tif': tiff(10**5, 10**5, bytes(99)),
    'narrow.png': encode(Image.new('L', (1, 10**6)), 'PNG'),
    'empty.jpg': bytes(empty),
    'zeros.jpg': bytes(3000),
    'void.jpg': b'',
    'html.jpg': b'<html>404</html>',
    'integers.tif': encode(Image.fromarray(levels.astype(np.int32)), 'TIFF'),
    'floats.tif': encode(Image.fromarray(levels.astype(np.float32)), 'TIFF'),
    'signed.tif': tiff(2, 2, bytes(8), {258: (3, 16), 339: (3, 2)}.items()),
    'icon.png': encode(noise(16, 16), 'ICO'),
    'zip.png': zip_bytes({'a.png': sound('PNG')}),
    'gzip.jpg': gzip.compress(sound('PNG')),
  }


def tiff(width, height, data, tags=()):
  """A TIFF of one strip, grey of 8 bits but for `tags`."""
  entries = {
    256: (4, width),
    257: (4, height),
    258: (3, 8),
    259: (3, 1),
    262: (3, 1),
    273: (4, 0),
    277: (3, 1),
    278: (4, height),
    279: (4, len(data)),
    **dict(tags),
  }
  start = 8 + 2 + 12 * len(entries) + 4
  entries[273] = (4, start)
  body = b''.join(
    struct.pack('<HHI', tag, kind, 1) + struct.pack('<I' if kind == 4 else '<Hxx', value)
    for tag, (kind, value) in sorted(entries.items())
  )
  return b'II*\0\x08\0\0\0' + struct.pack('<H', len(entries)) + body + bytes(4) + data


def exif(value):
  """An EXIF block whose only entry is the orientation."""
  packed = struct.pack('<HxxI', value, 0)
  return b'Exif\0\0II*\0\x08\0\0\0\x01\0' + struct.pack('<HHI', 0x112, 3, 1) + packed


def tree():
  """A sound tree of class folders, {name: bytes}: also one folder deeper, and two odd files."""
  return {
    'cat/a.png': sound('PNG'),
    'cat/b.jpg': sound('JPEG'),
    'cat/old/c.webp': sound('WEBP'),
    'dog/a.gif': sound('GIF'),
    'dog/z.bmp': sound('BMP'),
    'eel/été.tif': sound('TIFF'),
    'eel/notes.txt': b'none',
    'eel/.DS_Store': b'none',
  }


def write_folder(root, files):
  """Writes files below a folder, which is made."""
  for name, data in files.items():
    path = pathlib.Path(root) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return pathlib.Path(root)


def tar_bytes(files, **options):
  """A tar of files, in their order."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w', **options) as archive:
    for name, data in files.items():
      member = tarfile.TarInfo(name)
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return buffer.getvalue()


def zip_bytes(files, method=zipfile.ZIP_DEFLATED):
  """A zip of files."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w', method) as archive:
    for name, data in files.items():
      archive.writestr(name, data)
  return buffer.getvalue()
