"""A store is the same however often its making was stopped, and by however many workers."""

import errno
import json
import os
import shutil

from helpers import small
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import base, loading
from diversedit_jax.data.store import layout, verify, writer
from diversedit_jax.frozen import vae_files
from diversedit_jax.preparation import encode, making, output, work

LISTED = (base.Skipped('README.txt', 'no picture', bad=False),)


@pytest.fixture(scope='module')
def autoencoder():
  return vae_files.random(small.CONFIG, 0)


@pytest.fixture(scope='module', autouse=True)
def one_program(autoencoder):
  """One encoder for all runs of this file: each would compile its own."""
  with pytest.MonkeyPatch.context() as patch:
    encoder = encode.Encoder(making.encoded(autoencoder, small.SIZE), 3)
    patch.setattr(encode, 'Encoder', lambda *_: encoder)
    yield


@pytest.fixture(scope='module')
def prepare(autoencoder):
  def prepare(root, contents=None, listed=LISTED, **more):
    collection = small.Memory(small.files() if contents is None else contents, listed)
    made = making.encoded(autoencoder, small.SIZE)
    outcome = work.prepare(small.asked(root, twins=True, **more), collection, made)
    return outcome, collection

  return prepare


@pytest.fixture(scope='module')
def whole(prepare, tmp_path_factory):
  """The store of an undisturbed run."""
  root = tmp_path_factory.mktemp('whole') / 'store'
  prepare(root)
  return root


@pytest.fixture
def copy(whole, tmp_path):
  """A copy of it to disturb."""
  return shutil.copytree(whole, tmp_path / 'store')


def test_the_store_is_sound_and_counts_what_was_skipped(whole):
  assert verify.verify(whole).faults == ()
  manifest = layout.read_manifest(whole)
  assert manifest.count == 22 and manifest.counts == (4, 3, 4, 3, 4, 4)
  assert manifest.skipped == 3
  rows = (whole / 'skipped.csv').read_text().splitlines()
  assert [row.split(',')[0] for row in rows] == ['name', 'README.txt', 'ant/005.jpg', 'bee/014.jpg']
  assert np.load(whole / 'labels.npy').tolist() == [0] * 7 + [1] * 7 + [2] * 8
  assert not [name for name in small.contents(whole) if name.startswith('.')]


@pytest.mark.parametrize('order', [(0, 1), (1, 0)])
def test_two_workers_make_what_one_makes(whole, prepare, tmp_path, order):
  first, _ = prepare(tmp_path / 'store', worker=order[0], workers=2)
  assert first.manifest is None and first.made == 3
  assert set(first.missing) == set(range(order[1], 6, 2))
  assert f'unfinished: 3 shards of other workers are missing: {order[1]}' in first.text()
  second, _ = prepare(tmp_path / 'store', worker=order[1], workers=2)
  assert second.manifest is not None and second.missing == () and len(second.skipped) == 3
  assert small.contents(tmp_path / 'store') == small.contents(whole)


def test_a_finished_store_is_left_as_it_is_with_the_versions_of_its_makers(
  copy, whole, prepare, monkeypatch
):
  monkeypatch.setattr(work, 'versions', lambda: {'jax': 'later'})
  outcome, collection = prepare(copy)
  assert outcome.made == 0 and collection.reads == []
  assert small.contents(copy) == small.contents(whole)
  text = outcome.text()
  assert 'examples  22, content ' in text and 'skipped   3 (see skipped.csv)' in text
  assert "'ant/005.jpg': is gone" in text
  layout.facts_file(copy, 0).unlink()
  assert prepare(copy)[0].manifest.versions == {'jax': 'later'}


@pytest.mark.parametrize('damage', ['truncated', 'no facts', 'half of the facts', 'another plan'])
def test_a_damaged_shard_is_made_anew_and_the_others_are_kept(copy, whole, prepare, damage, caplog):
  column, facts = layout.shard_file(copy, 'moments', 2), layout.facts_file(copy, 2)
  if damage == 'truncated':
    column.write_bytes(column.read_bytes()[:1000])
  elif damage == 'no facts':
    facts.unlink()
  elif damage == 'half of the facts':
    facts.write_text(facts.read_text()[:100])
  else:
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {'plan': 'd' * 64}))
  outcome, collection = prepare(copy)
  assert outcome.made == 1 and len(collection.reads) == 4
  assert small.contents(copy) == small.contents(whole)
  assert ('shard 2 is made again: ' in caplog.text) == (damage != 'no facts')


