"""Trackers: which run they are told of, and that training does not depend on them.

Their packages are not among those of the tests; docs/seeing.md says what was seen with them.
"""

import importlib.machinery
import pathlib

import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.training import trackers, writers


def test_a_run_is_one_run_wherever_it_is_looked_at_from(tmp_path, monkeypatch):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'link').symlink_to(tmp_path / 'a')
  monkeypatch.chdir(tmp_path)
  places = [tmp_path / 'a', pathlib.Path('a'), pathlib.Path('../') / tmp_path.name / 'link']
  (name,) = {trackers.run_id(place) for place in places}
  assert len(name) == 16 and name.isalnum()
  assert trackers.run_id(tmp_path / 'b') != name


@pytest.mark.parametrize('found', [None, importlib.machinery.ModuleSpec('wandb', None)])
def test_a_tracker_that_is_not_installed_is_refused_with_the_way_on(found, monkeypatch):
  """A folder `wandb`, in which runs were kept, is no package."""
  monkeypatch.setattr(trackers.importlib.util, 'find_spec', lambda name: found)
  with pytest.raises(types.UserError, match=r"pip install -e '\.\[wandb\]'"):
    trackers.check('wandb')
  trackers.check('none')
  assert trackers.opener('none', pathlib.Path('run'), {}) is None


class Failing:
  """A sink of which one method raises what is no OSError."""

  def __init__(self, method, seen):
    self._method, self._seen = method, seen

  def __getattr__(self, name):
    def call(*unused):
      self._seen.append(name)
      if name == self._method:
        raise RuntimeError('no network')

    return call


@pytest.mark.parametrize('method', ['open', 'scalars', 'images', 'close'])
def test_a_failing_tracker_is_told_of_once_and_stops_nothing_else(tmp_path, method, caplog):
  seen = []

  def opened():
    if method == 'open':
      raise RuntimeError('no network')
    return Failing(method, seen)

  writer = writers.Writer(
    tmp_path, start_step=0, tensorboard=True, active=True, tracker=('wandb', opened)
  )
  for step in (1, 2):
    writer.row(step, {'loss': 1.0})
    writer.images(step, {'preview': np.zeros((1, 8, 8, 3), np.uint8)})
  writer.close()
  (told,) = (record.getMessage() for record in caplog.records)
  assert told == 'training goes on without wandb: RuntimeError: no network'
  assert [row['step'] for row in writers.read_jsonl(tmp_path / 'metrics.jsonl')] == [1, 2]
  assert len(list((tmp_path / 'tensorboard').iterdir())) == 1
  every = ['scalars', 'images', 'scalars', 'images', 'close']
  assert (
    seen
    == {
      'open': [],
      'scalars': ['scalars', 'close'],
      'images': ['scalars', 'images', 'close'],
      'close': [*every, 'close'],
    }[method]
  )


@pytest.mark.parametrize('channels', [1, 3])
def test_pictures_are_shown_on_one(channels):
  x_NHWC = np.random.default_rng(0).integers(0, 256, (5, 2, 3, channels), np.uint8)
  page = np.asarray(trackers.sheet(x_NHWC)).reshape(4, 9, channels)  # Two rows of three.
  for i in range(6):
    row, column = divmod(i, 3)
    found = page[2 * row : 2 * row + 2, 3 * column : 3 * column + 3]
    np.testing.assert_array_equal(found, x_NHWC[i] if i < 5 else 0)
