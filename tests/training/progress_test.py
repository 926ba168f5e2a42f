"""Reports: means that survive a restart exactly, and readable lines."""

import json

from diversedit_jax.training import progress


def test_means_and_last_values():
  accumulator = progress.Accumulator()
  for i in range(4):
    accumulator.add({'loss': float(i), 'learning_rate': 10.0 * i})
  assert accumulator.pop() == {'loss': 1.5, 'learning_rate': 30.0}
  accumulator.add({'loss': 7.0, 'learning_rate': 1.0})
  assert accumulator.pop() == {'loss': 7.0, 'learning_rate': 1.0}


def test_steps_without_scalars_are_counted_apart_and_through_json():
  accumulator = progress.Accumulator()
  accumulator.add({'loss': 4.0})
  accumulator.leave_out()
  resumed = progress.Accumulator(json.loads(json.dumps(accumulator.state())))
  resumed.leave_out()
  resumed.add({'loss': 5.0})
  assert resumed.pop() == {'loss': 4.5, 'skipped': 2}
  resumed.leave_out()
  assert resumed.pop() == {'skipped': 1} and resumed.pop() == {}
  resumed = progress.Accumulator({'count': 1, 'sums': {'loss': 3.0}})  # An older run's.
  assert resumed.pop() == {'loss': 3.0}


def test_accumulator_continues_exactly_through_json():
  values = [0.1, 0.2, 0.7, 1e-17, 3.3]
  straight, first = progress.Accumulator(), progress.Accumulator()
  for value in values:
    straight.add({'loss': value})
  for value in values[:2]:
    first.add({'loss': value})
  resumed = progress.Accumulator(json.loads(json.dumps(first.state())))
  for value in values[2:]:
    resumed.add({'loss': value})
  assert resumed.pop() == straight.pop()


def test_line_shows_losses_rate_and_eta():
  row = {
    'loss': 0.5,
    'velocity': 0.4,
    'diverse/loss': 0.3,
    'diverse/weight': 0.9,
    'diverse/orth': 0.1,
    'grad_norm': 2.0,
    'steps_per_second': 10.0,
    'images_per_second': 1280.0,
  }
  line = progress.line(50, 100, row)
  for words in ('step 50/100 (50%)', 'loss 0.5', 'diverse/weight 0.9', '10 steps/s', 'ETA 5s'):
    assert words in line
  assert 'orth' not in line
