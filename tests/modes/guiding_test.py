"""`sampler.autoguidance`: a run guided by its own earlier step, what cards say, what is refused."""

import json

from helpers import small_runs
import numpy as np
import pytest

from diversedit_jax import modes, types

SAMPLER = {'sampler__kind': 'euler', 'sampler__steps': 2, 'sample__number': 12}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Two runs of different sizes with random weights, by the name of their directory."""
  folder = tmp_path_factory.mktemp('guiding')
  small_runs.untrained(folder / 'good', step=30)
  small_runs.untrained(folder / 'bad', step=20, model__depth=4, model__width=8)
  return folder


def sample(runs, name, **changes):
  """(images, card) of samples of the good run."""
  experiment = small_runs.make(**SAMPLER, sample__name=name, **changes)
  archive, known, *_ = modes.sample.run(experiment, str(runs / 'good'), None)
  return small_runs.arrays(archive)['images'], json.loads(known.read_text())


def test_another_network_guides_and_the_card_names_it(runs):
  given = {'sampler__autoguidance': str(runs / 'bad' / 'checkpoints' / '20')}
  plain, _ = sample(runs, 'plain', sampler__guidance_scale=1.0)
  made, card = sample(runs, 'guided', sampler__guidance_scale=2.0, **given)
  alone, _ = sample(runs, 'alone', sampler__guidance_scale=0.0, **given)
  by = card['guidance'].pop('by')
  assert card['guidance']['formula'] == 'v_guide + scale (v - v_guide)' and card['nfe'] == 4
  assert (by['name'], by['weights'], by['step']) == ('bad, step 20', 'ema', 20)
  assert (by['depth'], by['width']) == (4, 8) and str(runs) not in json.dumps(card)
  bad = small_runs.make(**SAMPLER, model__depth=4, model__width=8, sampler__guidance_scale=1.0)
  archive, *_ = modes.sample.run(bad, str(runs / 'bad'), None)
  np.testing.assert_allclose(alone, small_runs.arrays(archive)['images'], atol=1e-5)
  assert np.abs(made - plain).max() > 0.01 and np.abs(made - alone).max() > 0.01
  # The run's own newest checkpoint changes nothing.
  own, card = sample(
    runs, 'own', sampler__guidance_scale=2.0, sampler__autoguidance=str(runs / 'good')
  )
  np.testing.assert_allclose(own, plain, atol=1e-5)
  params, card = sample(
    runs,
    'params',
    sampler__guidance_scale=2.0,
    sampler__autoguidance=str(runs / 'good'),
    sampler__autoguidance_weights='params',
  )
  assert card['guidance']['by']['weights'] == 'params'


def test_samples_by_another_guide_are_not_replaced(runs):
  guided = lambda name: sample(
    runs, 'kept', sampler__guidance_scale=2.0, sampler__autoguidance=str(runs / name)
  )
  guided('good')
  with pytest.raises(types.UserError, match=r'guidance.by.name: there .good, step 30'):
    guided('bad')


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'interpolant__path': 'cosine'}, 'has interpolant.path cosine, and this network linear'),
    (
      {'data__source': 'synthetic:8x8x4:10'},
      'was trained on latents of another space, encoder or scale',
    ),
    ({'method': 'reg', 'repa__pairs': 'pca@1'}, 'has class token 16, and this network 0'),
  ],
)
def test_networks_of_other_velocities_are_refused(runs, tmp_path, changes, message):
  small_runs.begin(tmp_path / 'run', small_runs.make(**changes))
  (tmp_path / 'run' / 'checkpoints' / '5').mkdir(parents=True)
  with pytest.raises(types.UserError, match=message):
    sample(
      runs,
      'refused',
      sampler__guidance_scale=2.0,
      sampler__autoguidance=str(tmp_path / 'run' / 'checkpoints' / '5'),
    )


def test_training_does_not_guide_its_previews(runs, tmp_path):
  experiment = small_runs.make(sampler__guidance_scale=2.0, sampler__autoguidance=str(runs / 'bad'))
  with pytest.raises(types.UserError, match='not the previews and scores of training'):
    modes.train.run(experiment, str(tmp_path / 'run'))
