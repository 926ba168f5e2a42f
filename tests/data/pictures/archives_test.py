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

pytestmark = pytest.mark.filterwarnings('error')
FILES = {f'{c}/{k}.png': bytes([65 + k]) * (300 * k) for c in 'ab' for k in range(4)}


def write(tmp_path, data, name='x.tar'):
  path = tmp_path / name
  path.write_bytes(data)
  return path


def open_ended(files):
  """A tar up to its end mark, and the end of each member."""
  ends, position = [], 0
  for name, data in files.items():
    position += 512 + -(-len(data) // 512) * 512
    ends.append((position, name))
  return malformed.tar_bytes(files)[:position], ends


def special(kind, name='a/s.png', linkname='a/1.png'):
  member = tarfile.TarInfo(name)
  member.type, member.linkname = kind, linkname
  return member


@pytest.mark.parametrize('form', [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_tar_format_and_long_names(tmp_path, form):
  name = f'{"c" * 60}/{"d" * 60}/{"e" * 40}.png'
  files = {**FILES, name: b'long'}
  collection = archives.open_tar(write(tmp_path, malformed.tar_bytes(files, format=form)))
  found = {n: collection.read(i) for i, n in enumerate(collection.listing.names)}
  assert found == files


def test_what_is_no_plain_file_is_skipped_by_name(tmp_path):
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w') as archive:
    for k, kind in enumerate(
      (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b'?')
    ):
      archive.addfile(special(kind, f'a/{k}.png'))
    archive.addfile(special(tarfile.REGTYPE, '../a/up.png'))
    archive.addfile(special(tarfile.REGTYPE, '/abs/a.png'))
  listing = archives.open_tar(write(tmp_path, buffer.getvalue()), ('a', 'abs')).listing
  odd = 'neither a file nor a folder'
  assert {s.name: s.reason for s in listing.skipped} == {
    'a/0.png': 'a link to a/1.png',
    'a/1.png': 'a link to a/1.png',
    'a/2.png': odd,
    'a/3.png': odd,
    'a/4.png/': 'an empty folder',
    'a/5.png': odd,
    '../a/up.png': 'its name leaves the archive',
  }
  assert list(listing.names) == ['abs/a.png']


def test_absurd_sizes_are_skipped(tmp_path):
  """More than a GiB, which is really there: as a hole."""
  start, _ = open_ended(FILES)
  member = tarfile.TarInfo('a/huge.png')
  member.size = 2**30 + 1
  path = write(tmp_path, start + member.tobuf())
  os.truncate(path, len(start) + 512 + 2**30 + 512 + 1024)
  listing = archives.open_tar(path).listing
  assert len(listing) == len(FILES)
  assert [(s.name, s.reason[:10]) for s in listing.skipped] == [('a/huge.png', '1073741825')]


def test_a_tar_cut_off_anywhere_is_refused_and_its_last_good_member_named(tmp_path):
  whole = malformed.tar_bytes(FILES)
  (_, ends), position = open_ended(FILES), len(open_ended(FILES)[0])
  for n in range(0, position + 512, 128):
    good = [name for end, name in ends if end <= n]
    with pytest.raises(types.UserError, match='damaged or cut off') as caught:
      archives.open_tar(write(tmp_path, whole[:n]))
    said = f"the last good member is '{good[-1]}'" if good else 'no member is good'
    assert 'x.tar' in str(caught.value) and said in str(caught.value), n
  assert len(archives.open_tar(write(tmp_path, whole[: position + 512])).listing) == len(FILES)


def test_a_damaged_header_does_not_pass_for_the_end(tmp_path):
  """`tarfile` alone would list the members before it and no more."""
  whole = malformed.tar_bytes(FILES)
  for name in FILES:
    position = whole.index(name.encode())
    data = bytearray(whole)
    data[position] ^= 0x20
    with pytest.raises(types.UserError, match='damaged or cut off'):
      archives.open_tar(write(tmp_path, bytes(data)))


def test_two_tars_one_after_the_other_are_refused(tmp_path):
  data = malformed.tar_bytes(FILES)
  with pytest.raises(types.UserError, match='after its end mark .* something else'):
    archives.open_tar(write(tmp_path, data + data))


def test_a_negative_size_does_not_run_for_ever(tmp_path):
  """An older `tarfile` would read the same header again and again; a newer one stops there."""
  header = bytearray(tarfile.TarInfo('a/1.png').tobuf(format=tarfile.GNU_FORMAT))
  header[124:136] = b'\xff' * 10 + b'\xfe\x00'  # -512
  header[148:156] = b' ' * 8
  header[148:156] = b'%06o\0 ' % sum(header)
  before = tarfile.TarInfo('a/0.png').tobuf()
  problem = "(a negative size|no header at byte 512); the last good member is 'a/0.png'"
  with pytest.raises(types.UserError, match=problem):
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
  sound = {'a.tar': inner, 'b.tar': inner, '._c.tar': b'hidden'}
  collection = archives.open_tar(write(tmp_path, malformed.tar_bytes(sound)))
  assert list(collection.listing.names) == ['a/1.png', 'a/2.png', 'b/1.png', 'b/2.png']
  assert [s.name for s in collection.listing.skipped] == ['._c.tar']
  cut = malformed.tar_bytes({'a.tar': inner, 'b.tar': inner[:1200]})
  with pytest.raises(types.UserError, match=r"b\.tar .*cut off.*last good member is '1.png'"):
    archives.open_tar(write(tmp_path, cut))


def test_an_empty_tar_in_a_tar_is_a_lost_class(tmp_path):
  files = {'a.tar': malformed.tar_bytes({'1.png': b'1'}), 'b.tar': malformed.tar_bytes({})}
  path = write(tmp_path, malformed.tar_bytes(files))
  with pytest.raises(types.UserError, match="nothing of 'b' can be listed .an empty folder"):
    archives.open_tar(path)
  listing = archives.open_tar(path, ('a', 'b')).listing
  assert [(s.name, s.reason) for s in listing.skipped] == [('b/', 'an empty folder')]


def test_duplicate_members_are_refused(tmp_path):
  with pytest.raises(types.UserError, match='two files for one key'):
    archives.open_tar(write(tmp_path, open_ended(FILES)[0] + malformed.tar_bytes(FILES)))


@pytest.mark.parametrize('method', [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_cut_off_anywhere_is_refused(tmp_path, method):
  whole = malformed.zip_bytes(FILES, method)
  with zipfile.ZipFile(io.BytesIO(whole)) as archive:
    starts = [(m.header_offset, m.filename) for m in archive.infolist()] + [
      (archive.start_dir, None)
    ]
  for n in range(0, len(whole), 61):
    good = [name for (_, name), (end, _) in zip(starts, starts[1:], strict=False) if end <= n]
    with pytest.raises(types.UserError, match='damaged or cut off') as caught:
      archives.open_zip(write(tmp_path, whole[:n], 'x.zip'))
    said = f"the last good member is '{good[-1]}'" if good else 'no member is known to be good'
    assert 'x.zip' in str(caught.value) and said in str(caught.value), n


def test_a_damaged_directory_of_a_zip_is_refused_or_its_picture_bad(tmp_path):
  whole = malformed.zip_bytes(FILES)
  start = whole.index(b'PK\x01\x02')
  for position in range(start, len(whole), 7):
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


@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_a_path_may_go_on_in_the_archive(tmp_path, kind):
  files = {f'{split}/{name}': data for split in ('train', 'test') for name, data in FILES.items()}
  make = malformed.tar_bytes if kind == 'tar' else malformed.zip_bytes
  opener = archives.open_tar if kind == 'tar' else archives.open_zip
  path = write(tmp_path, make(files), f'x.{kind}')
  collection = opener(f'{path}//train/./')
  assert list(collection.listing.names) == sorted(FILES) and not collection.listing.skipped
  with pytest.raises(types.UserError, match="no folder 'tran'; did you mean 'train'"):
    opener(f'{path}/tran')
  with pytest.raises(types.UserError, match='holds the splits test, train'):
    opener(path)
  with pytest.raises(types.UserError, match='no such file; found nothing'):
    opener(tmp_path / 'none.tar')
  with pytest.raises(types.UserError, match='no such file; found a folder'):
    opener(tmp_path)


@pytest.mark.parametrize('kind', ['tar', 'zip'])
def test_an_archive_that_changed_is_refused_where_it_is_opened_again(tmp_path, kind):
  make = malformed.tar_bytes if kind == 'tar' else malformed.zip_bytes
  opener = archives.open_tar if kind == 'tar' else archives.open_zip
  path = write(tmp_path, make(FILES), f'x.{kind}')
  pickled = pickle.dumps(opener(path))
  assert pickle.loads(pickled).read(1) == FILES['a/1.png']
  os.utime(path, ns=(1, 1))
  with pytest.raises(types.UserError, match='has changed since'):
    pickle.loads(pickled).read(1)
  path.unlink()
  with pytest.raises(types.UserError, match='cannot be read: No such file'):
    pickle.loads(pickled).read(1)


def test_no_open_file_travels(tmp_path):
  collection = archives.open_tar(write(tmp_path, malformed.tar_bytes(FILES)))
  before = pickle.dumps(collection)
  collection.read(0)
  assert pickle.dumps(collection) == before
