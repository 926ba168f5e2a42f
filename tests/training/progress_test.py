"""Reports: means that survive a restart exactly, and readable lines."""

import json

from diversedit_jax.training import progress, writers


def test_means_and_last_values():
  accumulator = progress.Accumulator()
  for i in range(4):
    accumulator.add({'loss': float(i), 'learning_rate': 10.0 * i})
  assert accumulator.pop() == {'loss': 1.5, 'learning_rate': 30.0}
  accumulator.add({'loss': 7.0, 'learning_rate': 1.0})
  assert accumulator.pop() == {'loss': 7.0, 'learning_rate': 1.0}


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


def test_clock_leaves_pauses_out(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
  clock = progress.Clock()
  now[0] = 3.0
  with clock.paused():
    now[0] = 13.0
  now[0] = 15.0
  assert clock.lap() == 5.0
  now[0] = 16.0
  assert clock.lap() == 1.0
  assert clock.total() == 16.0


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


def test_jsonl_drops_rows_after_the_restored_step_and_a_cut_line(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  path.write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo')
  lines = writers.JsonLines(path, start_step=1)
  lines.write({'step': 2, 'loss': 1.5})
  lines.close()
  assert writers.read_jsonl(path) == [{'step': 1, 'loss': 2.0}, {'step': 2, 'loss': 1.5}]


def test_missing_clu_costs_tensorboard_only(tmp_path, monkeypatch, caplog):
  monkeypatch.setitem(__import__('sys').modules, 'clu', None)
  with caplog.at_level('WARNING'):
    writer = writers.Writer(tmp_path, start_step=0, tensorboard=True, active=True)
    writer.row(1, {'loss': 1.0})
    writer.close()
  assert 'no TensorBoard events' in caplog.text
  assert writers.read_jsonl(tmp_path / 'metrics.jsonl') == [{'step': 1, 'loss': 1.0}]
