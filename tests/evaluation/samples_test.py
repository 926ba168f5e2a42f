"""Files of samples: what ADM reads and writes, and the parts of an unfinished evaluation."""

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
