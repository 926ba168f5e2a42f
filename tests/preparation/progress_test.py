"""The line of a preparation adds skipped pictures and memory to the common one."""

from types import SimpleNamespace

from diversedit_jax.preparation import progress


def test_the_line_has_skipped_pictures_and_memory():
  meter = progress.Meter(1000, 200, 3, device=None)
  for i in range(100):
    meter.add(skipped=i == 7)
  line = meter.line()
  assert line.startswith('preparing: 300 of 1,000 pictures (30%) | ')
  assert ' | skipped 4 | memory ' in line and 'device' not in line


def test_the_peak_of_a_device_is_told_where_it_is_known():
  device = SimpleNamespace(memory_stats=lambda: {'peak_bytes_in_use': 3 * 2**30})
  assert progress.Meter(10, 5, 0, device=device).line().endswith('device memory 3 GiB')
  device = SimpleNamespace(memory_stats=lambda: None)
  assert 'device' not in progress.Meter(10, 5, 0, device=device).line()
