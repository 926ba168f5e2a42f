"""Studies as configs: their runs, how these are shared out, and what is refused."""

import ml_collections
import pytest

from diversedit_jax import config_file, types
from diversedit_jax.experiment import study
from diversedit_jax.modes import listing


def config(names=('SiT', '+ skips'), seeds=(0, 1)):
  variants = {
    name: ml_collections.ConfigDict({'seed': 7, 'model': {'skip': {'enabled': i > 0}}})
    for i, name in enumerate(names)
  }
  return study.config('parts', variants, seeds)


def test_runs_go_seed_by_seed_and_a_variant_knows_what_it_changes():
  asked = study.read(config())
  runs = list(asked.runs())
  assert [(run.variant, run.seed) for run in runs] == [
    ('SiT', 0),
    ('+ skips', 0),
    ('SiT', 1),
    ('+ skips', 1),
  ]
  assert [run.folder for run in runs][1:3] == ['skips/seed-0', 'sit/seed-1']
  assert [run.config.seed for run in runs] == [0, 0, 1, 1]
  assert asked.variants['SiT'].seed == 7  # The study itself is not changed.
  assert asked.changes('+ skips') == {'model.skip.enabled': True}
  assert asked.changes('SiT') == {}


def test_every_run_is_in_one_part():
  runs = list(study.read(config(seeds=(0, 1, 2))).runs())
  parts = [study.shard(runs, f'{i}/4') for i in range(1, 5)]
  assert sorted(run.folder for part in parts for run in part) == sorted(r.folder for r in runs)
  assert [len(part) for part in parts] == [2, 2, 1, 1]


@pytest.mark.parametrize('part', ['0/2', '3/2', '1', '1/0', '-1/2'])
def test_a_part_that_does_not_exist_is_refused(part):
  with pytest.raises(types.UserError, match='--shard=.* must be i/n'):
    study.shard([], part)


@pytest.mark.parametrize(
  'given, words',
  [
    (config(names=('a b', 'A-B')), 'names differ'),  # They would share a folder.
    (config(names=()), 'variants'),
    (config(seeds=()), 'different seeds'),
    (config(seeds=(1, 1)), 'different seeds'),
    (config(names=('..', '.')), 'names differ'),
    (ml_collections.ConfigDict({'seed': 0}), 'this config is one experiment'),
  ],
)
def test_what_is_no_study_is_refused(given, words):
  with pytest.raises(types.UserError, match=words):
    study.read(given)


def test_no_name_leads_out_of_the_folder_of_a_study():
  runs = study.read(config(names=('..', '../x', '0.1 to 0.5'))).runs()
  assert [run.folder for run in runs][:3] == ['plain/seed-0', 'x/seed-0', '0.1-to-0.5/seed-0']


@pytest.mark.parametrize('seeds', ['-1', '0', '6'])
def test_seeds_that_are_not_there_are_refused(seeds):
  with pytest.raises(types.UserError, match=f'seeds={seeds} must be from 1 to 5'):
    config_file.load(f'studies/digits_parts:seeds={seeds}')


def test_the_seed_of_a_study_is_not_changed_without_effect():
  with pytest.raises(types.UserError, match='seeds of its own.*:seeds=2'):
    config_file.override(config(), ['model.depth=2', 'seed=3'])


def test_a_study_is_not_listed_and_not_taken_for_one_experiment():
  with pytest.raises(types.UserError, match='a study of several experiments: --mode=study'):
    listing.listing(config())


def test_a_shipped_study_is_found_and_changed_in_all_variants():
  given = config_file.load('studies/digits_parts:seeds=2,steps=90')
  config_file.override(given, ['model.depth=2', 'eval.every_number=50'])
  asked = study.read(given)
  assert list(asked.variants) == ['SiT', '+ skips', '+ diversity', '+ both']
  assert asked.seeds == (0, 1)
  assert {c.model.depth for c in asked.variants.values()} == {2}
  assert {c.train.steps for c in asked.variants.values()} == {90}
  assert asked.changes('+ both') == {'method': 'flow+diverse', 'model.skip.enabled': True}
  with pytest.raises(types.UserError, match='--mode=study'):
    listing.check_is_experiment(given)