def test_leftovers_of_a_killed_run_are_removed_but_not_those_of_other_workers(
  copy, whole, prepare, monkeypatch
):
  names = ['.plan.0123456789ab.json', '.labels.0123456789ab.npy', '.worker-1-of-3.lock']
  names += ['shards/.moments-00004.0123456789ab.array_record', 'shards/.00004.0123456789ab.json']
  for name in names:
    (copy / name).write_text('half')
  layout.facts_file(copy, 4).unlink()
  # A leftover of a shard is room for the shard.
  full = shutil._ntuple_diskusage(10**9, 0, 0)
  monkeypatch.setattr(output.files.shutil, 'disk_usage', lambda path: full)
  os.truncate(copy / names[3], 500_000)
  other = copy / 'shards' / '.moments-00003.0123456789ab.array_record'
  other.write_text('being written')
  prepare(copy, worker=0, workers=2)
  assert other.exists()
  other.unlink()
  assert small.contents(copy) == small.contents(whole)


@pytest.mark.parametrize('at', [0, 9, 23])
def test_a_run_that_fails_in_the_middle_goes_on(whole, prepare, tmp_path, at, monkeypatch):
  """It loses no picture because of a disk that fails."""
  read = small.Memory.read

  def failing(self, index):
    if index == at:
      raise OSError(errno.EIO, 'Input/output error')
    return read(self, index)

  with monkeypatch.context() as patch:
    patch.setattr(small.Memory, 'read', failing)
    patch.setattr(loading.time, 'sleep', lambda _: None)
    with pytest.raises(types.UserError, match=rf'{at:03d}\.jpg cannot be read: Input/output error'):
      prepare(tmp_path / 'store')
  assert not (tmp_path / 'store' / 'manifest.json').exists()
  outcome, collection = prepare(tmp_path / 'store')
  assert len(collection.reads) == 24 - at // 4 * 4 and outcome.made == 6 - at // 4
  assert small.contents(tmp_path / 'store') == small.contents(whole)


def test_a_run_that_fails_at_the_end_goes_on(whole, prepare, tmp_path, monkeypatch):
  replace = os.replace

  def failing(source, target):
    if os.path.basename(target) == 'manifest.json':
      raise KeyboardInterrupt
    replace(source, target)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', failing)
    with pytest.raises(KeyboardInterrupt):
      prepare(tmp_path / 'store')
  (tmp_path / 'store' / 'labels.npy').write_text('[')
  (tmp_path / 'store' / 'skipped.csv').unlink()
  assert prepare(tmp_path / 'store')[0].made == 0
  assert small.contents(tmp_path / 'store') == small.contents(whole)


def test_another_plan_is_refused_with_every_difference_and_nothing_changes(copy, prepare):
  before = small.contents(copy)
  stamps = {path: path.stat().st_mtime_ns for path in copy.rglob('*')}
  with pytest.raises(types.UserError) as error:
    prepare(copy, crop='center', dtype='float32', records_per_shard=8)
  text = str(error.value)
  for words in (
    "crop: stored 'adm', asked for 'center'",
    "columns.moments.dtype: stored 'float16', asked for 'float32'",
    'records_per_shard: stored 4, asked for 8',
  ):
    assert words in text
  assert 'source' not in text and 'size' not in text
  with pytest.raises(types.UserError, match='source_digest: stored'):
    prepare(copy, contents=small.files(bad={}))
  names = [list('abcdefghij'), list('abcdefgxy')]
  ((_, *told),) = output._differences({'l': names[0]}, {'l': names[1]})
  assert told == ["10 entries with 'h' at 7", "9 entries with 'x' at 7"]
  assert small.contents(copy) == before
  assert {path: path.stat().st_mtime_ns for path in copy.rglob('*')} == stamps


def test_an_output_that_is_something_else_is_refused(prepare, tmp_path):
  (tmp_path / 'a.jpg').write_text('mine')
  with pytest.raises(types.UserError, match='a.jpg is a file, expected a folder'):
    prepare(tmp_path / 'a.jpg')
  with pytest.raises(types.UserError, match="holds 'a.jpg' but no plan.json"):
    prepare(tmp_path)
  assert list(small.contents(tmp_path).values()) == [b'mine']


