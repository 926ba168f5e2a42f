"""An encoder with the weights of a file inside the training step."""

import dataclasses

from helpers import encoder_files
import numpy as np
import pytest

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import modes, types
from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import base, dinov2, ijepa
from diversedit_jax.training import writers

pytestmark = pytest.mark.usefixtures('compilation_cached')

STEPS = 2
SMALL = {'width': 16, 'depth': 2, 'heads': 2, 'hidden': 24, 'patch_size': 2, 'table': 2}


@pytest.fixture
def tiny(monkeypatch):
  """Adds a tiny encoder of a family under the name 'tiny'."""

  def add(family):
    config = dataclasses.replace(next(iter(family.configs.values())), **SMALL)
    encoders.register('tiny', lambda request: family.make('tiny', config, request))
    return config

  monkeypatch.setattr(base, '_ENCODERS', dict(base._ENCODERS))
  return add


def make(weights, **repa):
  config = digits.get_config(f'method=repa,steps={STEPS},skips=False')
  config.data.source = 'synthetic:4x4x4+32x32x3:10:64'
  config.data.space = 'latents'
  config.model.depth, config.model.width, config.model.heads = 2, 16, 2
  config.repa.update(pairs='tiny@1', hidden=8, weights=str(weights), **repa)
  config.train.batch_size = 16
  config.optimizer.warmup_steps = 0
  config.log.every, config.checkpoint.every, config.log.telemetry_every = 1, STEPS, 0
  config.log.tensorboard = False
  config.preview.every = 0
  return experiment_lib.build(config)


def test_missing_weights_are_told_by_their_key(tiny, tmp_path):
  tiny(dinov2.FAMILY)
  experiment = make(tmp_path / 'absent')
  with pytest.raises(types.UserError, match="^repa.weights='.*absent': encoder 'tiny' needs"):
    experiment.objective.frozen()


def test_repa_trains_with_the_weights_of_a_file(tiny, tmp_path):
  """They are read when a run starts, and they matter."""
  config, path, found = tiny(dinov2.FAMILY), tmp_path / 'w.pth', []
  for seed in (1, 2):
    encoder_files.write(path, encoder_files.random_arrays(dinov2.FAMILY.shapes(config), seed=seed))
    modes.train.run(make(path, dtype='bfloat16'), str(tmp_path / str(seed)))
    rows = writers.read_jsonl(tmp_path / str(seed) / 'metrics.jsonl')
    found.append([row['repa/loss'] for row in rows if 'repa/loss' in row])
  assert len(found[0]) == STEPS and found[0] != found[1]


def test_an_encoder_without_a_class_token_adds_its_tokens_alone(tiny, tmp_path):
  config = tiny(ijepa.FAMILY)
  path = tmp_path / 'w.npz'
  encoder_files.write(path, encoder_files.random_arrays(ijepa.FAMILY.shapes(config)))
  objective = make(path).objective
  pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
  frozen, batch = objective.frozen(), {'pixels': pixels, 'labels': np.zeros(4, np.int32)}
  whole, parts = (objective.encode(frozen, batch, parts=n) for n in (1, 2))
  assert set(whole) == set(parts) == {'pixels', 'labels', 'tiny/tokens'}
  assert whole['tiny/tokens'].shape == (4, 4, 16)
  np.testing.assert_allclose(whole['tiny/tokens'], parts['tiny/tokens'], atol=1e-5)
