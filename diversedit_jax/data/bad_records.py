"""Records that cannot be read: replaced by the next good one, counted, and no more than allowed.

What stands in for a record is a function of its index alone, so a run that continues, and one on
other processes, sees the same examples.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import pathlib
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from diversedit_jax import types
from diversedit_jax.data import files
from diversedit_jax.data.sources import base

FILE = 'bad_records.json'
KEY = 'bad'
"""Key of a batch: the index of the record that a row should hold, -1 where it does, int64 [n]."""


class Replacing:
  """Gathers from a source, with good records in the place of bad ones, and `KEY` in the batch.

  source: the examples. limit: how many distinct bad ones are borne.
  """

  def __init__(self, source: base.Source, limit: int):
    self._source, self._limit = source, limit
    self._bad: dict[int, str] = {}

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """See `base.Source`.

    Raises:
      UserError: more are bad than may be; the last one is named.
    """
    stand_in = np.array([self._good(i, known_only=True) for i in indices.tolist()], np.int64)
    try:
      batch = self._source.gather(stand_in, flips)
    except base.BadExample:  # Rare, so all are looked at one by one.
      stand_in = np.array([self._good(i) for i in indices.tolist()], np.int64)
      batch = self._source.gather(stand_in, flips)
    return batch | {KEY: np.where(stand_in == indices, -1, indices).astype(np.int64)}

  def _good(self, index, *, known_only=False):
    """The first good record from an index on."""
    while index in self._bad or not (known_only or self._is_good(index)):
      index = (index + 1) % len(self._source)
    return index

  def _is_good(self, index):
    try:
      self._source.gather(np.array([index]))
      return True
    except base.BadExample as error:
      self._bad[index] = error.reason
      if len(self._bad) > self._limit:
        raise types.UserError(
          f'{error}. It is bad record {len(self._bad)}; data.max_bad={self._limit} are borne'
        ) from error
      logging.warning(
        '%s: the next good record takes the place of %s', self._source.name, error.reason
      )
      return False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Count:
  """The distinct bad records that a run has met, and the step at which each was first.

  Each process writes what it meets at once, before a checkpoint can be there that counts on it.

  path: JSON file of the first process that keeps them over restarts; those of others lie beside it.
  limit: how many are borne.
  """

  path: pathlib.Path
  limit: int
  met: dict[int, int] = dataclasses.field(default_factory=dict)

  def counted(self, batches: Iterable[tuple[np.ndarray | None, Any]], start: int) -> Iterator[Any]:
    """Batches of the steps after `start` as they are used, each with its row `KEY` taken off.

    Not where they are made, which is ahead: what a row counts is what its steps have met.
    """
    self._start(start)
    for step, (bad, batch) in enumerate(batches, start + 1):
      if bad is not None:
        self.note(step, bad)
      yield batch

  def _start(self, step):
    """Forgets what a run had met after the step from which it goes on."""
    self.met.clear()
    for known in _kept(self.path.parent).values():
      self._take((index, at) for index, at in known.items() if at <= step)
    self._check(step)

  def _take(self, pairs):
    for index, step in pairs:
      self.met[index] = min(step, self.met.get(index, step))

  def note(self, step: int, bad: np.ndarray) -> None:
    """Takes the row `KEY` of the batch of a step.

    Raises:
      UserError: more were met than may be.
    """
    new = [index for index in np.unique(bad[bad >= 0]).tolist() if index not in self.met]
    if new:
      self.met.update(dict.fromkeys(new, step))
      number = jax.process_index()
      mine = self.path.with_stem(f'{self.path.stem}.{number}') if number else self.path
      files.write_json(mine, self.met)
    self._check(step)

  def join(self) -> None:
    """Takes what other processes have met; all must call it."""
    mine = np.full((self.limit + 1, 2), -1, np.int64)
    met = sorted(self.met.items())
    mine[: len(met)] = np.reshape(met, (-1, 2))
    every = np.reshape(multihost_utils.process_allgather(mine), (-1, 2)).tolist()
    self._take((index, step) for index, step in every if index >= 0)
    self._check(max(self.met.values(), default=0))

  def _check(self, step):
    if len(self.met) > self.limit:
      raise types.UserError(
        f'{len(self.met)} bad records were met by step {step}, data.max_bad={self.limit} borne: '
        f'{", ".join(map(str, sorted(self.met)[:20]))}'
      )


def forget_after(folder: pathlib.Path, step: int) -> None:
  """Takes later steps off the files in a run's directory, which goes back to this one."""
  for path, known in _kept(folder).items():
    files.write_json(path, {index: at for index, at in known.items() if at <= step})


def _kept(folder):
  """What the processes of a run have met, file by file."""
  found = {path: files.read_json(path) for path in folder.glob(FILE.replace('.', '*.'))}
  return {path: {int(i): at for i, at in known.items()} for path, known in found.items()}
