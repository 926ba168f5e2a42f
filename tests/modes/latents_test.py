"""Data in a latent space end to end: no pictures, but the same files as arrays."""

import json

from helpers import small_runs
import numpy as np
import pytest

from diversedit_jax import modes, types


def test_every_mode_on_latents_of_a_file(tmp_path):
  rng = np.random.default_rng(0)
  np.savez(
    tmp_path / 'data.npz',
    latents=rng.normal(size=(64, 8, 8, 4)).astype(np.float32),
    labels=np.arange(64) % 5,
  )
  experiment = small_runs.make(
    method='flow',
    data__source=f'arrays:{tmp_path}/data.npz',
    train__steps=4,
    train__batch_size=16,
    optimizer__warmup_steps=0,
    log__every=2,
    log__telemetry_every=0,
    log__tensorboard=False,
    checkpoint__every=4,
    preview__every=4,
    sampler__kind='euler_maruyama',
    sampler__steps=3,
    sampler__guidance_scale=1.0,
    sample__number=7,
  )
  workdir = tmp_path / 'run'
  modes.train.run(experiment, str(workdir))
  assert not (workdir / 'tensorboard').exists() and not (workdir / 'telemetry').exists()
  preview = small_runs.arrays(workdir / 'samples' / 'preview-00000004.npz')
  assert set(preview) == {'latents', 'labels'}
  assert preview['latents'].shape == (10, 8, 8, 4)  # As many rows as there are classes.
  np.testing.assert_array_equal(preview['labels'], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])

  written = modes.sample.run(experiment, str(workdir), None)
  assert [path.name for path in written] == ['samples.npz', 'samples.json']
  made = small_runs.arrays(written[0])
  assert set(made) == {'latents', 'labels'} and made['latents'].shape == (7, 8, 8, 4)
  np.testing.assert_array_equal(made['labels'], [0, 1, 2, 3, 4, 0, 1])
  facts = json.loads(written[1].read_text())
  assert (facts['nfe'], facts['guidance']['scale']) == (3, 1.0)
  assert sorted(p.name for p in (workdir / 'samples').iterdir()) == [
    'preview-00000004.npz',
    'samples.json',
    'samples.npz',
  ]
  with pytest.raises(types.UserError, match='scores samples of data.source=digits, got arrays:'):
    modes.evaluate.run(experiment, str(workdir), None)
  with pytest.raises(types.UserError, match="write '{split}' in the path"):
    modes.analyze.run(experiment, str(workdir), None)
