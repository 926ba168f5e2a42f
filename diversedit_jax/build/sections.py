"""The sections of a config that steer a run as checked dataclasses, and how one is made."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any, TypeVar

from diversedit_jax import trees, types

T = TypeVar('T')


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataOptions:
  """source: see `data.sources.open_source`. prefetch: batches kept ready.

  num_classes: of labels; None is what the source has.
  """

  source: str
  num_classes: int | None
  prefetch: int

  def __post_init__(self):
    at_least('data', 'prefetch', self.prefetch, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions:
  """Length and statistics of training; see `configs.common.base`."""

  steps: int
  batch_size: int
  accumulate: int
  label_dropout: float
  ema_decay: float

  def __post_init__(self):
    for name in ('steps', 'batch_size', 'accumulate'):
      at_least('train', name, getattr(self, name), 1)
    if not 0 <= self.ema_decay < 1:
      raise types.UserError(f'train.ema_decay must lie in [0, 1), got {self.ema_decay}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshOptions:
  """Devices per mesh axis; one may be -1. 'fsdp' splits the state, 'tensor' the matrices."""

  data: int
  fsdp: int
  tensor: int

  def __post_init__(self):
    for name in ('data', 'fsdp', 'tensor'):
      if getattr(self, name) < 1 and getattr(self, name) != -1:
        raise types.UserError(f'mesh.{name} must be positive or -1, got {getattr(self, name)}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogOptions:
  """Intervals in steps; telemetry_every = 0 is off."""

  every: int
  telemetry_every: int
  telemetry_examples: int
  tensorboard: bool

  def __post_init__(self):
    at_least('log', 'every', self.every, 1)
    at_least('log', 'telemetry_every', self.telemetry_every, 0)
    at_least('log', 'telemetry_examples', self.telemetry_examples, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
  """every: steps. keep: how many of the newest. keep_every: these stay for ever; 0 is off."""

  every: int
  keep: int
  keep_every: int

  def __post_init__(self):
    at_least('checkpoint', 'every', self.every, 1)
    at_least('checkpoint', 'keep', self.keep, 1)
    at_least('checkpoint', 'keep_every', self.keep_every, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewOptions:
  """every: steps; 0 is off. rows: one class each. columns: samples of each class."""

  every: int
  rows: int
  columns: int

  def __post_init__(self):
    at_least('preview', 'every', self.every, 0)
    at_least('preview', 'rows', self.rows, 1)
    at_least('preview', 'columns', self.columns, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions:
  """Which weights make how many samples of which labels, from which seed."""

  seed: int
  batch_size: int
  weights: str
  number: int
  labels: str

  def __post_init__(self):
    trees.check_known('sample.weights', self.weights, ('ema', 'params'))
    at_least('sample', 'seed', self.seed, 0)
    at_least('sample', 'batch_size', self.batch_size, 1)
    at_least('sample', 'number', self.number, 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions:
  """name: of the reference, which also names the result file. number: of samples."""

  name: str
  number: int

  def __post_init__(self):
    trees.check_known('eval.name', self.name, ('digits',))
    at_least('eval', 'number', self.number, 2)


def splat(cls: type[T], section: Mapping[str, Any], name: str, **extra: Any) -> T:
  """An instance of a dataclass from a config section; `extra` fields do not come from the config.

  Raises:
    UserError: naming unknown keys (and the nearest) and missing ones.
  """
  fields = [f for f in dataclasses.fields(cls) if f.name not in extra]
  required = [f.name for f in fields if f.default is dataclasses.MISSING]
  check_keys(f'config.{name}', section, [f.name for f in fields], required)
  return cls(**dict(section), **extra)


def check_keys(
  where: str, section: Mapping[str, Any], known: Iterable[str], required: Iterable[str] = ()
) -> None:
  """Refuses unknown keys, naming the nearest, and missing ones (UserError)."""
  for key in section:
    if key not in known:
      raise types.UserError(f'unknown key {where}.{key}{trees.did_you_mean(key, known)}')
  missing = [key for key in required if key not in section]
  if missing:
    raise types.UserError(f'{where} lacks {", ".join(missing)}')


def at_least(section: str, field: str, value: float, low: float) -> None:
  """Refuses a value below `low` (UserError)."""
  if value < low:
    raise types.UserError(f'{section}.{field} must be at least {low}, got {value}')
