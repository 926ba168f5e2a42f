"""A store is the same however often its making was stopped, and by however many workers."""

import errno
import json
import os
import pathlib
import shutil

from helpers import small
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data.pictures import base, loading
from diversedit_jax.data.store import layout, verify, writer
from diversedit_jax.frozen import vae_files
from diversedit_jax.preparation import encode, locks, output, work

LISTED = (base.Skipped('README.txt', 'no picture', bad=False),)


@pytest.fixture(scope='module')
def autoencoder():
  return vae_files.random(small.CONFIG, 0)


@pytest.fixture(scope='module', autouse=True)
def one_program(autoencoder):
  """One encoder for all runs of this file: each would compile its own."""
  with pytest.MonkeyPatch.context() as patch:
    encoder = encode.Encoder(autoencoder, 3)
    patch.setattr(encode, 'Encoder', lambda *_: encoder)
    yield


@pytest.fixture(scope='module')
def prepare(autoencoder):
  def prepare(root, contents=None, listed=LISTED, **more):
    collection = small.Memory(small.files() if contents is None else contents, listed)
    outcome = work.prepare(small.asked(root, twins=True, **more), collection, autoencoder)
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


def test_nothing_in_it_tells_when_or_where_it_was_made(whole, prepare, tmp_path):
  prepare(tmp_path / 'elsewhere')
  assert small.contents(tmp_path / 'elsewhere') == small.contents(whole)


@pytest.mark.parametrize('order', [(0, 1), (1, 0)])
def test_two_workers_make_what_one_makes(whole, prepare, tmp_path, order):
  first, _ = prepare(tmp_path / 'store', worker=order[0], workers=2)
  assert first.manifest is None and first.made == 3
  assert set(first.missing) == set(range(order[1], 6, 2))
  assert f'unfinished: 3 shards of other workers are missing: {order[1]}' in first.text()
  second, _ = prepare(tmp_path / 'store', worker=order[1], workers=2)
  assert second.manifest is not None and second.missing == () and len(second.skipped) == 3
  assert small.contents(tmp_path / 'store') == small.contents(whole)


def test_a_finished_store_is_left_as_it_is(copy, whole, prepare):
  outcome, collection = prepare(copy)
  assert outcome.made == 0 and collection.reads == []
  assert outcome.manifest == layout.read_manifest(whole)
  assert small.contents(copy) == small.contents(whole)


def test_versions_are_those_of_who_made_the_shards(copy, whole, prepare, monkeypatch):
  monkeypatch.setattr(work, 'versions', lambda: {'jax': 'later'})
  prepare(copy)
  assert small.contents(copy) == small.contents(whole)
  layout.facts_file(copy, 0).unlink()
  assert prepare(copy)[0].manifest.versions == {'jax': 'later'}


@pytest.mark.parametrize('damage', ['truncated', 'removed', 'facts', 'half of the facts'])
def test_a_damaged_shard_is_made_anew_and_the_others_are_kept(copy, whole, prepare, damage, caplog):
  column, facts = layout.shard_file(copy, 'moments', 2), layout.facts_file(copy, 2)
  if damage == 'truncated':
    column.write_bytes(column.read_bytes()[:1000])
  elif damage == 'removed':
    column.unlink()
  elif damage == 'facts':
    facts.unlink()
  else:
    facts.write_text(facts.read_text()[:100])
  outcome, collection = prepare(copy)
  assert outcome.made == 1 and len(collection.reads) == 4
  assert small.contents(copy) == small.contents(whole)
  assert ('shard 2 is not as it was left' in caplog.text) == (damage != 'facts')


@pytest.mark.parametrize('name', ['manifest.json', 'labels.npy', 'skipped.csv'])
def test_files_of_the_whole_store_are_made_anew(copy, whole, prepare, name):
  (copy / name).write_text('[') if name == 'manifest.json' else (copy / name).unlink()
  assert prepare(copy)[0].made == 0
  assert small.contents(copy) == small.contents(whole)


def test_leftovers_of_a_killed_run_are_removed(copy, whole, prepare):
  names = ['.plan.0123456789ab.json', '.labels.0123456789ab.npy', '.worker-1-of-3.lock']
  names += ['shards/.moments-00004.0123456789ab.array_record', 'shards/.00004.0123456789ab.json']
  for name in names:
    (copy / name).write_text('half')
  prepare(copy)
  assert small.contents(copy) == small.contents(whole)


