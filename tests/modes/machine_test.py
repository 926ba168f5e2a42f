"""What a machine lacks for a run is told before its workdir is touched."""

from helpers import small_runs
import pytest

from diversedit_jax import trees, types
from diversedit_jax.data import files
from diversedit_jax.modes import run_context, train


def test_a_disk_without_room_for_checkpoints(monkeypatch, tmp_path):
  monkeypatch.setattr(train.files, 'free_space', lambda folder: 1000)
  message = r'its disk has 1e-06 GB free, but 2 more checkpoints of [\d.e-]+ GB need'
  with pytest.raises(types.UserError, match=message):
    train.run(small_runs.make(), str(tmp_path / 'run'))
  assert list(tmp_path.iterdir()) == []


def test_data_that_cannot_be_copied(monkeypatch, tmp_path):
  experiment = small_runs.make()
  (tmp_path / 'cache').write_text('')
  folder = tmp_path / 'cache' / 'copy'
  refuse = lambda self: files.make_writable(folder, f'data.cache={folder}')
  monkeypatch.setattr(type(experiment.source), 'fetch', refuse)
  with pytest.raises(types.UserError, match='data.cache=.* cannot be written'):
    train.run(experiment, str(tmp_path / 'run'))
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  ('there', 'steps', 'every', 'keep', 'count'),
  [
    ([], 30, 10, 3, 3),  # All that there will be.
    ([], 35, 10, 5, 4),  # The last step is saved too.
    ([], 1000, 10, 3, 4),
    ([80, 90, 100], 1000, 10, 3, 1),
    ([100], 1000, 10, 1, 1),
    ([1000], 1000, 10, 3, 0),
  ],
)
def test_room_is_for_those_kept_at_once_and_what_a_failed_save_left_is_room(
  monkeypatch, tmp_path, there, steps, every, keep, count
):
  experiment = small_runs.make(
    train__steps=steps,
    checkpoint__every=every,
    checkpoint__keep=keep,
    optimizer__warmup_steps=0,
    train__averages=('0.5', 'std=0.1'),
  )
  trainable = run_context.make_trainable(experiment, run_context.make_mesh(experiment))
  size = 4 * trees.num_bytes(trainable.params) + trees.num_bytes(trainable.opt_state)
  for name in (*map(str, there), '7.orbax-checkpoint-tmp/params'):
    (tmp_path / 'checkpoints' / name).mkdir(parents=True)
  (tmp_path / 'checkpoints' / '7.orbax-checkpoint-tmp' / 'params' / 'x').write_bytes(b'x' * 100)
  for missing in (0, 1) if count else (0,):
    free = count * size - 100 - missing
    monkeypatch.setattr(train.files, 'free_space', lambda folder, free=free: free)
    if missing:
      with pytest.raises(types.UserError, match=f'but {count} more checkpoints'):
        train._check_space(experiment, trainable, tmp_path)
    else:
      train._check_space(experiment, trainable, tmp_path)
