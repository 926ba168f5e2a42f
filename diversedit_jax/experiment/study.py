"""Studies: variants of a config, each trained with the same seeds."""

from collections.abc import Iterator, Mapping, Sequence
import copy
import dataclasses
import re

import ml_collections

from diversedit_jax import types
from diversedit_jax.experiment import flat_config

_KEY = 'study'
_SHARD = re.compile(r'(\d+)/(\d+)')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """One run of a study: a variant with one seed. folder: its place below that of the study."""

  variant: str
  seed: int
  folder: str
  config: ml_collections.ConfigDict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
  """What is compared.

  title: in words, for figures. seeds: one run of each variant for each of them.
  variants: configs by name, the baseline first.
  """

  title: str
  seeds: tuple[int, ...]
  variants: Mapping[str, ml_collections.ConfigDict]

  @property
  def baseline(self) -> str:
    """The variant that the others are compared with."""
    return next(iter(self.variants))

  def runs(self) -> Iterator[Run]:
    """All runs, seed by seed, so that a study which is stopped early has whole comparisons."""
    for seed in self.seeds:
      for name, config in self.variants.items():
        seeded = copy.deepcopy(config)
        seeded.seed = seed
        yield Run(variant=name, seed=seed, folder=f'{_slug(name)}/seed-{seed}', config=seeded)

  def changes(self, name: str) -> dict[str, object]:
    """What a variant sets otherwise than the baseline, by key of the config."""
    ours, base = (flat_config.of(self.variants[key]) for key in (name, self.baseline))
    return {key: to for key, (_, to) in flat_config.differences(base, ours).items()}


def config(
  title: str, variants: Mapping[str, ml_collections.ConfigDict], seeds: Sequence[int]
) -> ml_collections.ConfigDict:
  """The config of a study, as `configs/studies/` return it."""
  listed = [ml_collections.ConfigDict({'name': k, 'config': v}) for k, v in variants.items()]
  study = {'title': title, 'seeds': tuple(seeds), 'variants': tuple(listed)}
  return ml_collections.ConfigDict({_KEY: study})


def is_study(given: ml_collections.ConfigDict) -> bool:
  """Whether a config is of several runs."""
  return _KEY in given


def variants(given: ml_collections.ConfigDict) -> list[ml_collections.ConfigDict]:
  """The configs of a study, to be changed in place."""
  return [one.config for one in given[_KEY].variants]


def read(given: ml_collections.ConfigDict) -> Study:
  """The study that a config holds.

  Raises:
    UserError: it is of one run; or has no variants, no seeds, or names or seeds twice.
  """
  if not is_study(given):
    raise types.UserError(
      'this config is one experiment; --mode=study takes a study, as '
      '--config=configs/studies/digits_parts.py'
    )
  told = given[_KEY]
  named = {one.name: one.config for one in told.variants}
  folders = {_slug(name) for name in named}
  if not named or not len(named) == len(told.variants) == len(folders):
    raise types.UserError(
      f'a study needs variants whose names differ in letters or digits, got {list(named)}'
    )
  if not told.seeds or len(set(told.seeds)) < len(told.seeds):
    raise types.UserError(f'a study needs different seeds, got {tuple(told.seeds)}')
  return Study(title=told.title, seeds=tuple(told.seeds), variants=named)


def shard(runs: Sequence[Run], part: str) -> list[Run]:
  """The runs of part 'i/n', i from 1 to n; every n-th.

  Raises:
    UserError: for another form, or a part that does not exist.
  """
  found = _SHARD.fullmatch(part)
  index, count = map(int, found.groups()) if found else (0, 0)
  if not 1 <= index <= count:
    raise types.UserError(f'--shard={part} must be i/n with i from 1 to n, as 1/4')
  return list(runs[index - 1 :: count])


def _slug(name):
  return re.sub(r'[^a-z0-9.]+', '-', name.lower()).strip('-.') or 'plain'
