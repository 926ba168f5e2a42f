"""Traces of a few steps."""

import re
import types

from helpers import config_changes
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import experiment as experiment_lib
from diversedit_jax.modes import run_context
from diversedit_jax.training import profiling
from diversedit_jax.training import state as state_lib


def run(folder, *, steps, start=0, end=6, left_out=()):
  """Calls steps start + 1 to end but some; returns whether a trace was written after each."""
  program = jax.jit(lambda step, x: (step + 1, x @ x))
  written = []

  def step_fn(step, state, x):
    step, product = program(state.step, x)
    return types.SimpleNamespace(step=step), {'loss': product}

  state = types.SimpleNamespace(step=jnp.asarray(start))
  x = jnp.ones((8, 8))
  with profiling.traced(step_fn, steps=steps, folder=folder) as traced:
    for number in range(start + 1, end + 1):
      if number not in left_out:
        state, metrics = traced(number, state, x)
      assert metrics['loss'].shape == (8, 8)
      written.append(len(list(folder.rglob('*.xplane.pb'))))
  assert int(state.step) == end - len(left_out)
  return written


@pytest.mark.parametrize(
  ('words', 'written'),
  [
    (dict(steps=(3, 4)), [0, 0, 0, 1, 1, 1]),
    (dict(steps=(3, 4), start=2), [0, 1, 1, 1]),
    (dict(steps=(3, 4), start=4), [0, 0]),
    (dict(steps=None), [0] * 6),
    (dict(steps=(3, 4), left_out=[4]), [0, 0, 0, 0, 1, 1]),
  ],
)
def test_a_trace_is_of_its_steps_alone(tmp_path, words, written):
  assert run(tmp_path, **words) == written


def test_the_end_of_training_ends_a_trace(tmp_path):
  assert run(tmp_path, steps=(6, 7)) == [0] * 6
  assert len(list(tmp_path.glob('plugins/profile/*/*.xplane.pb'))) == 1


def test_a_trace_whose_first_step_fails_is_ended(tmp_path):
  state = types.SimpleNamespace(step=jnp.asarray(0))
  with (
    pytest.raises(ZeroDivisionError),
    profiling.traced(
      lambda step, state: 1 // 0, steps=(1, 2), folder=tmp_path / 'failed'
    ) as traced,
  ):
    traced(1, state)
  assert run(tmp_path / 'next', steps=(1, 1)) == [1] * 6  # JAX records one trace at a time.


def test_a_trace_names_its_steps(tmp_path):
  run(tmp_path, steps=(3, 4))
  (path,) = tmp_path.rglob('*.xplane.pb')
  data = jax.profiler.ProfileData.from_file(str(path))
  found = [
    dict(event.stats)['step_num']
    for plane in data.planes
    for line in plane.lines
    for event in line.events
    if event.name == 'train'
  ]
  assert found == [3, 4]


def test_a_trace_names_what_its_operations_belong_to(tmp_path):
  program = jax.jit(jax.named_scope('of_ours')(lambda x: jnp.sin(x) @ x))
  x = jnp.ones((8, 8))
  step_fn = lambda step, state: (state, {'loss': program(x)})
  with profiling.traced(step_fn, steps=(1, 1), folder=tmp_path) as traced:
    traced(1, types.SimpleNamespace(step=0))
  (path,) = tmp_path.rglob('*.xplane.pb')
  assert b'/of_ours/dot_general' in path.read_bytes()


def test_all_of_a_step_has_names():
  changes = {'method': 'sra', 'sra.student_block': 1, 'sra.teacher_block': 2}
  changes |= {'model.depth': 2, 'model.width': 8, 'model.heads': 1, 'model.skip.enabled': True}
  experiment = experiment_lib.build(config_changes.changed(changes | {'train.batch_size': 4}))
  mesh = run_context.make_mesh(experiment)
  trainable = run_context.make_trainable(experiment, mesh)
  step = run_context.make_step(experiment, trainable)
  state = state_lib.TrainState(
    step=jnp.int32(0), params=trainable.params, ema=trainable.params, opt_state=trainable.opt_state
  )
  text = (
    jax.jit(step).lower(state, experiment.source.gather(np.arange(4)), {}).as_text(debug_info=True)
  )
  # Names in a loop are those within it.
  scopes = [re.findall(r'\w+', name) for name in set(re.findall(r'"([\w()]+/[^"]*)"', text))]
  for wanted in (
    'jit step draw',
    'jit step jvp flow model embed',
    'block attention',
    'block mlp',
    'fuse',
    'jit step jvp flow model final',
    'jit step jvp flow velocity_loss',
    'jit step transpose jvp flow model',  # The backward pass.
    'jit step jvp sra model',  # The teacher.
    'jit step transpose jvp sra',
    'jit step optimizer',
    'jit step ema',
  ):
    assert any(_are_in(wanted.split(), scope) for scope in scopes), wanted


def _are_in(some, words):
  """Whether words are among others, in this order."""
  rest = iter(words)
  return all(word in rest for word in some)
