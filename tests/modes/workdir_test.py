"""Workdirs that modes refuse: without a run, without a checkpoint, or that cannot be written."""

import errno
import json
import pathlib

from helpers import small_runs
import pytest

from diversedit_jax import checkpoint, modes, types
from diversedit_jax.experiment import run_dir

CONFIG = json.dumps(small_runs.make_config().to_dict())


@pytest.mark.parametrize('mode', [modes.sample, modes.evaluate, modes.sweep, modes.analyze])
def test_a_run_that_one_may_only_read_is_refused_at_once_and_read_elsewhere(
  mode, tmp_path, monkeypatch
):
  """The tests may run as root, whom no mode of a file keeps from writing."""
  run, origin = tmp_path / 'run', f'{tmp_path}/run/checkpoints/30'
  for folder in (run / 'samples', pathlib.Path(origin)):
    folder.mkdir(parents=True)
  (run / 'config.json').write_text(CONFIG)
  folders, touch = [run, run / 'samples'], pathlib.Path.touch

  def refuse(path, *values, **more):
    if folders[0] == path.parent:
      raise PermissionError(errno.EACCES, 'Permission denied')
    touch(path, *values, **more)

  monkeypatch.setattr(pathlib.Path, 'touch', refuse)
  monkeypatch.setattr(checkpoint.Checkpoints, 'restore', None)
  for _ in range(2):
    with pytest.raises(types.UserError) as refused:
      mode.run(small_runs.make(), str(run), None)
    assert str(refused.value) == (
      f'workdir {run} cannot be written: Permission denied; --output=DIR writes results '
      f'elsewhere, and --checkpoint={origin} --workdir=DIR does too'
    )
    folders.reverse()
  assert run_dir.newest_checkpoint(str(run)) == origin
  with pytest.raises(types.UserError, match='no checkpoint in .*; train first'):
    run_dir.newest_checkpoint(str(tmp_path))


@pytest.mark.parametrize('mode', [modes.sample.run, modes.evaluate.run, modes.analyze.run])
def test_workdir_without_a_run_or_a_checkpoint_is_refused(mode, tmp_path):
  with pytest.raises(types.UserError, match=r'holds no run \(no config.json\); train first'):
    mode(small_runs.make(), str(tmp_path), None)
  (tmp_path / 'config.json').write_text(CONFIG)
  with pytest.raises(types.UserError, match='no checkpoint in .*; train first'):
    mode(small_runs.make(), str(tmp_path), None)
  assert [p.name for p in tmp_path.iterdir()] == ['config.json']
