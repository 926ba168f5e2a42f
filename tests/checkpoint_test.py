"""Checkpoints: exact, item by item, never spoiled, and readable when the newest is damaged."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import checkpoint, sharding, types


@pytest.fixture
def items():
  key = jax.random.key(0)
  tree = {'model': {'w': jax.random.normal(key, (64, 64)), 'b': jnp.arange(3.0)}}
  return {'params': tree, 'ema': jax.tree.map(lambda x: x * 0.5, tree)}


def targets(items, *names):
  placed = sharding.replicated(sharding.make_mesh())
  return {
    name: checkpoint.restore_target(items[name], jax.tree.map(lambda _: placed, items[name]))
    for name in names or items
  }


def truncate(folder):
  """Cuts every data file of a checkpoint in half, as a full disk or a lost machine would."""
  files = [f for f in pathlib.Path(folder).rglob('*') if f.is_file() and f.stat().st_size > 1000]
  assert files
  for file in files:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


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

  again.set_aside([2])
  assert again.steps() == [1]
  assert (tmp_path / 'damaged_checkpoints' / '2').is_dir()
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


def test_a_full_disk_is_one_line_and_the_last_good_checkpoint_stays(tmp_path, items, monkeypatch):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  checkpoints.save(1, items, {})
  checkpoints.wait()
  (tmp_path / 'c' / '2.orbax-checkpoint-tmp').mkdir()

  def full():
    """What TensorStore says."""
    raise ValueError('RESOURCE: write() failed: /c/2/params/x: No space left on device')

  with monkeypatch.context() as patched:
    patched.setattr(checkpoints._manager, 'wait_until_finished', full)
    with pytest.raises(types.UserError) as failed:
      checkpoints.wait()
  assert str(failed.value) == (
    'a checkpoint could not be written: /c/2/params/x: No space left on device; free space there, '
    f'or give a folder on another disk; last good checkpoint: {tmp_path}/c/1, from which the same '
    'command goes on'
  )
  checkpoints.close()
  again = checkpoint.Checkpoints(tmp_path / 'c')
  assert again.restore(targets(items))[0] == 1
  assert not (tmp_path / 'c' / '2.orbax-checkpoint-tmp').exists()


def test_of_several_forms_that_is_read_which_is_there(tmp_path, items):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  checkpoints.save(1, items, {})
  checkpoints.wait()
  wanted, other = targets(items)['params'], targets({'params': (items['params'],)})['params']
  for forms in ((wanted, other), (other, wanted)):
    _, got, _ = checkpoints.restore({'params': checkpoint.OneOf(forms)})
    jax.tree.map(np.testing.assert_array_equal, got['params'], items['params'])
  with pytest.raises(
    types.UserError, match=r'params/0/model/w: found nothing, expected \(64, 64\)'
  ):
    checkpoints.restore({'params': checkpoint.OneOf((other,))})


def test_busy_store_is_not_taken_for_damage(tmp_path, items, monkeypatch):
  checkpoints = checkpoint.Checkpoints(tmp_path / 'c')
  checkpoints.save(1, items, {})
  checkpoints.save(2, items, {})
  checkpoints.wait()

  def busy(self, step, wanted):
    raise RuntimeError('RESOURCE_EXHAUSTED: too many requests')

  monkeypatch.setattr(checkpoint.Checkpoints, '_read', busy)
  with pytest.raises(RuntimeError, match='RESOURCE_EXHAUSTED'):
    checkpoints.restore(targets(items))
  assert checkpoints.steps() == [1, 2]
