"""Shards and stores as they are written: whole or not at all, always with the same bytes."""

import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys

from helpers import small, store_files
import numpy as np
import pytest

from diversedit_jax.data.pictures import base
from diversedit_jax.data.store import layout, writer

TESTS = pathlib.Path(__file__).parents[2]
PLAN = store_files.PLAN


@pytest.fixture
def store(tmp_path):
  store_files.write(tmp_path / 'store')
  return tmp_path / 'store'


def test_the_manifest_counts_what_is_there_and_digests_it(store):
  manifest = layout.read_manifest(store)
  assert manifest.plan == PLAN == layout.read_plan(store)
  assert (manifest.count, manifest.counts, manifest.classes) == (5, (3, 2), (3, 0, 2))
  assert manifest.skipped == 2 and manifest.versions == store_files.VERSIONS
  labels = np.load(store / 'labels.npy')
  assert labels.dtype == np.int32 and labels.tolist() == list(store_files.LABELS)
  rows = (store / 'skipped.csv').read_text().splitlines()
  assert rows == ['name,reason', 'README.txt,no picture', '2.jpg,is no picture']
  assert layout.read_facts(store, 0).keys == ('0', '1', '3')
  for shard, digest in enumerate(manifest.shards):
    facts_file = layout.facts_file(store, shard)
    assert digest == hashlib.sha256(facts_file.read_bytes()).hexdigest()
    facts = layout.read_facts(store, shard)
    for column, known in facts.columns.items():
      data = layout.shard_file(store, column, shard).read_bytes()
      assert known == {'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}


def test_the_same_examples_give_the_same_bytes_in_any_order_of_shards(store, tmp_path):
  other = tmp_path / 'other'
  layout.write_json(other / 'plan.json', PLAN)
  for shard in (1, 0):
    writer.write_shard(other, PLAN, shard, iter(store_files.results(shard)))
  writer.finish(other, PLAN, store_files.LISTED, store_files.VERSIONS)
  assert small.contents(other) == small.contents(store)


def test_a_shard_that_fails_in_the_middle_leaves_nothing(tmp_path):
  """A record that is not as planned ends it so, and is named by its key."""
  example = store_files.example(1)
  wrong = {**example.columns, 'moments': example.columns['moments'][:1]}
  made = [store_files.example(0), dataclasses.replace(example, columns=wrong)]
  with pytest.raises(ValueError, match=r"moments of '1' is .*, expected float16 \(2, 2, 2, 4\)"):
    writer.write_shard(tmp_path, PLAN, 0, made)
  assert small.contents(tmp_path) == {}


def test_a_disk_that_fills_up_is_told_and_leaves_nothing(tmp_path):
  """A limit on the size of files stands for the disk, in a process of its own."""
  code = (
    'import pathlib, resource, sys\n'
    'from helpers import store_files\n'
    'from diversedit_jax.data.store import writer\n'
    'resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n'
    'writer.write_shard(pathlib.Path(sys.argv[1]), store_files.PLAN, 0, store_files.results(0))\n'
  )
  done = subprocess.run(
    [sys.executable, '-c', code, tmp_path],
    env=os.environ | {'PYTHONPATH': f'{TESTS.parent}:{TESTS}'},
    capture_output=True,
    text=True,
  )
  assert 'UserError' in done.stderr and 'cannot be written: ' in done.stderr
  assert small.contents(tmp_path) == {}


def test_names_that_are_not_utf8_are_kept(tmp_path):
  name = b'\xff.jpg'.decode('utf-8', 'surrogateescape')
  plan = dataclasses.replace(PLAN, examples=2)
  example = dataclasses.replace(store_files.example(0), key=name[:-4])
  writer.write_shard(tmp_path, plan, 0, [example, base.Skipped(name, 'is no picture')])
  writer.finish(tmp_path, plan, (), {})
  assert layout.read_facts(tmp_path, 0).keys == (name[:-4],)
  assert b'\xff.jpg,is no picture' in (tmp_path / 'skipped.csv').read_bytes()


@pytest.mark.parametrize('examples, shape', [(1, (4, 4, 3)), (3000, (9, 9, 3))])
def test_the_room_that_is_asked_for_suffices_and_is_not_far_off(tmp_path, examples, shape):
  column = layout.ColumnFacts(dtype='uint8', shape=shape)
  plan = dataclasses.replace(
    PLAN, examples=examples, records_per_shard=examples, columns={'pixels': column}
  )
  record = np.zeros((1, *shape), np.uint8)
  made = (
    writer.Example(key=f'n01440764/n01440764_{i}', label=0, sha256='', columns={'pixels': record})
    for i in range(examples)
  )
  writer.write_shard(tmp_path, plan, 0, made)
  found = sum(len(data) for data in small.contents(tmp_path).values())
  # A shard costs 128 KiB whatever is in it; beyond that the arrays are nearly all.
  assert found <= writer.shard_bytes(plan, 0) <= 1.7 * found


def test_temporary_names_are_those_that_leftovers_knows(tmp_path, monkeypatch):
  """Whatever name the writer uses on the way is cleared away by the next run."""
  seen = set()

  def spying():
    seen.update(tmp_path.rglob('.*'))
    yield from store_files.results(0)

  writer.write_shard(tmp_path, PLAN, 0, spying())
  assert len(seen) == 2
  for path in (*seen, tmp_path / '.bashrc', tmp_path / 'shards' / '.moments.json'):
    path.write_text('')
  assert set(writer.leftovers(tmp_path)) == {(path, 0) for path in seen}