def test_leftovers_of_other_workers_shards_are_theirs(tmp_path, prepare):
  shards = tmp_path / 'store' / 'shards'
  prepare(tmp_path / 'store', worker=0, workers=2)
  names = [f'.moments-0000{shard}.0123456789ab.array_record' for shard in (2, 3)]
  for name in names:
    (shards / name).write_text('being written')
  prepare(tmp_path / 'store', worker=0, workers=2)
  assert [(shards / name).exists() for name in names] == [False, True]


@pytest.mark.parametrize('at', [0, 9, 23])
def test_a_run_that_fails_in_the_middle_goes_on(whole, prepare, tmp_path, at, monkeypatch):
  read = small.Memory.read

  def failing(self, index):
    if index == at:
      raise KeyboardInterrupt
    return read(self, index)

  with monkeypatch.context() as patch:
    patch.setattr(small.Memory, 'read', failing)
    with pytest.raises(KeyboardInterrupt):
      prepare(tmp_path / 'store')
  assert not (tmp_path / 'store' / 'manifest.json').exists()
  outcome, collection = prepare(tmp_path / 'store')
  assert len(collection.reads) == 24 - at // 4 * 4 and outcome.made == 6 - at // 4
  assert small.contents(tmp_path / 'store') == small.contents(whole)


def test_a_disk_that_fails_ends_the_run_and_loses_no_picture(whole, prepare, tmp_path, monkeypatch):
  read = small.Memory.read

  def failing(self, index):
    if index == 9:
      raise OSError(errno.EIO, 'Input/output error')
    return read(self, index)

  with monkeypatch.context() as patch:
    patch.setattr(small.Memory, 'read', failing)
    patch.setattr(loading.time, 'sleep', lambda _: None)
    with pytest.raises(types.UserError, match=r'bee/009\.jpg cannot be read: Input/output error'):
      prepare(tmp_path / 'store')
  assert prepare(tmp_path / 'store')[0].made == 4
  assert small.contents(tmp_path / 'store') == small.contents(whole)


@pytest.mark.parametrize('name', ['labels.npy', 'manifest.json'])
def test_a_run_that_fails_at_the_end_goes_on(whole, prepare, tmp_path, name, monkeypatch):
  replace = os.replace

  def failing(source, target):
    if os.path.basename(target) == name:
      raise KeyboardInterrupt
    replace(source, target)

  with monkeypatch.context() as patch:
    patch.setattr(os, 'replace', failing)
    with pytest.raises(KeyboardInterrupt):
      prepare(tmp_path / 'store')
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
  assert small.contents(copy) == before
  assert {path: path.stat().st_mtime_ns for path in copy.rglob('*')} == stamps


def test_another_collection_is_refused(copy, prepare):
  with pytest.raises(types.UserError, match='source_digest: stored'):
    prepare(copy, contents=small.files(bad={}))


def test_differences_of_long_lists_are_told_by_their_first_place(whole):
  old = list('abcdefghij')
  new = [*old[:9], 'x', 'y']
  assert list(output._differences({'l': old}, {'l': new})) == [
    ('l', "10 entries with 'j' at 9", "11 entries with 'x' at 9")
  ]
  assert list(output._differences({'l': old}, {'l': [*old, 'k']}))[0][1:] == (
    '10 entries',
    "11 entries with 'k' at 10",
  )


@pytest.mark.parametrize('kind', ['files', 'file'])
def test_an_output_that_is_something_else_is_refused(prepare, tmp_path, kind):
  root = tmp_path / 'photographs'
  if kind == 'file':
    root.write_text('mine')
  else:
    root.mkdir()
    (root / 'a.jpg').write_text('mine')
  with pytest.raises(types.UserError, match='is a file|holds .a.jpg. but no plan.json'):
    prepare(root)
  assert list(small.contents(tmp_path).values()) == [b'mine']


