"""Checkpoints: exact, item by item, never spoiled, and readable when the newest is damaged."""

import contextlib
import errno
import json
import pathlib
import re
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import checkpoint, integrity, restore_targets, sharding, trees, types


@pytest.fixture(autouse=True)
def pauses(monkeypatch):
  """How long reads waited, without waiting."""
  waited = []
  monkeypatch.setattr(integrity.time, 'sleep', waited.append)
  return waited


@pytest.fixture
def items():
  key = jax.random.key(0)
  tree = {'model': {'w': jax.random.normal(key, (64, 64)), 'b': jnp.arange(3.0)}}
  return {'params': tree, 'ema': jax.tree.map(lambda x: x * 0.5, tree)}


def targets(items, *names):
  placed = sharding.replicated(sharding.make_mesh())
  return {
    name: restore_targets.make(items[name], jax.tree.map(lambda _: placed, items[name]))
    for name in names or items
  }


def truncate(folder):
  """Cuts every data file of a checkpoint in half, as a full disk or a lost machine would."""
  files = [f for f in pathlib.Path(folder).rglob('*') if f.is_file() and f.stat().st_size > 1000]
  assert files
  for file in files:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def test_an_item_that_was_never_there_is_left_out_and_one_that_was_lost_is_damage(
  tmp_path, items, caplog
):
  more = 'ema@std=0.1'
  with contextlib.closing(checkpoint.Checkpoints(tmp_path / 'c', more=[more])) as checkpoints:
    checkpoints.save(1, items, {'step': 1})
    checkpoints.save(2, items | {more: items['ema']}, {'step': 2})
  assert checkpoint.items(tmp_path / 'c' / '2') == ['params', 'ema', more]
  wanted = targets(items) | {more: restore_targets.IfThere(targets(items)['ema'])}
  for lost, expected in ((False, 2), (True, 1)):
    if lost:
      (tmp_path / 'c' / '2' / more).rename(tmp_path / 'lost')
    with contextlib.closing(checkpoint.Checkpoints(tmp_path / 'c', more=[more])) as checkpoints:
      step, got, _ = checkpoints.restore(wanted)
    assert step == expected and (more in got) == (not lost)
  assert f'{more} is missing, which was written' in caplog.text
  assert checkpoint.read_meta(tmp_path / 'c' / '1') == {'step': 1}


def test_round_trip_is_exact_and_items_stand_alone(tmp_path, items):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  checkpoints.save(3, items, {'step': 3, 'metrics': {'sums': {'loss': 0.1 + 0.2}}})
  checkpoints.close()
  again = checkpoint.Checkpoints(tmp_path / 'c')
  step, got, meta = again.restore(targets(items))
  assert step == 3 and meta['metrics']['sums']['loss'] == 0.1 + 0.2
  jax.tree.map(np.testing.assert_array_equal, got, items)
  _, alone, _ = again.restore(targets(items, 'ema'))
  assert list(alone) == ['ema']
  jax.tree.map(np.testing.assert_array_equal, alone['ema'], items['ema'])


def test_one_item_is_read_without_knowing_its_shapes(tmp_path, items):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  checkpoints.save(3, items, {})
  checkpoints.close()
  got = checkpoint.read(tmp_path / 'c' / '3', 'ema')
  assert {type(x) for x in got.values()} == {np.ndarray}
  for name in ('b', 'w'):
    np.testing.assert_array_equal(got[f'model/{name}'], items['ema']['model'][name])
  truncate(tmp_path / 'c' / '3' / 'ema')
  for item in ('ema', 'opt'):
    with pytest.raises(types.UserError, match=rf'c/3/{item} cannot be read'):
      checkpoint.read(tmp_path / 'c' / '3', item)


def test_retention(tmp_path, items):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep=2, keep_every=4)
  for step in range(2, 12, 2):
    checkpoints.save(step, items, {})
    checkpoints.wait()
  assert checkpoints.steps() == [4, 8, 10]


def test_damaged_checkpoint_falls_back_with_a_warning_and_its_step_can_be_written_again(
  tmp_path, items, caplog
):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  for step in (1, 2):
    checkpoints.save(step, items, {'step': step})
  checkpoints.close()
  truncate(tmp_path / 'c' / '2')
  again = checkpoint.Checkpoints(tmp_path / 'c')
  with caplog.at_level('WARNING'):
    step, got, meta = again.restore(targets(items))
  assert step == 1 == meta['step']
  assert 'cannot be read' in caplog.text
  jax.tree.map(np.testing.assert_array_equal, got, items)

  for name in ('2', '2-2'):  # From before; what lay between was taken away.
    (tmp_path / 'damaged_checkpoints' / name / 'params').mkdir(parents=True)
  again.set_aside([2])
  assert again.steps() == [1]
  assert (tmp_path / 'damaged_checkpoints' / '2-1' / 'meta').is_dir()
  again.save(2, items, {'step': 2})
  again.close()
  assert checkpoint.Checkpoints(tmp_path / 'c').restore(targets(items))[0] == 2


