"""Files of images as people have them: names, types and layouts; damaged ones."""

import zipfile

import numpy as np
import pytest

from diversedit_jax.data import images as images_lib
from diversedit_jax.evaluation import sample_files
from diversedit_jax.types import UserError


@pytest.fixture
def images():
  return np.random.default_rng(0).integers(0, 256, (11, 4, 5, 3), np.uint8)


@pytest.mark.parametrize('save', [np.savez, np.savez_compressed])
@pytest.mark.parametrize('size', [1, 4, 11, 20])
def test_batches_are_the_images_in_order(tmp_path, images, save, size):
  save(tmp_path / 'a.npz', images, np.arange(11))
  file = sample_files.SampleFile(tmp_path / 'a.npz')
  assert len(file) == 11 and file.image_shape == (4, 5, 3)
  for _ in range(2):
    found = list(file.batches(size))
    assert [len(x) for x in found[:-1]] == [size] * (len(found) - 1)
    np.testing.assert_array_equal(np.concatenate(found), images)


@pytest.mark.parametrize(
  ('arrays', 'found'),
  [
    ({'latents': np.zeros((2, 4, 4, 4))}, 'no arr_0.*found latents.*config.vae.weights'),
    ({'mu': np.zeros(2), 'sigma': np.zeros((2, 2))}, 'no arr_0.*found mu .*are statistics'),
    ({'a': np.zeros((2, 4, 4, 3)), 'b': np.zeros((2, 4, 4, 3))}, 'no arr_0.*found a .*, b '),
    ({'arr_0': np.zeros((2, 4, 4, 3), np.float32)}, r'float32 from 0 to 0; expected .*\[-1, 1\]'),
    ({'images': np.full((2, 4, 4, 3), -128.0)}, 'float64 from -128 to -128; expected uint8'),
    ({'arr_0': np.zeros((2, 4, 4, 3), np.int64)}, 'int64 .* expected uint8'),
    ({'arr_0': np.zeros((2, 4, 4, 4), np.uint8)}, r'\(2, 4, 4, 4\), expected uint8'),
    ({'arr_0': np.zeros((2, 3, 4, 4), np.uint8)}, r"\['arr_0'\].transpose\(0, 2, 3, 1\)"),
    ({'arr_0': np.array([{}], object)}, 'object'),
  ],
)
def test_other_arrays_are_refused(tmp_path, arrays, found):
  np.savez(tmp_path / 'a.npz', **arrays)
  with pytest.raises(UserError, match=found):
    sample_files.SampleFile(tmp_path / 'a.npz')


def test_no_file_another_file_and_a_cut_file_are_refused(tmp_path, images):
  with pytest.raises(UserError, match='there is no'):
    sample_files.SampleFile(tmp_path / 'a.npz')
  (tmp_path / 'b.npz').write_bytes(b'nothing')
  with pytest.raises(UserError, match=r'b\.npz cannot be read as an \.npz'):
    sample_files.SampleFile(tmp_path / 'b.npz')
  with zipfile.ZipFile(tmp_path / 'c.npz', 'w') as archive, archive.open('arr_0.npy', 'w') as file:
    header = {'descr': '|u1', 'fortran_order': False, 'shape': (11, 4, 5, 3)}
    np.lib.format.write_array_header_1_0(file, header)
    file.write(images[:5].tobytes())
  with pytest.raises(UserError, match='ends after 4 of 11 images'):
    list(sample_files.SampleFile(tmp_path / 'c.npz').batches(4))
  np.savez(tmp_path / 'd.npz', images)
  data = bytearray((tmp_path / 'd.npz').read_bytes())
  data[500] ^= 1
  (tmp_path / 'd.npz').write_bytes(data)
  with pytest.raises(UserError, match='Bad CRC-32'):
    list(sample_files.SampleFile(tmp_path / 'd.npz').batches(4))


def test_labels_that_cannot_be_read_are_refused(tmp_path, images):
  labels = np.arange(11)
  np.savez(tmp_path / 'a.npz', arr_0=images)
  assert sample_files.SampleFile(tmp_path / 'a.npz').labels() is None
  np.savez(tmp_path / 'b.npz', arr_0=images, arr_1=labels)
  np.testing.assert_array_equal(sample_files.SampleFile(tmp_path / 'b.npz').labels(), labels)
  np.savez(tmp_path / 'e.npz', images=images, labels=labels)
  np.testing.assert_array_equal(sample_files.SampleFile(tmp_path / 'e.npz').labels(), labels)
  for others in (labels / 2, labels[:10]):  # They are no labels of these images.
    np.savez(tmp_path / 'f.npz', arr_0=images, arr_1=others)
    assert sample_files.SampleFile(tmp_path / 'f.npz').labels() is None
  np.savez(tmp_path / 'c.npz', arr_0=images, arr_1=labels.astype(object))
  data = bytearray((tmp_path / 'b.npz').read_bytes())
  data[data.rindex(labels.tobytes())] ^= 1
  (tmp_path / 'd.npz').write_bytes(data)
  for name, fault in (('c', 'Object arrays'), ('d', 'Bad CRC-32')):
    with pytest.raises(UserError, match=rf'{name}\.npz: arr_1 cannot be read: .*{fault}'):
      sample_files.SampleFile(tmp_path / f'{name}.npz').labels()


def read(file, **options):
  return np.concatenate(list(sample_files.SampleFile(file, **options).batches(4)))


@pytest.mark.parametrize('name', ['arr_0', 'images', 'fakes'])
def test_images_are_found_by_their_names(tmp_path, images, name):
  more = {'labels': np.arange(11), 'latents': np.zeros((11, 2, 2, 4))}
  np.savez(tmp_path / 'a.npz', **more, **{name: images})
  np.testing.assert_array_equal(read(tmp_path / 'a.npz'), images)
  np.save(tmp_path / 'a.npy', images)
  np.testing.assert_array_equal(read(tmp_path / 'a.npy'), images)
  assert sample_files.SampleFile(tmp_path / 'a.npy').labels() is None


@pytest.mark.parametrize('quantiser', images_lib.QUANTISERS)
def test_floats_are_quantised_and_grey_becomes_three_channels(tmp_path, images, quantiser):
  x = images_lib.from_uint8(images)[..., :1]
  np.savez(tmp_path / 'a.npz', images=x)
  file = sample_files.SampleFile(tmp_path / 'a.npz', quantiser)
  assert file.quantised == quantiser and file.image_shape == (4, 5, 3)
  assert ['grey' in line for line in file.remarks] == [True]
  np.savez(tmp_path / 'nan.npz', np.where(x > 0.9, np.nan, x))
  with pytest.raises(UserError, match=r'nan\.npz: cannot quantise: .* not finite'):
    read(tmp_path / 'nan.npz')
  levels = np.repeat(images_lib.to_uint8(x, quantiser), 3, axis=-1)
  np.testing.assert_array_equal(read(tmp_path / 'a.npz', quantiser=quantiser), levels)
