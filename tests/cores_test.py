"""Cores: what affinity and control groups of either version allow, not what the machine has."""

import math
import os

import pytest

from diversedit_jax import cores


@pytest.mark.parametrize(
  ('files', 'own', 'found'),
  [
    ({}, '0::/', math.inf),
    ({'cpu.max': 'max 100000'}, '0::/', math.inf),
    ({'cpu.max': '150000 100000'}, '0::/', 1.5),
    ({'cpu.max': '400000 100000', 'job/cpu.max': '200000 100000'}, '0::/job/step', 2.0),
    ({'cpu.max': '100000 100000'}, '0::/of/the/host', 1.0),  # Seen from within a container.
    (
      {'cpu/cpu.cfs_quota_us': '-1', 'cpu/cpu.cfs_period_us': '100000'},
      '3:cpu,cpuacct:/',
      math.inf,
    ),
    ({'cpu/a/cpu.cfs_quota_us': '50000', 'cpu/a/cpu.cfs_period_us': '100000'}, '3:cpu:/a', 0.5),
    ({'cpu.max': 'broken'}, '0::/', math.inf),
    ({'memory/cpu.max': '1 1'}, '4:memory:/', math.inf),
  ],
)
def test_the_tightest_quota_counts(tmp_path, files, own, found):
  for name, text in files.items():
    (tmp_path / 'groups' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'groups' / name).write_text(text + '\n')
  (tmp_path / 'own').write_text(own + '\n')
  assert cores.quota(tmp_path / 'groups', tmp_path / 'own') == found


def test_a_job_gets_its_cores(monkeypatch):
  monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(6)), raising=False)
  for quota, found in ((math.inf, 6), (2.5, 3), (0.3, 1), (64.0, 6)):
    monkeypatch.setattr(cores, 'quota', lambda quota=quota: quota)
    cores.available.cache_clear()
    assert cores.available() == found
  cores.available.cache_clear()
