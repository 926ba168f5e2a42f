"""The cores that this process may use, which in a job are fewer than the machine has."""

import functools
import math
import os
import pathlib


@functools.cache
def available() -> int:
  """Cores by affinity (SLURM, taskset), and by the quota of the control group (containers)."""
  found = os.cpu_count() or 1
  if hasattr(os, 'sched_getaffinity'):
    found = len(os.sched_getaffinity(0))
  return max(1, math.ceil(min(found, quota())))


def quota(
  root: str | os.PathLike[str] = '/sys/fs/cgroup', own: str | os.PathLike[str] = '/proc/self/cgroup'
) -> float:
  """Cores' worth of time that the control groups of this process allow; infinite without a limit.

  Args:
    root: where the control groups are mounted, as of version 1 or 2.
    own: the file that names the groups of this process.
  """
  try:
    lines = pathlib.Path(own).read_text(encoding='utf-8', errors='replace').splitlines()
  except OSError:
    return math.inf
  found = [math.inf]
  for line in lines:
    _, controllers, group = line.split(':', 2)
    if controllers and 'cpu' not in controllers.split(','):
      continue
    # In a container the mount begins at its own group, so names of outer ones are not there.
    mount = pathlib.Path(root) / (controllers and 'cpu')
    inner = mount / group.lstrip('/')
    for folder in (inner, *inner.parents):
      if folder.is_relative_to(mount):
        found.append(_limit(folder))
  return min(found)


def _limit(folder):
  """Quota over period of one group; infinite if there is none."""
  try:
    if (folder / 'cpu.max').exists():
      limit, period = (folder / 'cpu.max').read_text().split()
    else:
      names = ('cpu.cfs_quota_us', 'cpu.cfs_period_us')
      limit, period = ((folder / name).read_text() for name in names)
    cores = float(limit) / float(period)
  except (OSError, ValueError, ZeroDivisionError):  # 'max' is no number.
    return math.inf
  return cores if cores > 0 else math.inf