def test_a_run_that_was_killed_before_its_plan_is_no_other_folder(prepare, tmp_path, whole):
  root = tmp_path / 'store'
  root.mkdir()
  for name in ('.worker-0-of-1.lock', '.store.lock', '.plan.0123456789ab.json'):
    (root / name).write_text('')
  prepare(root)
  assert small.contents(root) == small.contents(whole)


def test_the_plan_of_a_worker_that_starts_at_the_same_time_is_no_clutter(
  prepare, tmp_path, whole, monkeypatch
):
  """It appears between two looks at the folder."""
  root, plan = tmp_path / 'store', layout.read_plan(whole)
  iterdir = pathlib.Path.iterdir

  def late(path):
    (root / '.plan.0123456789ab.json').write_text('half')
    layout.write_json(root / 'plan.json', plan)
    return iterdir(path)

  root.mkdir()
  with monkeypatch.context() as patch:
    patch.setattr(pathlib.Path, 'iterdir', late)
    output.check(root, plan)


@pytest.mark.parametrize('left', [None, b'', b'\0' * 50, b'{"columns": {"mom'])
@pytest.mark.parametrize('finished', [True, False])
def test_a_lost_plan_is_written_anew_by_the_same_command(copy, whole, prepare, left, finished):
  """As a power cut may leave it; the manifest has it too, and the facts of shards its digest."""
  (copy / 'plan.json').unlink()
  if left is not None:
    (copy / 'plan.json').write_bytes(left)
  if not finished:
    writer.reopen(copy, 5)
  before = small.contents(copy)
  words = "crop: stored 'adm'" if finished else 'shards/00000.json is not known to be of the plan'
  with pytest.raises(types.UserError, match=words):
    prepare(copy, crop='center')
  assert small.contents(copy) == before
  assert prepare(copy)[0].made == (0 if finished else 1)
  assert small.contents(copy) == small.contents(whole)


def test_shards_of_an_unknown_plan_are_not_taken(copy, prepare):
  """Of a store whose facts are older than their entry for the plan."""
  (copy / 'plan.json').unlink()
  (copy / 'manifest.json').unlink()
  facts = layout.facts_file(copy, 3)
  facts.write_text(json.dumps(json.loads(facts.read_text()) | {'plan': ''}))
  with pytest.raises(types.UserError, match=r'shards/00003\.json is not known to be of the plan'):
    prepare(copy)


def test_a_plan_that_was_lost_before_the_first_shard_is_written_anew(prepare, tmp_path, whole):
  (tmp_path / 'store' / 'shards').mkdir(parents=True)
  (tmp_path / 'store' / 'plan.json').write_bytes(b'\0' * 100)
  (tmp_path / 'store' / 'shards' / '.moments-00000.0123456789ab.array_record').write_text('half')
  prepare(tmp_path / 'store')
  assert small.contents(tmp_path / 'store') == small.contents(whole)


def test_a_shard_of_another_plan_is_made_anew(copy, whole, prepare, caplog):
  facts = layout.facts_file(copy, 3)
  facts.write_text(json.dumps(json.loads(facts.read_text()) | {'plan': 'd' * 64}))
  assert prepare(copy)[0].made == 1 and 'shard 3 is that of another plan' in caplog.text
  assert small.contents(copy) == small.contents(whole)


@pytest.mark.parametrize('left', ['a temporary file', 'a file of another size'])
def test_what_a_killed_run_left_is_room_for_the_next(copy, whole, prepare, monkeypatch, left):
  path = layout.shard_file(copy, 'moments', 3)
  layout.facts_file(copy, 3).unlink()
  if left == 'a temporary file':
    path = path.rename(path.with_name('.moments-00003.0123456789ab.array_record'))
  os.truncate(path, 500_000)
  assert writer.shard_bytes(layout.read_plan(whole), 3) < 500_000
  monkeypatch.setattr(
    output.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 0, 0)
  )
  gone, write_shard = [], writer.write_shard
  monkeypatch.setattr(
    writer, 'write_shard', lambda *a: (gone.append(not path.exists()), write_shard(*a))[1]
  )
  assert prepare(copy)[0].made == 1
  assert gone == [True]  # Before the new one is written, not when it takes its name.
  assert small.contents(copy) == small.contents(whole)


