"""Some hundred damaged, odd and hostile files, always the same ones, and a tree of sound pictures.

A case says how it may end: 'picture', 'bad' (a `BadPicture`), 'skipped' (not listed).
"""

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

FORMATS = ('JPEG', 'PNG', 'WEBP', 'GIF', 'TIFF', 'BMP', 'PPM')
SUFFIX = {
  'JPEG': '.jpg',
  'PNG': '.png',
  'WEBP': '.webp',
  'GIF': '.gif',
  'TIFF': '.tif',
  'BMP': '.bmp',
  'PPM': '.ppm',
}
_MAGIC = {
  'JPEG': b'\xff\xd8\xff\xe0',
  'PNG': b'\x89PNG\r\n\x1a\n',
  'WEBP': b'RIFF\x40\0\0\0WEBPVP8 ',
  'GIF': b'GIF89a',
  'TIFF': b'II*\0\x08\0\0\0',
  'BMP': b'BM',
  'PPM': b'P6 4 4 255\n',
}
_EITHER = ('picture', 'bad')


@dataclasses.dataclass(frozen=True)
class Case:
  """name: of the file, with its suffix. may: how it may end."""

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
  makers = (
    _truncated,
    _flipped,
    _garbage,
    _renamed,
    _huge,
    _empty,
    _modes,
    _animated,
    _metadata,
    _nested,
    _named,
  )
  return [case for make in makers for case in make()]


def _truncated():
  for kind in FORMATS:
    whole = sound(kind)
    for k in range(12):
      # The middle of a file is gone for certain; the last bytes may be padding.
      n = 1 + len(whole) * k // 12
      may = ('bad',) if k < 11 else _EITHER
      yield Case('truncated', f'{kind}_{k}{SUFFIX[kind]}', whole[:n], may)
    for n in (1, 2):
      yield Case('truncated', f'{kind}_end_{n}{SUFFIX[kind]}', whole[:-n], _EITHER)


def _flipped():
  for kind in FORMATS:
    whole = sound(kind)
    for seed in range(12):
      source = random.Random(f'{kind} {seed}')
      data = bytearray(whole)
      for _ in range(1 + seed):
        # Every other case hits the headers.
        data[source.randrange(len(data) if seed % 2 else 60)] ^= 1 << source.randrange(8)
      yield Case('flipped', f'{kind}_{seed}{SUFFIX[kind]}', bytes(data), _EITHER)


def _garbage():
  for kind in FORMATS:
    for seed in range(4):
      data = random.Random(f'garbage {kind} {seed}').randbytes(20 * 10**seed)
      yield Case('garbage', f'{kind}_{seed}{SUFFIX[kind]}', _MAGIC[kind] + data, _EITHER)
    yield Case('garbage', f'{kind}_magic{SUFFIX[kind]}', _MAGIC[kind], ('bad',))
    yield Case('garbage', f'{kind}_zeros{SUFFIX[kind]}', bytes(3000), ('bad',))
    yield Case('garbage', f'{kind}_void{SUFFIX[kind]}', b'', ('bad',))
  for k, text in enumerate((b'hello', b'<html>404</html>', b'{"error": 403}', b'\n', b'\0' * 7)):
    yield Case('garbage', f'text_{k}.jpg', text, ('bad',))


def _renamed():
  for k, kind in enumerate(FORMATS):
    other = SUFFIX[FORMATS[k - 1]]
    yield Case('renamed', f'{kind}_as{other}', sound(kind), ('picture',))
    yield Case('renamed', f'{kind}.txt', sound(kind), ('skipped',))
    yield Case('renamed', f'{kind}_without', sound(kind), ('skipped',))
    yield Case('renamed', f'{kind}.twice{SUFFIX[kind]}.bak', sound(kind), ('skipped',))


def _huge():
  for side in (12000, 40000, 65535):
    jpeg, gif = bytearray(sound('JPEG')), bytearray(sound('GIF'))
    struct.pack_into('>HH', jpeg, jpeg.index(b'\xff\xc0') + 5, side, side)
    struct.pack_into('<HH', gif, 6, side, side)
    yield Case('huge', f'jpeg_{side}.jpg', bytes(jpeg), ('bad',))
    yield Case('huge', f'gif_{side}.gif', bytes(gif), ('bad',))
  for side in (12000, 10**5, 2**31 - 1):
    png, bmp = sound('PNG'), bytearray(sound('BMP'))
    header = b'IHDR' + struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0)
    png = png[:12] + header + struct.pack('>I', zlib.crc32(header)) + png[33:]
    struct.pack_into('<ii', bmp, 18, side, side)
    yield Case('huge', f'png_{side}.png', png, ('bad',))
    yield Case('huge', f'bmp_{side}.bmp', bytes(bmp), ('bad',))
    yield Case('huge', f'ppm_{side}.ppm', b'P6 %d %d 255\n' % (side, side) + bytes(99), ('bad',))
    yield Case('huge', f'tiff_{side}.tif', tiff(side, side, bytes(99)), ('bad',))
  for side in (12000, 16383, 2**24):
    size = struct.pack('<I', side - 1)[:3] * 2
    webp = b'RIFF' + struct.pack('<I', 30) + b'WEBPVP8X' + struct.pack('<II', 10, 0) + size
    yield Case('huge', f'webp_{side}.webp', webp + bytes(40), ('bad',))
  yield Case('huge', 'narrow.png', encode(Image.new('L', (1, 10**6)), 'PNG'), ('bad',))


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