def test_all_damaged_or_none_is_an_error(tmp_path, items):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  with pytest.raises(types.UserError, match='no checkpoint in'):
    checkpoints.restore(targets(items))
  checkpoints.save(1, items, {})
  checkpoints.wait()
  with pytest.raises(types.UserError, match='no checkpoint of step 7'):
    checkpoints.restore(targets(items), 7)
  truncate(tmp_path / 'c' / '1')
  with pytest.raises(types.UserError, match='no readable checkpoint'):
    checkpoints.restore(targets(items))


def test_huge_numbers_are_finite(tmp_path, items):
  """Though their sum is not."""
  huge = items | {'ema': jax.tree.map(lambda x: jnp.full_like(x, 3e38), items['ema'])}
  checkpoints = checkpoint.Checkpoints(str(tmp_path))
  checkpoints.save(1, huge, {})
  checkpoints.close()
  assert checkpoints.steps() == [1]


def test_non_finite_state_is_never_written(tmp_path, items):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  checkpoints.save(1, items, {})
  spoiled = items | {'ema': {'model': {'w': jnp.full((2, 2), jnp.nan)}}}
  with pytest.raises(types.UserError, match=r'step 2 not written: ema not finite; last good .*/1'):
    checkpoints.save(2, spoiled, {})
  assert checkpoints.steps() == [1]


def test_other_arrays_are_named_and_not_taken_for_damage(tmp_path, items, caplog):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  checkpoints.save(1, items, {})
  checkpoints.close()
  again = checkpoint.Checkpoints(tmp_path / 'c')
  narrower = {'params': {'model': {'w': jnp.zeros((8, 8)), 'b': items['params']['model']['b']}}}
  with pytest.raises(
    types.UserError, match=r'params/model/w: found \(64, 64\), expected \(8, 8\)$'
  ):
    again.restore(targets(narrower))
  assert 'cannot be read' not in caplog.text


@contextlib.contextmanager
def no_larger_files(size):
  """Writes beyond a size fail with EFBIG, as they do with ENOSPC on a full disk."""
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_ends_nothing_and_the_last_good_checkpoint_stays_known(tmp_path, caplog):
  items = {'params': {'w': jax.random.normal(jax.random.key(0), (256, 256))}}
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c', keep=1)
  checkpoints.save(1, items, {})
  checkpoints.wait()
  told = (
    rf'a checkpoint could not be written: .*File too large; .*last good checkpoint: {tmp_path}/c/1'
  )
  with no_larger_files(1 << 16):
    checkpoints.save(2, items, {})
    until = time.monotonic() + 60
    while 'training goes on' not in caplog.text and time.monotonic() < until:
      checkpoints.look()  # As at each report, so nobody waits for the next save to hear of it.
    assert re.search(f'{told}; training goes on', caplog.text)
    assert checkpoints.steps() == [1] and (tmp_path / 'c' / '1').is_dir()
    checkpoints.save(3, items, {})
    with pytest.raises(types.UserError, match=f'{told}, from which the same command goes on'):
      checkpoints.wait()
  assert [path.name for path in (tmp_path / 'c').iterdir()] == ['1']  # Half of 2 takes no space.
  checkpoints.save(4, items, {'step': 4})
  checkpoints.close()
  assert checkpoints.steps() == [4]
  assert checkpoint.Checkpoints(tmp_path / 'c').restore(targets(items))[2] == {'step': 4}


def test_of_several_forms_that_is_read_which_is_there(tmp_path, items):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  checkpoints.save(1, items, {})
  checkpoints.wait()
  wanted, other = targets(items)['params'], targets({'params': (items['params'],)})['params']
  for forms in ((wanted, other), (other, wanted)):
    _, got, _ = checkpoints.restore({'params': restore_targets.OneOf(forms)})
    jax.tree.map(np.testing.assert_array_equal, got['params'], items['params'])
  with pytest.raises(
    types.UserError, match=r'params/0/model/w: found nothing, expected \(64, 64\)'
  ):
    checkpoints.restore({'params': restore_targets.OneOf((other,))})


