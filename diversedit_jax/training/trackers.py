"""Weights & Biases or Trackio as one more place where a run is shown (`log.tracker`).

Both are offline unless their own variables say otherwise. A run is known by a hash of its workdir,
so that one that continues stays one run. What they raise ends them, not training (`writers`).
"""

from collections.abc import Callable, Mapping
import contextlib
import hashlib
import importlib.util
import math
import os
import pathlib
import sys
from typing import Any

import numpy as np
from PIL import Image

from diversedit_jax import paths, types
from diversedit_jax.training import writers

PROJECT = 'diversedit_jax'
_STEP = 'step'


def run_id(workdir: pathlib.Path) -> str:
  """The name of a run in a tracker: the same for the same place, however it was written."""
  place = str(workdir) if paths.is_bucket(workdir) else str(workdir.resolve())
  return hashlib.sha256(os.fsencode(place)).hexdigest()[:16]


def check(name: str) -> None:
  """Refuses a tracker that is not installed (UserError)."""
  if name == 'none':
    return
  found = importlib.util.find_spec(name)
  if found is None or found.origin is None:  # A folder of that name, in which runs were kept.
    raise types.UserError(
      f"log.tracker={name!r}: the package {name} is not installed: pip install -e '.[{name}]', or "
      'leave log.tracker out'
    )


def opener(
  name: str, workdir: pathlib.Path, config: Mapping[str, Any]
) -> tuple[str, Callable[[], writers.Sink]] | None:
  """The tracker as `writers.Writer` takes it; None for 'none'. config: flat."""
  return None if name == 'none' else (name, lambda: _TRACKERS[name](workdir, config))


class _Wandb:
  """A run of Weights & Biases, below the workdir in `wandb/`."""

  def __init__(self, workdir, config):
    import wandb

    self._wandb = wandb
    self._run = wandb.init(
      project=os.environ.get('WANDB_PROJECT', PROJECT),
      id=run_id(workdir),
      name=workdir.name,
      config=dict(config),
      dir=None if paths.is_bucket(workdir) else str(workdir),
      mode=os.environ.get('WANDB_MODE', 'offline'),
      resume='allow',
      # The console's lines, the source and the repository are none of its business.
      settings=wandb.Settings(console='off', disable_git=True, save_code=False),
    )
    # Its own count of steps never goes back; a run that continues from a checkpoint does.
    self._run.define_metric(_STEP)
    self._run.define_metric('*', step_metric=_STEP)

  def scalars(self, step, values):
    self._run.log({_STEP: step, **values})

  def images(self, step, images):
    shown = {name: self._wandb.Image(sheet(x_NHWC)) for name, x_NHWC in images.items()}
    self._run.log({_STEP: step, **shown})

  def close(self):
    self._run.finish()


class _Trackio:
  """A run of Trackio, in its own folder of this user; `trackio show` has the dashboard."""

  def __init__(self, workdir, config):
    with contextlib.redirect_stdout(sys.stderr):  # It tells where it writes.
      import trackio

      self._trackio = trackio
      name = f'{workdir.name}-{run_id(workdir)}'
      project = os.environ.get('TRACKIO_PROJECT', PROJECT)
      self._run = trackio.init(project=project, name=name, config=dict(config), resume='allow')

  def scalars(self, step, values):
    self._run.log(dict(values), step=step)

  def images(self, step, images):
    shown = {name: self._trackio.Image(sheet(x_NHWC)) for name, x_NHWC in images.items()}
    self._run.log(shown, step=step)

  def close(self):
    with contextlib.redirect_stdout(sys.stderr):
      self._trackio.finish()  # Not the run's own, after which it would be finished again at exit.


_TRACKERS = {'wandb': _Wandb, 'trackio': _Trackio}
NAMES = ('none', *_TRACKERS)


def sheet(x_NHWC: np.ndarray) -> Image.Image:
  """Images side by side on one, in rows, about as many as columns; what is left over is black."""
  levels = writers.levels(np.asarray(x_NHWC))
  n, h, w, c = levels.shape
  columns = math.isqrt(n - 1) + 1
  rows = -(-n // columns)
  padded = np.zeros((rows * columns, h, w, c), np.uint8)
  padded[:n] = levels
  page = padded.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
  return Image.fromarray(page[..., 0] if c == 1 else page)