def _empty():
  jpeg, gif, bmp = (bytearray(sound(kind)) for kind in ('JPEG', 'GIF', 'BMP'))
  struct.pack_into('>HH', jpeg, jpeg.index(b'\xff\xc0') + 5, 0, 0)
  struct.pack_into('<HH', gif, 6, 0, 0)
  struct.pack_into('<ii', bmp, 18, 0, 0)
  header = b'IHDR' + struct.pack('>IIBBBBB', 0, 0, 8, 2, 0, 0, 0)
  png = sound('PNG')[:12] + header + struct.pack('>I', zlib.crc32(header)) + sound('PNG')[33:]
  files = {
    'jpg': bytes(jpeg),
    'bmp': bytes(bmp),
    'png': png,
    'ppm': b'P6 0 0 255\n',
    'tif': tiff(0, 0, b''),
  }
  for suffix, data in files.items():
    yield Case('empty', f'sides.{suffix}', data, ('bad',))
  yield Case('empty', 'sides.gif', bytes(gif), _EITHER)  # Its frame may be larger.


def _modes():
  grey16 = Image.fromarray(np.arange(480, dtype=np.uint16).reshape(20, 24) * 136)
  fine = {
    'grey.png': encode(noise(24, 20, 'L')),
    'grey.jpg': encode(noise(24, 20, 'L'), 'JPEG'),
    'bit.png': encode(noise(24, 20, 'L').convert('1')),
    'alpha.png': encode(noise(24, 20, 'RGBA')),
    'grey_alpha.png': encode(noise(24, 20, 'RGBA').convert('LA')),
    'palette.png': encode(noise(24, 20).quantize(9)),
    'palette_alpha.png': encode(noise(24, 20).quantize(4), transparency=b'\0\x40\x80'),
    'palette_key.gif': encode(noise(24, 20).quantize(4), 'GIF', transparency=2),
    'cmyk.jpg': encode(noise(24, 20, 'CMYK'), 'JPEG'),
    'cmyk.tif': encode(noise(24, 20, 'CMYK'), 'TIFF'),
    'ycbcr.tif': encode(noise(24, 20).convert('YCbCr'), 'TIFF'),
    'lzw.tif': encode(noise(24, 20).convert('YCbCr'), 'TIFF', compression='tiff_lzw'),
    'grey16.png': encode(grey16),
    'grey16.tif': encode(grey16, 'TIFF'),
    'grey16.pgm': encode(grey16, 'PPM'),
    'bits.pbm': encode(noise(24, 20, 'L').convert('1'), 'PPM'),
    'plain.ppm': b'P3 2 2 255 ' + b'7 ' * 12,
    'comment.ppm': b'P6 # a\n2 2 255\n' + bytes(12),
    'progressive.jpg': encode(noise(24, 20), 'JPEG', progressive=True),
    'lossy.webp': encode(noise(24, 20), 'WEBP'),
    'one.png': encode(noise(1, 1)),
    'alpha.webp': encode(noise(24, 20, 'RGBA'), 'WEBP'),
  }
  levels = np.arange(480).reshape(20, 24)
  bad = {
    'integers.tif': encode(Image.fromarray(levels.astype(np.int32)), 'TIFF'),
    'floats.tif': encode(Image.fromarray(levels.astype(np.float32)), 'TIFF'),
    'floats.ppm': b'Pf 2 2 -1.0\n' + bytes(16),
    'signed.tif': tiff(2, 2, bytes(8), {258: (3, 16), 339: (3, 2)}.items()),
    'bits.tif': tiff(2, 2, bytes(99), {258: (3, 7)}.items()),
    'vector.png': b'<svg></svg>',
    'other.png': encode(noise(8, 8), 'TGA'),
    'icon.png': encode(noise(16, 16), 'ICO'),
    'script.jpg': b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n',
  }
  for files, may in ((fine, ('picture',)), (bad, ('bad',))):
    for name, data in files.items():
      yield Case('modes', name, data, may)


