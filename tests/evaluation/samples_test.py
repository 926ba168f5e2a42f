"""Files of samples: what ADM reads and writes, and the parts of an unfinished evaluation."""

import zipfile

import numpy as np
import pytest

from diversedit_jax.evaluation import samples
from diversedit_jax.types import UserError


@pytest.fixture
def images():
  return np.random.default_rng(0).integers(0, 256, (11, 4, 5, 3), np.uint8)


def in_batches(array, size):
  return [array[i : i + size] for i in range(0, len(array), size)]


def test_what_is_written_numpy_reads_as_adm_does(tmp_path, images):
  labels = np.arange(11)
  samples.write_npz(tmp_path / 'a.npz', images.shape, in_batches(images, 4), labels)
  with np.load(tmp_path / 'a.npz', allow_pickle=False) as found:
    assert sorted(found.files) == ['arr_0', 'arr_1']
    np.testing.assert_array_equal(found['arr_0'], images)
    np.testing.assert_array_equal(found['arr_1'], labels)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('size', [1, 4, 11, 20])
def test_batches_are_the_images_in_order(tmp_path, images, save, size):
  save(tmp_path / 'a.npz', images, np.arange(11))
  file = samples.SampleFile(tmp_path / 'a.npz')
  assert len(file) == 11 and file.image_shape == (4, 5, 3)
  for _ in range(2):
    found = list(file.batches(size))
    assert [len(x) for x in found[:-1]] == [size] * (len(found) - 1)
    np.testing.assert_array_equal(np.concatenate(found), images)


@pytest.mark.parametrize(
  ('arrays', 'found'),
  [
    ({'images': np.zeros((2, 4, 4, 3), np.uint8)}, 'no arr_0.*found images'),
    ({'arr_0': np.zeros((2, 4, 4, 3), np.float32)}, 'float32'),
    ({'arr_0': np.zeros((2, 3, 4, 4), np.uint8)}, r'\(2, 3, 4, 4\)'),
    ({'arr_0': np.array([{}], object)}, 'object'),
  ],
)
def test_other_arrays_are_refused(tmp_path, arrays, found):
  np.savez(tmp_path / 'a.npz', **arrays)
  with pytest.raises(UserError, match=found):
    samples.SampleFile(tmp_path / 'a.npz')


def test_no_file_another_file_and_a_cut_file_are_refused(tmp_path, images):
  with pytest.raises(UserError, match='there is no'):
    samples.SampleFile(tmp_path / 'a.npz')
  (tmp_path / 'b.npz').write_bytes(b'nothing')
  with pytest.raises(UserError, match=r'b\.npz cannot be read as an \.npz'):
    samples.SampleFile(tmp_path / 'b.npz')
  with zipfile.ZipFile(tmp_path / 'c.npz', 'w') as archive, archive.open('arr_0.npy', 'w') as file:
    header = {'descr': '|u1', 'fortran_order': False, 'shape': (11, 4, 5, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    file.write(images[:5].tobytes())
  with pytest.raises(UserError, match='ends after 4 of 11 images'):
    list(samples.SampleFile(tmp_path / 'c.npz').batches(4))
  np.savez(tmp_path / 'd.npz', images)
  data = bytearray((tmp_path / 'd.npz').read_bytes())
  data[500] ^= 1
  (tmp_path / 'd.npz').write_bytes(data)
  with pytest.raises(UserError, match='Bad CRC-32'):
    list(samples.SampleFile(tmp_path / 'd.npz').batches(4))


def test_writing_checks_what_comes_and_leaves_nothing_half_done(tmp_path, images):
  with pytest.raises(ValueError, match='8 images came for an array of 11'):
    samples.write_npz(tmp_path / 'a.npz', images.shape, in_batches(images[:8], 4))
  with pytest.raises(ValueError, match='float32'):
    samples.write_npz(tmp_path / 'a.npz', images.shape, [images.astype(np.float32)])
  assert not list(tmp_path.iterdir())


def test_parts_go_on_where_they_were_and_each_is_read_once(tmp_path, images, monkeypatch):
  parts = samples.Parts(tmp_path / 'parts')
  assert len(parts) == 0 and not (tmp_path / 'parts').exists()
  parts.append(images[:4])
  parts.append(images[4:5])
  again = samples.Parts(tmp_path / 'parts')
  assert len(again) == 5
  again.append(images[5:])
  opened, load = [], np.load
  monkeypatch.setattr(
    np, 'load', lambda path, **more: opened.append(path.name) or load(path, **more)
  )
  np.testing.assert_array_equal(np.concatenate(list(again.batches())), images)
  assert opened == ['00000000.npy', '00000004.npy', '00000005.npy']
  assert len(samples.Parts(tmp_path / 'parts', at_most=5)) == 5


def test_a_damaged_part_is_named(tmp_path):
  (tmp_path / '00000000.npy').write_bytes(b'nothing at all')
  with pytest.raises(UserError, match=r'00000000\.npy is damaged'):
    samples.Parts(tmp_path)


def test_labels_that_cannot_be_read_are_refused(tmp_path, images):
  labels = np.arange(11)
  np.savez(tmp_path / 'a.npz', arr_0=images)
  assert samples.SampleFile(tmp_path / 'a.npz').labels() is None
  np.savez(tmp_path / 'b.npz', arr_0=images, arr_1=labels)
  np.testing.assert_array_equal(samples.SampleFile(tmp_path / 'b.npz').labels(), labels)
  np.savez(tmp_path / 'c.npz', arr_0=images, arr_1=labels.astype(object))
  data = bytearray((tmp_path / 'b.npz').read_bytes())
  data[data.rindex(labels.tobytes())] ^= 1
  (tmp_path / 'd.npz').write_bytes(data)
  for name, fault in (('c', 'Object arrays'), ('d', 'Bad CRC-32')):
    with pytest.raises(UserError, match=rf'{name}\.npz: arr_1 cannot be read: .*{fault}'):
      samples.SampleFile(tmp_path / f'{name}.npz').labels()


def test_what_follows_a_gap_does_not_count(tmp_path, images):
  parts = samples.Parts(tmp_path)
  for start in (0, 3, 6):
    parts.append(images[start : start + 3])
  (tmp_path / '00000003.npy').unlink()
  (tmp_path / '.00000003.left.npy').touch()
  again = samples.Parts(tmp_path)
  assert len(again) == 3
  again.append(images[3:9])
  again.append(images[9:])
  assert len(samples.Parts(tmp_path)) == 11
  again.remove()
  assert not tmp_path.exists()
  again.remove()


def test_arrays_that_come_in_batches_are_what_numpy_reads(tmp_path):
  rng = np.random.default_rng(3)
  whole = {
    'images': rng.integers(256, size=(8, 4, 4, 3), dtype=np.uint8),
    'latents': rng.normal(size=(8, 2, 2, 4)),
  }
  parts = [{k: x[i : i + 3] for k, x in whole.items()} for i in range(0, 8, 3)]
  labels = np.arange(8)
  samples.write_arrays(tmp_path / 'a.npz', 8, iter(parts), {'labels': labels})
  with np.load(tmp_path / 'a.npz') as found:
    assert set(found.files) == {'images', 'latents', 'labels'}
    for name, x in {**whole, 'labels': labels}.items():
      np.testing.assert_array_equal(found[name], x)
  with pytest.raises(ValueError, match='images came for an array of'):
    samples.write_arrays(tmp_path / 'b.npz', 8, iter(parts[1:]), {})
  assert [p.name for p in tmp_path.iterdir()] == ['a.npz']
