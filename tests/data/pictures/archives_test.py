"""Archives: everything is read in place, and none that is damaged or cut off passes for whole."""

import bz2
import gzip
import io
import lzma
import os
import pickle
import stat
import struct
import tarfile
import zipfile

from helpers import malformed
import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import archives, base

FILES = {f'{c}/{k}.png': bytes([65 + k]) * (300 * k) for c in 'ab' for k in range(4)}
MAKE = {'tar': malformed.tar_bytes, 'zip': malformed.zip_bytes}
OPEN = {'tar': archives.open_tar, 'zip': archives.open_zip}


def write(tmp_path, data, name='x.tar'):
  path = tmp_path / name
  path.write_bytes(data)
  return path


def without_end(files):
  """A tar up to its end mark."""
  return malformed.tar_bytes(files)[: sum(512 - len(data) // -512 * 512 for data in files.values())]


@pytest.mark.parametrize('form', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_and_long_names(tmp_path, form):
  name = f'{"c" * 60}/{"d" * 60}/{"e" * 40}.png'
  files = {**FILES, name: b'long'}
  collection = archives.open_tar(write(tmp_path, malformed.tar_bytes(files, format=form)))
  found = {n: collection.read(i) for i, n in enumerate(collection.listing.names)}
  assert found == files


def test_what_is_no_plain_file_in_a_tar_is_skipped_by_name(tmp_path):
  kinds = {
    'a/0.png': tarfile.SYMTYPE,
    'a/1.png': tarfile.LNKTYPE,
    'a/2.png': tarfile.FIFOTYPE,
    'a/3.png': tarfile.DIRTYPE,
    '../a/up.png': tarfile.REGTYPE,
    '/abs/a.png': tarfile.REGTYPE,
  }
  start = b''
  for name, kind in kinds.items():
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, 'a/1.png'
    start += member.tobuf()
  member = tarfile.TarInfo('a/huge.png')
  member.size = 2**30 + 1
  path = write(tmp_path, start + member.tobuf())
  os.truncate(path, path.stat().st_size + 2**30 + 512 + 1024)  # The rest is a hole.
  listing = archives.open_tar(path, ('a', 'abs')).listing
  assert {s.name: s.reason for s in listing.skipped} == {
    'a/0.png': 'a link to a/1.png',
    'a/1.png': 'a link to a/1.png',
    'a/2.png': 'neither a file nor a folder',
    'a/3.png/': 'an empty folder',
    '../a/up.png': 'its name leaves the archive',
    'a/huge.png': '1073741825 bytes, more than 1073741824',
  }
  assert list(listing.names) == ['abs/a.png']


def test_a_tar_that_is_cut_off_or_damaged_anywhere_is_refused(tmp_path):
  """`tarfile` alone would take a damaged header for the end, and list what is before it."""
  whole = malformed.tar_bytes(FILES)
  cut = [whole[:n] for n in range(0, len(without_end(FILES)) + 512, 256)]
  for data in (*cut, *(whole.replace(name.encode(), b'X', 1) for name in FILES), whole + whole):
    with pytest.raises(types.UserError, match=r'x\.tar is no tar, or is damaged or cut off: '):
      archives.open_tar(write(tmp_path, data))


def test_a_negative_size_does_not_run_for_ever(tmp_path):
  """`tarfile` alone would read the same header again and again."""
  header = bytearray(tarfile.TarInfo('a/1.png').tobuf(format=tarfile.GNU_FORMAT))
  header[124:136] = b'\xff' * 10 + b'\xfe\x00'  # -512
  header[148:156] = b' ' * 8
  header[148:156] = b'%06o\0 ' % sum(header)
  before = tarfile.TarInfo('a/0.png').tobuf()
  with pytest.raises(types.UserError, match=r'(a negative size|no header) at byte \d+'):
    archives.open_tar(write(tmp_path, before + bytes(header) + bytes(1024)))


@pytest.mark.parametrize(
  'program,compress', [('gzip', gzip.compress), ('xz', lzma.compress), ('bzip2', bz2.compress)]
)
def test_compressed_tars_are_refused_whatever_their_name(tmp_path, program, compress):
  packed = compress(malformed.tar_bytes(FILES))
  with pytest.raises(types.UserError, match=f'compressed by {program}.*{program} --decompress'):
    archives.open_tar(write(tmp_path, packed))
  inside = malformed.tar_bytes({'n00000001.tar': packed})
  with pytest.raises(types.UserError, match=f'n00000001.tar is compressed by {program}'):
    archives.open_tar(write(tmp_path, inside))


def test_a_tar_in_a_tar_is_as_strict(tmp_path):
  inner = malformed.tar_bytes({'1.png': b'1', '2.png': b'2'})
  files = {'a.tar': inner, 'b.tar': inner, '._c.tar': b'hidden'}
  sound = malformed.tar_bytes(files)
  collection = archives.open_tar(write(tmp_path, sound))
  assert list(collection.listing.names) == ['a/1.png', 'a/2.png', 'b/1.png', 'b/2.png']
  assert [collection.read(i) for i in range(4)] == [b'1', b'2'] * 2
  assert [s.name for s in collection.listing.skipped] == ['._c.tar']
  for data in (
    malformed.tar_bytes({**files, 'b.tar': inner[:1200]}),
    sound[: 2 * 512 + len(inner)],
  ):
    with pytest.raises(types.UserError, match='damaged or cut off'):
      archives.open_tar(write(tmp_path, data))
  empty = malformed.tar_bytes({'a.tar': inner, 'b.tar': malformed.tar_bytes({})})
  with pytest.raises(types.UserError, match="nothing in 'b' can be listed .an empty folder"):
    archives.open_tar(write(tmp_path, empty))


def test_a_zip_that_is_cut_off_anywhere_is_refused(tmp_path):
  whole = malformed.zip_bytes(FILES)
  for data in (*(whole[:n] for n in range(0, len(whole), 61)), whole[100:]):
    with pytest.raises(types.UserError, match=r'x\.zip is no zip, or is damaged or cut off: '):
      archives.open_zip(write(tmp_path, data, 'x.zip'))


def test_a_damaged_directory_of_a_zip_is_refused_or_its_picture_bad(tmp_path):
  whole = malformed.zip_bytes(FILES)
  for position in range(whole.index(b'PK\x01\x02'), len(whole), 7):
    data = bytearray(whole)
    data[position] ^= 0xFF
    try:
      collection = archives.open_zip(write(tmp_path, bytes(data), 'x.zip'))
    except types.UserError:
      continue
    listed = len(collection.listing) + len(collection.listing.skipped)
    assert listed == len(FILES), position
    for i, name in enumerate(collection.listing.names):
      try:
        # A changed name cannot be seen; the bytes are somebody's.
        assert collection.read(i) in FILES.values(), (position, name)
      except base.BadPicture as error:
        assert 'archive' in str(error)


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_bytes_in_a_zip_make_a_bad_picture(tmp_path, method):
  files = {'a/0.png': b'first', 'a/1.png': b'x' * 999, 'a/2.png': b'last'}
  whole = malformed.zip_bytes(files, method)
  start = whole.index(b'a/1.png')
  for position in (start - 30, start + len('a/1.png'), start + len('a/1.png') + 5):
    data = bytearray(whole)
    data[position] ^= 0x55
    collection = archives.open_zip(write(tmp_path, bytes(data), 'x.zip'))
    with pytest.raises(base.BadPicture, match='archive'):
      collection.read(1)
    assert (collection.read(0), collection.read(2)) == (b'first', b'last')


def test_what_a_zip_cannot_give_is_skipped_by_name(tmp_path):
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, 'w') as archive:
    link = zipfile.ZipInfo('a/link.png')
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    archive.writestr(link, 'fine.png')
    for name in ('a/secret.png', 'a/fine.png', 'a/huge.png', '../up.png', 'empty/'):
      archive.writestr(name, b'')
    archive.writestr('a/packed.png', b'1', zipfile.ZIP_BZIP2)
  data = bytearray(buffer.getvalue())
  entry = data.rindex(b'PK\x01\x02', 0, data.rindex(b'a/secret.png'))
  data[entry + 8] |= 1
  entry = data.rindex(b'PK\x01\x02', 0, data.rindex(b'a/huge.png'))
  struct.pack_into('<I', data, entry + 24, 2**31)
  listing = archives.open_zip(write(tmp_path, bytes(data), 'x.zip'), ('a', 'empty')).listing
  assert list(listing.names) == ['a/fine.png']
  assert {s.name: s.reason for s in listing.skipped} == {
    'a/link.png': 'a link',
    'a/secret.png': 'encrypted',
    'empty/': 'an empty folder',
    'a/huge.png': '2147483648 bytes, more than 1073741824',
    '../up.png': 'its name leaves the archive',
    'a/packed.png': 'compressed by method 12, expected stored or deflated',
  }


def with_root(files):
  """A tar as `tar -C DIR -cf x.tar .` makes it: './' itself, and an entry for each folder."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as archive:
    for name in ('./', *sorted({f'./{name.partition("/")[0]}/' for name in files})):
      folder = tarfile.TarInfo(name)
      folder.type = tarfile.DIRTYPE
      archive.addfile(folder)
    for name, data in files.items():
      member = tarfile.TarInfo(f'./{name}')
      member.size = len(data)
      archive.addfile(member, io.BytesIO(data))
  return buffer.getvalue()


def of_windows(files):
  """A zip as older programs of Windows make it: backslashes, also at the end of folders."""
  turned = {name.replace('/', '\\'): data for name, data in files.items()}
  return malformed.zip_bytes({'a\\': b'', 'b\\': b''} | turned)


def of_macos(files):
  """A zip as macOS makes it: AppleDouble files of each in a folder of its own."""
  return malformed.zip_bytes(files | {f'__MACOSX/{n}': b'x' for n in files} | {'a/._0.png': b'x'})


@pytest.mark.parametrize(
  'kind,data',
  [
    ('tar', with_root(FILES)),
    ('tar', malformed.tar_bytes({name.replace('/', '\\'): data for name, data in FILES.items()})),
    ('tar', malformed.tar_bytes({f'./._{n}': b'x' for n in 'ab'} | FILES | {'a/._0.png': b'x'})),
    ('zip', of_windows(FILES)),
    ('zip', of_macos(FILES)),
    ('zip', malformed.zip_bytes({f'./{name}': data for name, data in FILES.items()})),
  ],
)
def test_archives_as_the_tools_of_every_system_make_them(tmp_path, kind, data):
  collection = OPEN[kind](write(tmp_path, data, f'x.{kind}'))
  assert {n: collection.read(i) for i, n in enumerate(collection.listing.names)} == FILES
  assert collection.listing.label_names == ('a', 'b')
  assert not any(s.bad for s in collection.listing.skipped)


@pytest.mark.parametrize('written,read', [('été', 'été'), ('日本', '日本'), ('\x82t\x82', 'été')])
def test_names_in_a_zip_are_utf_8_or_code_page_437(tmp_path, written, read):
  """macOS writes UTF-8 without saying so, and DOS wrote its own code page."""
  raw = written.encode('latin-1' if written[0] < '\xa0' else 'utf-8')
  data = malformed.zip_bytes({'x' * len(raw) + '/1.png': b'1'}).replace(b'x' * len(raw), raw)
  assert archives.open_zip(write(tmp_path, data, 'x.zip')).listing.label_names == (read,)
  said = malformed.zip_bytes({f'{read}/1.png': b'1'})  # The flag says UTF-8.
  assert archives.open_zip(write(tmp_path, said, 'x.zip')).listing.label_names == (read,)


@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_a_path_may_go_on_in_the_archive(tmp_path, kind):
  files = {f'{split}/{name}': data for split in ('train', 'test') for name, data in FILES.items()}
  path = write(tmp_path, MAKE[kind](files), f'x.{kind}')
  collection = OPEN[kind](f'{path}//train/./')
  assert list(collection.listing.names) == sorted(FILES) and not collection.listing.skipped
  with pytest.raises(types.UserError, match="no folder 'tran'; did you mean 'train'"):
    OPEN[kind](f'{path}/tran')


@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_an_archive_that_changed_is_refused_where_it_is_opened_again(tmp_path, kind):
  path = write(tmp_path, MAKE[kind](FILES), f'x.{kind}')
  collection = OPEN[kind](path)
  pickled = pickle.dumps(collection)
  collection.read(0)
  assert pickle.dumps(collection) == pickled  # No open file travels.
  assert pickle.loads(pickled).read(1) == FILES['a/1.png']
  os.utime(path, ns=(1, 1))
  with pytest.raises(types.UserError, match='has changed since'):
    pickle.loads(pickled).read(1)
  path.unlink()
  with pytest.raises(types.UserError, match='cannot be read: No such file'):
    pickle.loads(pickled).read(1)