def _animated():
  frames = [noise(24, 20, seed=k) for k in range(3)]
  for kind, name in (('GIF', 'gif'), ('WEBP', 'webp'), ('PNG', 'png'), ('TIFF', 'tif')):
    for n in (2, 3):
      data = encode(frames[0], kind, save_all=True, append_images=frames[1:n])
      yield Case('animated', f'{n}.{name}', data, ('bad',))
      yield Case('animated', f'{n}_cut.{name}', data[: len(data) * 2 // 3], ('bad',))
    data = encode(frames[0], kind, save_all=True)
    yield Case('animated', f'1.{name}', data, ('picture',))


def exif(value, kind=3):
  """An EXIF block whose only entry is the orientation."""
  packed = struct.pack('<HxxI' if kind == 3 else '<II', value, 0)
  return b'Exif\0\0II*\0\x08\0\0\0\x01\0' + struct.pack('<HHI', 0x112, kind, 1) + packed


def _metadata():
  image = noise(24, 20)
  blocks = {f'orientation_{k}': exif(k) for k in range(12)}
  blocks |= {
    'long': exif(6, 4),
    'cut': exif(6)[:20],
    'random': b'Exif\0\0' + random.Random(1).randbytes(90),
    'empty': b'Exif\0\0',
    'loop': b'Exif\0\0II*\0\x08\0\0\0\0\0\x08\0\0\0',
    'far': b'Exif\0\0II*\0\xff\xff\xff\x7f',
    'many': b'Exif\0\0MM\0*\0\0\0\x08\xff\xff' + bytes(40),
    'offset': b'Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\x7f\xff\xff\xff\x7f' * 2,
  }
  for name, block in blocks.items():
    yield Case('metadata', f'{name}.jpg', encode(image, 'JPEG', exif=block), ('picture',))
  for name in ('orientation_6', 'random', 'far', 'cut'):
    for kind in ('PNG', 'WEBP'):
      data = encode(image, kind, exif=blocks[name])
      yield Case('metadata', f'{name}{SUFFIX[kind]}', data, _EITHER)
  yield Case('metadata', 'profile.jpg', encode(image, 'JPEG', icc_profile=b'?' * 99), ('picture',))
  png = encode(image)
  chunks = {
    'bomb': b'zTXtk\0\0' + zlib.compress(bytes(10**8 // 2)),
    'text': b'tEXt' + b'\xff' * 50,
    'profile': b'iCCPx\0\0' + zlib.compress(b'?'),
    'profile_bad': b'iCCPx\0\0zzzz',
    'gamma': b'gAMA\0',
    'key': b'tRNS\0\0',
    'unknown': b'quUx' + bytes(9),
    'frames': b'acTL\0',
    'size': b'IHDR' + bytes(13),
  }
  for name, chunk in chunks.items():
    packed = struct.pack('>I', len(chunk) - 4) + chunk + struct.pack('>I', zlib.crc32(chunk))
    yield Case('metadata', f'{name}.png', png[:33] + packed + png[33:], _EITHER)


def _nested():
  jpeg, png = sound('JPEG'), sound('PNG')
  packed, tarred = io.BytesIO(), io.BytesIO()
  with zipfile.ZipFile(packed, 'w') as archive:
    archive.writestr('a.png', png)
  with tarfile.open(fileobj=tarred, mode='w') as archive:
    archive.addfile(tarfile.TarInfo('a.png'))
  files = {
    'zip.png': packed.getvalue(),
    'tar.png': tarred.getvalue(),
    'gzip.jpg': gzip.compress(jpeg),
    'before.jpg': b'\n' + jpeg,
    'bom.png': b'\xef\xbb\xbf' + png,
    'hex.jpg': jpeg.hex().encode(),
    'text.png': png.replace(b'\r\n', b'\n'),
    'html.jpg': b'<html>' + jpeg,
    'pdf.jpg': b'%PDF-1.4\n' + jpeg,
    'only_end.jpg': b'\xff\xd8\xff\xd9',
    'chunks.png': png[:8] + b'\0\0\0\0IEND\xaeB`\x82',
  }
  for name, data in files.items():
    yield Case('nested', name, data, ('bad',))
  behind = {'twice.jpg': jpeg * 2, 'png.jpg': jpeg + png, 'zeros.jpg': jpeg + bytes(10**5)}
  for name, data in {**behind, 'jpg.png': png + jpeg}.items():
    yield Case('nested', name, data, ('picture',))


def _named():
  """What is left out or taken for its name alone."""
  png = sound('PNG')
  for name in (
    '.hidden.png',
    '._a.png',
    '.DS_Store',
    'Thumbs.db',
    'a.png.txt',
    'png',
    'a.png~',
    '.cache/a.png',
    '__MACOSX/a.png',
    'a.svg',
    'a.heic',
    'notes.md',
  ):
    yield Case('named', name, png, ('skipped',))
  for name in (
    'A.PNG',
    'b.JpEg',
    'c d.png',
    'é.png',
    '日本.png',
    'e.f.g.png',
    'q\'"&.png',
    'deep/er/a.png',
    'h' * 90 + '.png',
    'n01440764_1.JPEG',
    '-.png',
  ):
    yield Case('named', name, png, ('picture',))


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
  """Files below a folder, which is made."""
  for name, data in files.items():
    path = pathlib.Path(root) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
  return pathlib.Path(root)


def tar_bytes(files, **options):
  """A tar of files; names in their order."""
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
