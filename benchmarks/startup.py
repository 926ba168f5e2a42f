"""Time from process start to the first step, with an empty and with a filled compilation cache.

  python benchmarks/startup.py

Each round starts the digits config twice in processes of their own: cold, then warm with the cache
that the cold start left.
"""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import common


def first_step_seconds(workdir: pathlib.Path, cache: pathlib.Path) -> float:
  """Wall seconds until the run's log says that the first step is done."""
  command = [
    sys.executable, '-m', 'diversedit_jax.main', '--config=configs/digits.py',
    f'--workdir={workdir}', '--config.train.steps=60', '--config.preview.every=0',
    '--config.log.telemetry_every=0',
  ]  # fmt: skip
  started = time.monotonic()
  process = subprocess.Popen(
    command, cwd=common.ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PLATFORMS': 'cpu'},
  )  # fmt: skip
  seconds = None
  for line in process.stderr:
    if seconds is None and 'first step after' in line:
      seconds = time.monotonic() - started
  if process.wait() or seconds is None:
    raise RuntimeError(f'{" ".join(command)} failed with exit code {process.returncode}')
  return seconds


def main() -> None:
  """Measures and reports the two times and their ratio."""
  parser = common.parser(__doc__.splitlines()[0], 'startup')
  parser.add_argument('--rounds', type=int, default=3)
  args = parser.parse_args()
  cold, warm = [], []
  for _ in range(args.rounds):
    with tempfile.TemporaryDirectory() as folder:
      cache = pathlib.Path(folder) / 'cache'
      cold.append(first_step_seconds(pathlib.Path(folder) / 'cold', cache))
      warm.append(first_step_seconds(pathlib.Path(folder) / 'warm', cache))
  ratios = [c / w for c, w in zip(cold, warm, strict=True)]
  common.write(
    args.json,
    {
      'cold_seconds': cold,
      'warm_seconds': warm,
      'cold_over_warm_median': statistics.median(ratios),
    },
  )


if __name__ == '__main__':
  main()
