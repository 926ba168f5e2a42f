"""What a machine lacks for a run is told before its workdir is touched."""

from helpers import small_runs
import pytest

from diversedit_jax import types
from diversedit_jax.modes import train


def test_a_disk_without_room_for_one_checkpoint(monkeypatch, tmp_path):
  monkeypatch.setattr(train.files, 'free_space', lambda folder: 1000)
  with pytest.raises(types.UserError, match=r'a checkpoint has 0.00 GB, and its disk has 0.00 GB'):
    train.run(small_runs.make(), str(tmp_path / 'run'))
  assert list(tmp_path.iterdir()) == []
