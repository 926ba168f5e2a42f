"""Traces of a few steps."""

import types

import jax
import jax.numpy as jnp
import pytest

from diversedit_jax.training import profiling


def run(folder, *, at, start=0, end=6):
  """The counts that steps start + 1 to end return, and whether a trace was written after each."""
  program = jax.jit(lambda step, x: (step + 1, x @ x))
  written = []

  def step_fn(state, x):
    step, product = program(state.step, x)
    return types.SimpleNamespace(step=step), {'loss': product}

  state = types.SimpleNamespace(step=jnp.asarray(start))
  x = jnp.ones((8, 8))
  with profiling.traced(step_fn, at=at, steps=2, folder=folder) as traced:
    for _ in range(start, end):
      state, metrics = traced(state, x)
      assert metrics['loss'].shape == (8, 8)
      written.append(len(list(folder.rglob('*.xplane.pb'))))
  assert int(state.step) == end
  return written


@pytest.mark.parametrize(
  ('words', 'written'),
  [
    (dict(at=3), [0, 0, 0, 1, 1, 1]),  # Steps 3 and 4.
    (dict(at=3, start=2), [0, 1, 1, 1]),
    (dict(at=3, start=4), [0, 0]),
    (dict(at=0), [0] * 6),
  ],
)
def test_a_trace_is_of_its_steps_alone(tmp_path, words, written):
  assert run(tmp_path, **words) == written


def test_the_end_of_training_ends_a_trace(tmp_path):
  assert run(tmp_path, at=6) == [0] * 6
  assert len(list(tmp_path.glob('plugins/profile/*/*.xplane.pb'))) == 1


def test_a_trace_names_its_steps(tmp_path):
  run(tmp_path, at=3)
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