@pytest.mark.parametrize('finished', [True, False])
def test_a_lost_plan_is_written_anew_by_the_same_command(copy, whole, prepare, finished):
  """The manifest has it too, and the facts of the shards have its digest."""
  (copy / 'plan.json').write_bytes(b'\0' * 50)
  with pytest.raises(types.UserError, match=r'plan\.json: damaged, not JSON: .*; remove it and'):
    prepare(copy)
  (copy / 'plan.json').unlink()
  if not finished:
    writer.reopen(copy, 5)
  before = small.contents(copy)
  words = "crop: stored 'adm'" if finished else 'no finished shards of the plan asked for'
  with pytest.raises(types.UserError, match=words):
    prepare(copy, crop='center')
  assert small.contents(copy) == before
  assert prepare(copy)[0].made == (0 if finished else 1)
  assert small.contents(copy) == small.contents(whole)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
  prepare, tmp_path, monkeypatch, whole
):
  free = 200_000
  monkeypatch.setattr(
    output.files.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 0, free)
  )
  root = tmp_path / 'store'
  with pytest.raises(types.UserError, match='needs 0.001 GB for 6 of 6 shards.* has 0.000 GB free'):
    prepare(root)
  assert not root.exists()
  # What is there already needs no room.
  shutil.copytree(whole, root)
  layout.facts_file(root, 3).unlink()
  free = 300_000
  assert prepare(root)[0].made == 1


def test_strict_ends_at_the_first_bad_picture_and_names_it(prepare, tmp_path):
  root, gone = tmp_path / 'store', base.Skipped('gone.jpg', 'a link that cannot be followed')
  with pytest.raises(types.UserError, match="'gone.jpg' cannot"):
    prepare(root, strict=True, listed=(*LISTED, gone))
  assert not root.exists()
  with pytest.raises(types.UserError, match="'ant/005.jpg' cannot"):
    prepare(root, strict=True)
  assert layout.facts_file(root, 0).exists() and not layout.facts_file(root, 1).exists()
  prepare(root)
  with pytest.raises(types.UserError, match=r"'ant/005.jpg' cannot be used: is gone \(and 1 more"):
    prepare(root, strict=True)
  # It is content with good pictures and with files that are none.
  outcome, _ = prepare(tmp_path / 'good', contents=small.files(bad={}), strict=True)
  assert outcome.manifest.count == 24 and outcome.skipped == LISTED


def test_shards_are_written_before_their_facts_and_on_the_disk_before_they_are_named(
  prepare, tmp_path, monkeypatch
):
  """A kill between the two leaves an unfinished shard, never a finished one without its columns."""
  order, synced, fsync, replace = [], [], os.fsync, os.replace
  inode = lambda file: os.stat(file).st_ino

  def checked(temporary, path):
    assert synced[-1] == inode(temporary)
    order.append(os.path.basename(path))
    replace(temporary, path)

  monkeypatch.setattr(os, 'fsync', lambda file: (synced.append(inode(file)), fsync(file)))
  monkeypatch.setattr(os, 'replace', checked)
  prepare(tmp_path / 'store')
  assert order[:3] == ['plan.json', 'moments-00000.array_record', '00000.json']
  assert order[-3:] == ['labels.npy', 'skipped.csv', 'manifest.json']


def test_bad_pictures_alone_are_refused_with_reasons_and_long_lists_cut_on_the_console(
  prepare, tmp_path
):
  bad = dict.fromkeys(range(24), b'no picture')
  with pytest.raises(types.UserError, match="none of the 24 pictures .*'README.txt': no"):
    prepare(tmp_path / 'bad', contents=small.files(bad=bad))
  listed = tuple(base.Skipped(f'{i}.txt', 'no picture') for i in range(30))
  root = tmp_path / 'store'
  root.mkdir()
  for name in ('.worker-0-of-1.lock', '.store.lock', '.plan.0123456789ab.json'):
    (root / name).write_text('')  # A run was killed here before it wrote its plan.
  outcome, _ = prepare(root, listed=listed)
  assert '... and 12 more' in outcome.text() and "'20.txt'" not in outcome.text()
  assert len((root / 'skipped.csv').read_text().splitlines()) == 1 + 32
