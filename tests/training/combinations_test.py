"""Every method and many combinations: learn on digits, resume exactly, sample, analyse, convert.

Slow: `pytest -m slow`. Each run is 200 steps of a small network through the same functions as the
command line.
"""

import json
import shutil

from helpers import transformers
import jax
import numpy as np
import pytest

from configs import digits
from diversedit_jax import convert, modes, trees
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.frozen.encoders import base as encoders_base
from diversedit_jax.methods import registry
from diversedit_jax.modes import restoring

METHODS = (
  *sorted(registry.METHODS),
  'repa+diverse',
  'repa+haste',
  'dispersive+diverse',
  'sra+diverse',
  'layersync+diverse',
  'reg+diverse',
  'reg+haste+diverse',
  'reg+contrastive+diverse',
  'meanflow+diverse',
  'meanflow+haste',
  'selfflow+diverse',
  'meanflow+repa+dispersive+diverse',
  'reg+dispersive+sra+diverse',
  'selfflow+repa+haste+dispersive+layersync+diverse',
  'repa+dispersive+sra+diverse',
)
DATA = {'interpolant.prediction': 'data', 'interpolant.shift': 'auto', 'sampler.clamp': 0.05}
DDT = {
  'model.block': 'ddt',
  'model.head.depth': 1,
  'model.head.width': 48,
  'model.head.heads': 2,
}
PRESETS = {
  'irepa': ('repa', {'repa.preset': 'irepa'}),
  'corrected': ('contrastive', {'contrastive.negatives': 'random', 'contrastive.correct': True}),
  'reg+irepa': ('reg', {'repa.preset': 'irepa'}),
  'diverse of data': ('diverse', DATA),
  'reg+diverse of data': ('reg+diverse', DATA),
  **{
    f'{method} on lightning': (method, {'model.block': 'lightning'})
    for method in ('flow', 'diverse', 'repa+diverse', 'meanflow', 'selfflow')
  },
  **{
    f'{method} on ddt': (method, DDT)
    for method in ('flow', 'diverse', 'repa+diverse', 'meanflow', 'selfflow')
  },
  'reg+diverse on raev2': ('reg+diverse', DDT | {'model.block': 'raev2', 'model.qk_norm': True}),
  'internal of data on raev2': (
    'internal+diverse',
    DATA | DDT | {'model.block': 'raev2', 'model.qk_norm': True, 'internal.scale': 1.4},
  ),
  'muon': ('repa+diverse', {'optimizer.name': 'muon', 'optimizer.shard_over_data': True}),
}
"""A method and keys of the config, by a name of the test's own."""
CONVERTED = {
  f'{method}{suffix}': family
  for method in ('flow', 'diverse', 'repa+diverse')
  for suffix, family in (('', 'sit'), (' on lightning', 'lightning'), (' on ddt', 'ddt'))
}
"""The family of those that another system could hold."""
STEPS, HALF = 200, 100
pytestmark = pytest.mark.slow


def make(method):
  method, changes = PRESETS.get(method, (method, {}))
  config = digits.get_config(f'method={method},steps={STEPS}')
  config.update_from_flattened_dict(changes)
  config.model.depth, config.model.width, config.model.heads = 4, 32, 2
  config.train.batch_size = 32
  config.optimizer.schedule = 'constant'
  config.log.every, config.checkpoint.every, config.log.telemetry_every = 20, HALF, STEPS
  config.log.tensorboard = False
  config.preview.every, config.sample.number = 0, 20
  config.analysis.examples, config.analysis.times = 32, (0.5,)
  if 'haste' in method:
    transformers.use(config)
  return experiment_lib.build(config)


def final_parameters(workdir, experiment):
  _, weights = restoring.open_weights(experiment, str(workdir), None)
  assert weights.step == STEPS
  return trees.named_leaves(jax.tree.map(np.asarray, weights.params))


def check_comes_back(params, family):
  """Converts there and back."""
  theirs = convert.to_torch(params, family, grid=(4, 4), heads=2, decoder_heads=2)
  again = trees.named_leaves(convert.to_ours(theirs, family))
  assert set(again) == set(params)
  for name, x in params.items():
    # One layer mixes rows where the clock is turned round, and rounds them.
    turned = family == 'lightning' and name == 'model/time_embed/fc1/kernel'
    np.testing.assert_allclose(again[name], x, rtol=0, atol=1e-7 if turned else 0, err_msg=name)


@pytest.fixture(autouse=True)
def _encoders(monkeypatch):
  """Forgets what a test registers."""
  monkeypatch.setattr(encoders_base, '_ENCODERS', dict(encoders_base._ENCODERS))


@pytest.mark.parametrize('method', [*METHODS, *PRESETS])
def test_learns_resumes_exactly_samples_and_analyses(method, tmp_path):
  experiment, whole, cut = make(method), tmp_path / 'whole', tmp_path / 'cut'
  modes.train.run(experiment, str(whole))
  rows = [json.loads(line) for line in (whole / 'metrics.jsonl').read_text().splitlines()]
  # MeanFlow's loss is near 1 by its weights; its velocity where r = t is what falls. HASTE's has
  # the encoder's entropy as its floor.
  name = 'velocity' if {'meanflow', 'haste'} & {*experiment.method.split('+')} else 'loss'
  losses = [row[name] for row in rows if name in row]
  assert len(losses) == 10 and np.mean(losses[-3:]) < 0.8 * losses[0]
  if 'haste' in method:
    losses = [row['haste/loss'] for row in rows if 'haste/loss' in row]
    assert np.mean(losses[-3:]) < losses[0] - 0.05

  # The same run, killed after the checkpoint in the middle.
  shutil.copytree(whole, cut)
  shutil.rmtree(cut / 'checkpoints' / str(STEPS))
  modes.train.run(experiment, str(cut))
  resumed, straight = (final_parameters(workdir, experiment) for workdir in (cut, whole))
  assert set(resumed) == set(straight)
  for name, x in straight.items():
    np.testing.assert_array_equal(resumed[name], x, err_msg=name)
  if method in CONVERTED:
    check_comes_back(straight, CONVERTED[method])

  written = modes.sample.run(experiment, str(whole), None)
  with np.load(written[0]) as file:
    made = file['images']
  assert made.shape == (20, 8, 8, 1) and np.isfinite(made).all()
  evaluations = json.loads(written[1].read_text())['nfe']
  assert evaluations == (1 if 'meanflow' in method else 2 * (2 * experiment.sampler.steps - 1))
  with np.load(modes.analyze.run(experiment, str(whole), None)[0]) as file:
    matrix = file['rbf/unbiased/t=0.5']
  assert matrix.shape == (4, 4) and np.isfinite(matrix).all()
  np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-5)
