"""A run across the end of a term: what is computed after it, and that nothing else changes."""

import json
import shutil

from helpers import killed_runs, small_runs
import jax
import numpy as np
import pytest

from diversedit_jax import modes
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.modes import run_context
from diversedit_jax.training import phases

CHANGES = {
  'method': 'repa+sra+diverse',
  'repa__pairs': 'pca@1',
  'repa__schedule': 'cosine:4:8',
  'sra__student_block': 1,
  'sra__teacher_block': 2,
  'sra__schedule': 'stop:12',
  'diversity__warmup_steps': 5,
  'train__steps': 18,
  'log__every': 1,
  'log__telemetry_every': 0,
  'preview__every': 0,
  'checkpoint__every': 6,
}


def _rows(path):
  return [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]


def _leaves(path, step):
  """All arrays of a checkpoint: parameters, average and moments."""
  return list(killed_runs.arrays(path, step).values())


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  path = tmp_path_factory.mktemp('whole')
  modes.train.run(small_runs.make(**CHANGES), str(path))
  return path


def test_terms_are_there_until_they_end(whole):
  rows = [row for row in _rows(whole) if 'loss' in row]
  assert [row['step'] for row in rows] == list(range(1, 19))
  for row in rows:
    updates = row['step'] - 1
    assert ('repa/loss' in row) == (updates < 8) and ('sra/loss' in row) == (updates < 12)
    if 'repa/loss' in row:
      share = min(max((updates - 4) / 4, 0), 1)
      np.testing.assert_allclose(row['repa/schedule'], (1 + np.cos(np.pi * share)) / 2, atol=1e-6)
    np.testing.assert_allclose(row['diverse/schedule'], min(1, updates / 5), rtol=1e-6)
    added = 0.5 * row['repa/schedule'] * row['repa/loss'] if 'repa/loss' in row else 0
    added += row['sra/weight'] * row['sra/loss'] if 'sra/loss' in row else 0
    added += row['diverse/schedule'] * row['diverse/weight'] * row['diverse/loss']
    np.testing.assert_allclose(row['loss'], row['velocity'] + added, rtol=1e-5)


def test_the_state_is_that_of_weights_held_at_zero(whole, tmp_path, monkeypatch):
  monkeypatch.setattr(objective_lib.Objective, 'ends', ())  # Nothing is left out: zeros are added.
  modes.train.run(small_runs.make(**CHANGES), str(tmp_path))
  masked = [row for row in _rows(tmp_path) if row['step'] == 18 and 'loss' in row]
  assert masked[0]['repa/schedule'] == masked[0]['sra/schedule'] == 0
  for left_out, held in zip(_leaves(whole, 18), _leaves(tmp_path, 18), strict=True):
    np.testing.assert_allclose(left_out, held, rtol=1e-4, atol=1e-5)


# From 12 on no term ends any more; from 6 on both do, which takes three programs.
@pytest.mark.parametrize('step', [12, pytest.param(6, marks=pytest.mark.slow)])
def test_a_killed_run_goes_on_bit_for_bit_across_the_ends(whole, tmp_path, step):
  cut = tmp_path / 'cut'
  shutil.copytree(whole, cut)
  for later in range(step + 6, 19, 6):
    shutil.rmtree(cut / 'checkpoints' / str(later))
  modes.train.run(small_runs.make(**CHANGES), str(cut))
  for resumed, straight in zip(_leaves(cut, 18), _leaves(whole, 18), strict=True):
    np.testing.assert_array_equal(resumed, straight)


def test_what_only_ended_terms_look_at_is_not_computed():
  experiment = small_runs.make(**CHANGES)
  mesh = run_context.make_mesh(experiment)
  trainable = run_context.make_trainable(experiment, mesh)
  state = jax.eval_shape(trainable.init, jax.random.key(0))
  batch = experiment.source.gather(np.arange(32))

  def scopes(updates):
    running = experiment.objective.running(updates)
    frozen = {encoder.name: encoder.params for encoder in running.encoders}
    made = run_context.make_step(experiment, trainable, running)
    text = jax.jit(made).lower(state, batch, frozen).as_text(debug_info=True)
    return {name for name in ('pca', 'repa', 'sra', 'diverse') if f'{name}/' in text}

  assert scopes(7) == {'pca', 'repa', 'sra', 'diverse'}
  assert scopes(8) == {'sra', 'diverse'}
  assert scopes(12) == {'diverse'}
  assert 'repa stays 0; not run any more: pca;' in phases.told(experiment.objective, 8)


def test_the_plan_adds_up_what_each_stretch_costs():
  numbers = modes.plan.numbers(small_runs.make(**CHANGES), 1)
  assert [set(p['method']) for p in numbers['later'].values()] == [{'sra'}, set()]
  seconds, begun, rate = 0, 0, numbers['steps_per_second']
  for end, phase in [*numbers['later'].items(), (18, {'steps_per_second': 0})]:
    seconds, begun, rate = seconds + (end - begun) / rate, end, phase['steps_per_second']
  np.testing.assert_allclose(numbers['seconds'], seconds)
