"""Every fault of a store is found, and named by its file."""

import json

from helpers import store_files
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data.store import layout, verify, writer

PLAN = store_files.PLAN


@pytest.fixture
def store(tmp_path):
  store_files.write(tmp_path / 'store')
  return tmp_path / 'store'


def faults(root):
  return {name for name, _ in verify.verify(root).faults}


def flip(path, position=100):
  data = bytearray(path.read_bytes())
  data[position] ^= 1
  path.write_bytes(data)


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rewrite(root, change):
  """The store with one example replaced, all digests right."""
  for path in root.rglob('*.json'):
    if path.name != 'plan.json':
      path.unlink()
  for shard in range(PLAN.shards):
    made = [change(r) if isinstance(r, writer.Example) else r for r in store_files.results(shard)]
    writer.write_shard(root, PLAN, shard, made)
  writer.finish(root, PLAN, store_files.LISTED, {})


def test_a_sound_store_has_no_faults_and_is_described(store):
  report = verify.verify(store)
  assert report.faults == () and report.examples == 5 and report.classes == (3, 0, 2)
  assert 'faults    none' in report.text()
  assert 'classes   3, 1 without examples, the others with 2 to 3' in report.text()


def test_the_statistics_are_those_of_samples(store):
  """Mean and std by (1) against the definition, over drawn latents."""
  moments = np.concatenate([store_files.moments(i) for i in range(5)]).astype(np.float64)
  mean, std = np.split(moments, 2, axis=-1)
  n = 20_000
  noise = np.random.default_rng(0).standard_normal((n, *mean.shape))
  x = (mean + std * noise - store_files.SHIFT) * store_files.SCALE
  report = verify.verify(store)
  # 20,000 draws for each of the 40 places: the error of both is below std / sqrt(800,000) times 4.
  tolerance = 4 * np.max(report.std) / np.sqrt(n * mean[..., 0].size)
  np.testing.assert_allclose(report.mean, x.mean((0, 1, 2, 3)), atol=tolerance)
  np.testing.assert_allclose(report.std, x.std((0, 1, 2, 3)), atol=tolerance)


@pytest.mark.parametrize(
  'name, position',
  [
    ('shards/moments-00001.array_record', 100),
    ('labels.npy', -1),
    ('shards/00001.json', -20),
    ('manifest.json', 3),
  ],
)
def test_a_flipped_byte_or_a_missing_file_is_found(store, name, position):
  flip(store / name, position)
  assert faults(store) == {name}
  (store / name).unlink()
  assert faults(store) == {name}


def test_a_manifest_of_another_plan_or_of_fewer_shards_is_found(store):
  edit(store / 'plan.json', crop='none')
  assert faults(store) == {'manifest.json'}
  edit(store / 'plan.json', crop=PLAN.crop)
  assert faults(store) == set()
  edit(store / 'manifest.json', shards=['d' * 64])
  assert faults(store) == {'manifest.json'}


def test_a_lost_plan_is_found(store):
  """The manifest has it too."""
  (store / 'plan.json').write_bytes(b'\0' * 9)
  assert faults(store) == {'plan.json'}
  (store / 'plan.json').unlink()
  assert faults(store) == {'plan.json'}
  (store / 'manifest.json').unlink()
  with pytest.raises(types.UserError, match=r'is no store: it has no plan\.json'):
    verify.verify(store)


@pytest.mark.parametrize(
  'changes, fault',
  [
    ({'plan': 'd' * 64}, 'belongs to another plan'),
    ({'labels': [0, 7]}, 'labels outside [0, 3), the number of classes'),
    ({'keys': ['3', '5']}, "keys are not unique and in order: '3' after '3'"),
    ({'keys': ['5', '4']}, "keys are not unique and in order: '4' after '5'"),
    ({'count': 1}, '1 examples, 2 keys, 2 labels, 0 of 2 skipped'),
  ],
)
def test_facts_that_cannot_be_right_are_found(store, changes, fault):
  edit(layout.facts_file(store, 1), **changes)
  assert f'shards/00001.json: {fault}' in verify.verify(store).text()


def test_a_store_that_was_made_before_facts_had_their_plan_is_sound(store):
  facts = layout.facts_file(store, 0)
  old = {name: value for name, value in json.loads(facts.read_text()).items() if name != 'plan'}
  facts.write_text(json.dumps(old))
  edit(layout.facts_file(store, 1), plan='')
  writer.finish(store, PLAN, store_files.LISTED, store_files.VERSIONS)
  assert verify.verify(store).faults == ()


def test_files_that_belong_to_nothing_are_found(store):
  names = {'notes.txt', 'shards/moments-00002.array_record', 'shards/.00000.0123456789ab.json'}
  for name in names:
    (store / name).write_text('')
  assert faults(store) == names


def test_missing_shards_of_an_unfinished_store_are_named(store):
  writer.reopen(store, 1)
  report = verify.verify(store)
  assert dict(report.faults) == {
    'manifest.json': 'is missing: the store is unfinished',
    'shards/00001.json': 'is missing: shard 1 is not finished',
  }
  assert report.examples == 3


def test_moments_that_are_not_finite_are_found_by_key(store):
  def change(example):
    if example.key == '4':
      example.columns['moments'][1, 0, 0, 0] = np.inf  # In the twin.
    return example

  rewrite(store, change)
  report = verify.verify(store)
  fault = ('shards/moments-00001.array_record', "moments of '4' are not finite")
  assert report.faults == (fault,)
