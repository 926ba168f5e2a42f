"""Weights from elsewhere, as `--checkpoint` and `init_from` name them: a file, or a checkpoint."""

import dataclasses
import pathlib
from typing import Any

import numpy as np

from diversedit_jax import checkpoint, convert, paths, types
from diversedit_jax.data import files
from diversedit_jax.experiment import flat_config, published
from diversedit_jax.modes import averages
from diversedit_jax.weights import folders, location

# In a folder of other programs, also where a pipeline has the networks that are read here.
_NAMES = folders.names(('transformer', 'vae'))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Origin:
  """A file of weights, or the folder checkpoints/STEP of a run.

  path: absolute. step: training steps behind a checkpoint; None for a file.
  about: what the folder of a file says that `--mode=export` wrote; None for others.
  """

  path: pathlib.Path
  step: int | None
  about: published.Published | None = None

  @property
  def name(self) -> str:
    """What cards call it, see `location.name`; 'checkpoints/STEP' of a checkpoint."""
    if self.step is not None:
      return f'checkpoints/{self.step}'
    name = location.name(self.path)
    return f'{self.path.parent.name}/{name}' if self.about and name == self.path.name else name

  @property
  def run(self) -> pathlib.Path | None:
    """Directory of the run that the checkpoint is of, if its config lies there."""
    folder = self.path.parent.parent
    return folder if self.step is not None and (folder / 'config.json').is_file() else None

  def recorded(self, name: str, kind: type = dict) -> Any:
    """A JSON file of the run that the checkpoint is of, empty if there is none; it holds a `kind`.

    Raises:
      UserError: it is damaged.
    """
    return kind() if self.run is None else files.read_json(self.run / name, kind, may_lack=True)

  def choice(self, weights: str, key: str = 'sample.weights') -> averages.Choice:
    """What a text names among the weights of a checkpoint, see `averages.find`."""
    return averages.find(self.path, weights, main_decay(self.run), key)

  def arrays(self, choice: averages.Choice | None = None) -> dict[str, np.ndarray]:
    """All arrays by slash-joined path, on the host.

    choice: which weights of a checkpoint; a file holds one set.

    Raises:
      UserError: they cannot be read.
    """
    if choice is None:
      return convert.load(str(self.path))
    return averages.total(
      choice,
      lambda step, items: {k: checkpoint.read(self.path.with_name(str(step)), k) for k in items},
    )


def main_decay(run: pathlib.Path | None) -> float | None:
  """The decay of the main average of a run, None if it is not known."""
  stored = None if run is None else flat_config.stored(run)
  return None if stored is None else stored['train.ema_decay']


def run_at(text: str) -> pathlib.Path | None:
  """The directory of a run, on a disk or in a bucket, that a text names; None for all else."""
  if '://' in text and not paths.is_bucket(text):
    return None
  folder = paths.absolute(paths.path(text, bucket=True))
  return folder if flat_config.is_run(folder) else None


def find(origin: str) -> Origin:
  """What lies at a path, here or on the hub (see `location`); of a folder, its weights.

  Raises:
    UserError: nothing that holds weights; of a run's directory, its checkpoints are named.
  """
  if not origin:
    raise types.UserError('--checkpoint is empty: give a file of weights or checkpoints/STEP')
  path = paths.absolute(location.resolve(origin, _NAMES))
  path = next((path / name for name in _NAMES if (path / name).is_file()), path)
  if path.is_file():
    about = published.read(path) if path.name == published.MODEL else None
    return Origin(path=path, step=None, about=about)
  if path.is_dir() and path.name.isdigit():
    return Origin(path=path, step=int(path.name))
  if not path.exists():
    raise types.UserError(f'no weights at {path}: there is no such file or folder')
  steps = checkpoint.steps(path / 'checkpoints') or checkpoint.steps(path)
  if steps:
    inside = '' if path.name == 'checkpoints' else 'checkpoints/'
    raise types.UserError(
      f'{path} holds checkpoints of steps {steps}; name one, as {path}/{inside}{max(steps)}'
    )
  raise types.UserError(
    f'{path} is neither a file of weights nor a folder checkpoints/STEP of a run'
  )