def failing(monkeypatch, *errors):
  """Makes reads raise these errors, and then succeed."""
  left, read = list(errors), checkpoint.Checkpoints._read

  def attempt(self, *args):
    if left:
      raise left.pop(0)
    return read(self, *args)

  monkeypatch.setattr(checkpoint.Checkpoints, '_read', attempt)


STALE = OSError(errno.ESTALE, 'Stale file handle')
PASSING = [
  STALE,
  OSError(errno.EIO, 'Input/output error'),
  TimeoutError('timed out'),
  ValueError('UNAVAILABLE: Error reading "a/0" in OCDBT database'),
  ValueError("Error reading local file [os_error_code='116']"),
  RuntimeError('RESOURCE_EXHAUSTED: too many requests'),
]


@pytest.mark.parametrize('error', PASSING, ids=str)
def test_an_error_that_passes_is_waited_for(tmp_path, items, monkeypatch, pauses, error):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  for step in (1, 2):
    checkpoints.save(step, items, {})
  checkpoints.wait()
  failing(monkeypatch, error, error, error)
  assert checkpoints.restore(targets(items))[0] == 2
  assert pauses == [1, 2, 5]
  failing(monkeypatch, *[error] * 7)
  with pytest.raises(types.UserError, match=r'c/2 cannot be read just now: .*nothing was changed'):
    checkpoints.restore(targets(items))
  assert checkpoints.steps() == [1, 2]


def test_what_may_not_be_read_is_no_damage_and_nothing_to_wait_for(
  tmp_path, items, monkeypatch, pauses
):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  checkpoints.save(1, items, {})
  checkpoints.wait()
  failing(monkeypatch, PermissionError(errno.EACCES, 'Permission denied', '/c/1'))
  with pytest.raises(types.UserError, match='c/1 cannot be read: /c/1: Permission denied; give'):
    checkpoints.restore(targets(items))
  assert pauses == []


def test_damage_must_be_seen_twice(tmp_path, items, monkeypatch, pauses):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  for step in (1, 2):
    checkpoints.save(step, items, {})
  checkpoints.wait()
  damage = ValueError('DATA_LOSS: CRC-32C checksum verification failed')
  failing(monkeypatch, damage, STALE, damage)
  assert checkpoints.restore(targets(items))[0] == 2
  failing(monkeypatch, damage, STALE, damage, damage)
  assert checkpoints.restore(targets(items))[0] == 1


def largest(folder):
  return max((f for f in folder.rglob('*') if f.is_file()), key=lambda file: file.stat().st_size)


def flip(file, place):
  data = bytearray(file.read_bytes())
  data[place] ^= 4
  file.write_bytes(data)


def test_a_bit_that_flips_among_the_numbers_is_found_which_orbax_does_not(tmp_path, items, caplog):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  for step in (1, 2):
    checkpoints.save(step, items, {'step': step})
  checkpoints.close()
  data = largest(tmp_path / 'c' / '2' / 'ema')
  flip(data, data.stat().st_size // 2)
  again = checkpoint.Checkpoints(tmp_path / 'c')
  assert again.restore(targets(items))[0] == 1
  assert 'c/2 cannot be read (Damaged: not as written: ema/model/w)' in caplog.text
  assert again.restore(targets(items, 'params'))[0] == 2
  with pytest.raises(types.UserError, match='c/2/ema cannot be read: .*not as written: ema/model'):
    checkpoint.read(tmp_path / 'c' / '2', 'ema')
  checkpoint.read(tmp_path / 'c' / '2', 'params')
  flip(tmp_path / 'c' / '1' / 'meta' / 'metadata', 9)  # A digit or a name, and JSON as before.
  with pytest.raises(types.UserError, match=r'1: Damaged: meta is not what was written'):
    again.restore(targets(items))


def test_a_checkpoint_from_before_there_were_checksums_is_read(tmp_path, items):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  checkpoints.save(1, items, {'step': 1, 'metrics': {}})
  checkpoints.wait()
  meta = tmp_path / 'c' / '1' / 'meta' / 'metadata'
  assert set(json.loads(meta.read_text())) == {'step', 'metrics', 'checksums', 'seal'}
  meta.write_text('{"step": 1, "metrics": {}}')
  _, got, found = checkpoints.restore(targets(items))
  assert found == {'step': 1, 'metrics': {}}
  jax.tree.map(np.testing.assert_array_equal, got, items)
  assert (
    checkpoint.read(tmp_path / 'c' / '1', 'ema').keys() == trees.named_leaves(items['ema']).keys()
  )
