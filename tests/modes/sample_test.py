"""`--mode=sample`: what a grid shows, samples that are never replaced, samples without a class."""

import json

from helpers import small_runs
import numpy as np
import pytest

from diversedit_jax import modes, trees, types
from diversedit_jax.evaluation import card as card_lib
from diversedit_jax.modes import null_label, run_context, sample
from diversedit_jax.sampling import generate
from diversedit_jax.weights import array_files

CHANGES = {'sampler__kind': 'euler', 'sampler__steps': 2, 'sample__number': 12}


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A file of random weights of the small digits model, in which every label matters."""
  experiment = small_runs.make()
  trainable = run_context.make_trainable(experiment, run_context.make_mesh(experiment))
  rng = np.random.default_rng(0)
  file = tmp_path_factory.mktemp('weights') / 'weights.safetensors'
  flat = trees.named_leaves(trainable.params)
  array_files.save(file, {k: np.float32(0.3 * rng.normal(size=x.shape)) for k, x in flat.items()})
  return str(file)


@pytest.fixture(scope='module')
def made(weights, tmp_path_factory):
  """(folder, arrays, card) of one set of samples."""
  folder = tmp_path_factory.mktemp('made')
  archive, known, _ = modes.sample.run(small_runs.make(**CHANGES), str(folder), weights)
  return folder, small_runs.arrays(archive), json.loads(known.read_text())


OTHERS = {
  'seed': {'sample__seed': 1},
  'guidance.scale': {'sampler__guidance_scale': 3.0},
  'num_samples': {'sample__number': 13},
  'label_policy': {'sample__labels': '3'},
  'start': {'sampler__start': 0.9},
}


@pytest.mark.parametrize('differs', OTHERS)
def test_samples_of_another_protocol_are_kept(made, weights, differs, monkeypatch):
  monkeypatch.setattr(generate.Generator, '__call__', lambda *_, **__: pytest.fail('sampled'))
  experiment = small_runs.make(**CHANGES | OTHERS[differs])
  with pytest.raises(types.UserError, match=rf'{differs}: there .*, now .*sample.name=NAME'):
    modes.sample.run(experiment, str(made[0]), weights)


def test_the_same_protocol_and_other_folders_are_written(made, weights):
  folder, arrays, card = made
  archive, _, _ = modes.sample.run(
    small_runs.make(**CHANGES, sample__batch_size=5), str(folder), weights
  )
  np.testing.assert_allclose(small_runs.arrays(archive)['images'], arrays['images'], atol=1e-4)
  (folder / 'samples' / 'samples.json').unlink()
  with pytest.raises(types.UserError, match='holds samples without samples.json'):
    modes.sample.run(small_runs.make(**CHANGES), str(folder), weights)
  # A card of an older version lacks some entries.
  older = {k: v for k, v in card.items() if k != 'parameters'}
  (folder / 'samples' / 'samples.json').write_text(json.dumps(older))
  modes.sample.run(small_runs.make(**CHANGES), str(folder), weights)
  experiment = small_runs.make(**CHANGES, sample__name='without-{step}', sample__labels='null')
  archive, known, grid = modes.sample.run(experiment, str(folder), weights)
  assert archive.parent == grid.parent == folder / 'samples' / 'without-weights.safetensors'
  found, facts = small_runs.arrays(archive), json.loads(known.read_text())
  assert set(found['labels'].tolist()) == {10}
  # Without a class nothing is guided, whatever the config's scale.
  assert (facts['nfe'], facts['guidance']['scale'], facts['label_policy']) == (2, 1.0, 'null')
  assert np.abs(found['images'] - arrays['images']).max() > 0.1


def test_another_seed_makes_other_pictures(made, weights, tmp_path):
  experiment = small_runs.make(**CHANGES, sample__seed=1)
  archive, card, _ = modes.sample.run(experiment, str(tmp_path), weights)
  apart = np.abs(small_runs.arrays(archive)['images'] - made[1]['images']).max(axis=(1, 2, 3))
  assert (apart > 1e-4).all() and json.loads(card.read_text())['seed'] == 1


def test_the_card_tells_the_guidance_and_counts_it(made, weights, tmp_path):
  changes = {f'sampler__guidance_{k}': v for k, v in dict(low=0.2, high=0.6, channels=1).items()}
  archive, card, _ = modes.sample.run(small_runs.make(**CHANGES, **changes), str(tmp_path), weights)
  facts = json.loads(card.read_text())
  expected = {'scale': 2.0, 'interval': [0.2, 0.6], 'channels': 1, 'formula': card_lib.GUIDANCE}
  assert facts['guidance'] == expected
  assert facts['nfe'] == 1 + 2  # The step from 1, and that from 1/2, which is guided.
  assert np.abs(small_runs.arrays(archive)['images'] - made[1]['images']).max() > 1e-4


REFUSED = {
  'the sampler': ({}, 'sampler.guidance_scale=2.0 needs .*Give --config.sampler.guidance_scale=1;'),
  'labels': (
    {'sample__labels': 'null'},
    'sample.labels=null needs .*Give --config.sample.labels=balanced;',
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_model_that_dropped_no_label_is_not_asked_for_samples_without(name, weights, tmp_path):
  changes, message = REFUSED[name]
  experiment = small_runs.make(train__label_dropout=0.0, **changes)
  with pytest.raises(types.UserError, match=message):
    modes.sample.run(experiment, str(tmp_path), weights)
  assert not any(tmp_path.iterdir())


def test_every_mode_asks_whether_labels_were_dropped(weights, tmp_path):
  """The run's own config tells, where there is one; training asks for what it would draw itself."""
  experiment = small_runs.make(train__label_dropout=0.0)
  refusal = 'with train.label_dropout=0 the model never'
  for mode in (modes.evaluate, modes.sweep):
    with pytest.raises(types.UserError, match=refusal):
      mode.run(experiment, str(tmp_path), weights)
  one = {'sweep__guidance_scales': (1.5,), 'sweep__guidance_highs': (1.0,)}
  sweep = small_runs.make(train__label_dropout=0.0, sampler__guidance_scale=1.0, **one)
  with pytest.raises(types.UserError, match=r"Give --config.sweep.guidance_scales='\(1.0,\)';"):
    modes.sweep.run(sweep, str(tmp_path), weights)
  with pytest.raises(types.UserError, match=refusal):
    modes.train.run(experiment, str(tmp_path / 'new'))
  without = small_runs.make(train__label_dropout=0.0, preview__every=0, eval__every=5)
  with pytest.raises(types.UserError, match=refusal):
    modes.train.run(without, str(tmp_path / 'new'))
  assert not (tmp_path / 'new').exists()
  null_label.check_trained(experiment, 0.1, [experiment.sampler])
  null_label.check_trained(experiment, None, [experiment.sampler])


def test_grids_are_bounded():
  """One class to a row where that shows as much; what is left out does not depend on memory."""
  rows = lambda *labels_and_limit: sample.choose(*labels_and_limit)
  assert rows(np.tile(np.arange(3), 4), 9, 9)[0].reshape(3, 4).tolist() == [
    [0, 3, 6, 9],
    [1, 4, 7, 10],
    [2, 5, 8, 11],
  ]
  shown, columns = rows(np.full(20_000, 3), 15, 15)
  assert (len(shown), columns) == (225, 15)
  shown, columns = rows(np.arange(50_000) % 1000, 15, 15)  # As many of as few classes as fit.
  assert (len(shown), columns) == (225, 15)
  assert (shown.reshape(15, 15) % 1000 == np.arange(15)[:, None]).all()
  shown, columns = rows(np.arange(64), 15, 15)  # A square shows all, a row for each class 15.
  assert (len(shown), columns) == (64, 8)
  labels = np.random.default_rng(0).integers(1000, size=50_000)
  shown, columns = rows(labels, 15, 15)
  assert (len(shown), columns) == (225, 15) and (np.diff(labels[shown]) >= 0).all()
