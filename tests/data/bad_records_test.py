"""Bad records: named, replaced by a function of their index, counted, and no more than allowed."""

from helpers import store_files
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data import bad_records, pipeline
from diversedit_jax.data.sources import base, store
from diversedit_jax.data.store import layout

BAD = (2, 3, 7)


class Source:
  """Eight examples, each of which is its index."""

  name = 'eight'

  def __len__(self):
    return 8

  def gather(self, indices, flips=None):
    for index in indices.tolist():
      if index in BAD:
        raise base.BadExample(self.name, f'number {index} is torn', 'mend it')
    return {'images': indices.copy(), 'labels': indices.astype(np.int32)}


def test_the_next_good_record_takes_the_place_of_a_bad_one_whoever_asks_first(caplog):
  whole = bad_records.Replacing(Source(), 3).gather(np.arange(8))
  np.testing.assert_array_equal(whole['images'], [0, 1, 4, 4, 4, 5, 6, 0])
  np.testing.assert_array_equal(whole[bad_records.KEY], [-1, -1, 2, 3, -1, -1, -1, 7])
  assert [text for text in caplog.messages if 'takes the place of number 3 is torn' in text]
  assert len(caplog.messages) == 3
  one_by_one = bad_records.Replacing(Source(), 3)
  for index in (7, 3, 2, 3, 0):
    found = one_by_one.gather(np.array([index]))['images']
    assert found == whole['images'][index]


def test_no_more_are_borne_than_allowed():
  with pytest.raises(types.UserError, match=r'number 7 is torn.*bad record 3; data.max_bad=2 are'):
    bad_records.Replacing(Source(), 2).gather(np.arange(8))


def test_records_are_counted_once_as_they_are_used_and_again_after_a_restart(tmp_path):
  count = bad_records.Count(path=tmp_path / bad_records.FILE, limit=2)
  rows = [np.array(row) for row in ([-1, 3], [3, -1], [-1, -1], [7, 3])]
  batches = [(row, step) for step, row in enumerate(rows, 1)]
  used = count.counted(batches, 0)
  assert next(used) == 1 and count.met == {3: 1}
  assert list(used) == [2, 3, 4] and count.met == {3: 1, 7: 4}
  count.join()
  again = bad_records.Count(path=count.path, limit=2)
  assert next(again.counted(batches[3:], 3)) == 4 and again.met == {3: 1, 7: 4}
  earlier = bad_records.Count(path=count.path, limit=2)  # A checkpoint before it was met.
  assert next(earlier.counted(batches[2:], 2)) == 3 and earlier.met == {3: 1}
  with pytest.raises(types.UserError, match='3 bad records were met by step 9, data.max_bad=2'):
    again.note(9, np.array([0, -1]))


def test_what_each_process_has_met_is_kept_although_none_comes_to_a_report(tmp_path, monkeypatch):
  for process in range(3):
    monkeypatch.setattr(bad_records.jax, 'process_index', lambda number=process: number)
    count = bad_records.Count(path=tmp_path / bad_records.FILE, limit=9)
    count.note(5 - process, np.array([process, 7]))
  one = bad_records.Count(path=tmp_path / bad_records.FILE, limit=9)
  assert list(one.counted([(None, 'batch')], 4)) == ['batch'] and one.met == {1: 4, 2: 3, 7: 3}
  with pytest.raises(types.UserError, match='3 bad records were met by step 4, data.max_bad=2'):
    next(bad_records.Count(path=one.path, limit=2).counted([(None, 'batch')], 4))
  bad_records.forget_after(tmp_path, 3)
  assert list(one.counted([(None, 'batch')], 9)) == ['batch'] and one.met == {2: 3, 7: 3}


def test_a_store_names_the_shard_and_the_record_and_the_pipeline_replaces_it(tmp_path):
  store_files.write(tmp_path / 'store')
  whole = store.StoreSource(tmp_path / 'store')
  expected = whole.gather(np.arange(5))
  shard = layout.shard_file(tmp_path / 'store', 'pixels', 0)
  data = bytearray(shard.read_bytes())
  data[data.index(store_files.pixels(1).tobytes()[:16])] ^= 1
  shard.write_bytes(data)
  torn = store.StoreSource(tmp_path / 'store')
  with pytest.raises(base.BadExample, match=rf'{shard.name} cannot be read: record 1 is damaged'):
    torn.gather(np.arange(5))
  steps = pipeline.Steps(source=torn, seed=0, batch_size=5, max_bad=1)
  found, order = steps(0), pipeline.order.batch_indices(0, 0, 5, 5)
  stand_ins = np.where(order == 1, 2, order)
  for name, values in expected.items():
    np.testing.assert_array_equal(found[name], values[stand_ins])