def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(
  prepare, tmp_path, monkeypatch, whole
):
  free = 200_000
  monkeypatch.setattr(
    output.shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(10**9, 0, free)
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


def test_a_second_process_of_the_same_worker_is_refused(copy, prepare):
  layout.facts_file(copy, 0).unlink()
  with locks.worker(copy, 0, 1):
    with pytest.raises(types.UserError, match='another process writes'):
      prepare(copy)
    assert not layout.facts_file(copy, 0).exists()
  assert prepare(copy)[0].made == 1


@pytest.mark.parametrize('listed', [True, False])
def test_strict_ends_at_the_first_bad_picture_and_names_it(prepare, tmp_path, listed):
  root, words = tmp_path / 'store', "'gone.jpg' cannot" if listed else "'ant/005.jpg' cannot"
  bad = (base.Skipped('gone.jpg', 'a link that leads nowhere'),) if listed else ()
  with pytest.raises(types.UserError, match=words):
    prepare(root, strict=True, listed=(*LISTED, *bad))
  assert root.exists() != listed
  if not listed:
    assert layout.facts_file(root, 0).exists() and not layout.facts_file(root, 1).exists()


def test_strict_minds_what_an_earlier_run_skipped(copy, prepare):
  layout.facts_file(copy, 5).unlink()
  with pytest.raises(types.UserError, match=r"'ant/005.jpg' cannot be used: is gone \(and 1 more"):
    prepare(copy, strict=True, listed=())


def test_strict_is_content_with_good_pictures_and_files_that_are_none(prepare, tmp_path):
  outcome, _ = prepare(tmp_path / 'store', contents=small.files(bad={}), strict=True)
  assert outcome.manifest.count == 24 and outcome.skipped == LISTED


def test_a_shard_of_bad_pictures_alone_is_empty(prepare, tmp_path):
  bad = dict.fromkeys(range(4, 8), b'no picture')
  outcome, _ = prepare(tmp_path / 'store', contents=small.files(bad=bad))
  assert outcome.manifest.counts == (4, 0, 4, 4, 4, 4)
  assert verify.verify(tmp_path / 'store').faults == ()


def test_bad_pictures_alone_are_refused_with_reasons(prepare, tmp_path):
  bad = dict.fromkeys(range(24), b'no picture')
  with pytest.raises(types.UserError, match='none of the 24 pictures .* can be used'):
    prepare(tmp_path / 'store', contents=small.files(bad=bad))


def test_the_end_of_a_run_tells_what_was_skipped_and_why(copy, prepare):
  text = prepare(copy)[0].text()
  assert 'examples  22, content ' in text and 'skipped   3 (see skipped.csv)' in text
  assert "'ant/005.jpg': is gone" in text


def test_long_lists_of_skipped_pictures_are_cut_on_the_console_alone(prepare, tmp_path):
  listed = tuple(base.Skipped(f'{i}.txt', 'no picture') for i in range(30))
  outcome, _ = prepare(tmp_path / 'store', listed=listed)
  assert '... and 12 more' in outcome.text() and "'20.txt'" not in outcome.text()
  assert len((tmp_path / 'store' / 'skipped.csv').read_text().splitlines()) == 1 + 32


def test_the_plan_that_another_process_wrote_meanwhile_counts(tmp_path, prepare, whole):
  plan = layout.read_plan(whole)
  root = tmp_path / 'store'
  root.mkdir()
  text = json.dumps(json.loads((whole / 'plan.json').read_text()) | {'size': 64})
  (root / 'plan.json').write_text(text)
  with pytest.raises(types.UserError, match='size: stored 64, asked for 32'):
    output.begin(root, plan, 0, 1)


def test_shards_are_written_before_their_facts(prepare, tmp_path, monkeypatch):
  """A kill between the two leaves an unfinished shard, never a finished one without its columns."""
  order = []
  replace = os.replace
  monkeypatch.setattr(
    os, 'replace', lambda a, b: (order.append(os.path.basename(b)), replace(a, b))
  )
  prepare(tmp_path / 'store')
  assert order[:3] == ['plan.json', 'moments-00000.array_record', '00000.json']
  assert order[-3:] == ['labels.npy', 'skipped.csv', 'manifest.json']
  assert writer.finished(tmp_path / 'store', layout.read_plan(tmp_path / 'store'), 0) is not None
