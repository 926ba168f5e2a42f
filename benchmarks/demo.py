"""Seconds and peak memory of every stage of the demo but the report (launch/demo.sh, installed).

python benchmarks/demo.py
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import common

STAGES = ('train', 'sample', 'eval', 'analyze')


def run(command: list[str], cache: pathlib.Path) -> dict:
  """Wall seconds, CPU seconds and the highest resident memory of a process."""
  started = time.monotonic()
  process = subprocess.Popen(
    command,
    cwd=common.ROOT,
    stderr=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
    env=os.environ | {'JAX_COMPILATION_CACHE_DIR': str(cache), 'JAX_PLATFORMS': 'cpu'},
  )
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise RuntimeError(f'{" ".join(command)} failed with exit code {process.returncode}')
  return {
    'seconds': time.monotonic() - started,
    'cpu_seconds': usage.ru_utime + usage.ru_stime,
    'peak_gib': usage.ru_maxrss / 2**20,
  }


def main() -> None:
  """Runs the stages one after another in a fresh workdir with an empty compilation cache."""
  args = common.parser(__doc__.splitlines()[0], 'demo').parse_args()
  with tempfile.TemporaryDirectory() as folder:
    workdir, cache = pathlib.Path(folder) / 'run', pathlib.Path(folder) / 'cache'
    base = [sys.executable, '-m', 'diversedit_jax.main', '--config=configs/digits.py']
    stages = {
      mode: run([*base, f'--workdir={workdir}', f'--mode={mode}'], cache) for mode in STAGES
    }
    scores = json.loads((workdir / 'eval' / 'digits.json').read_text())
  kept = ('class_consistency', 'classifier_test_accuracy', 'frechet_distance', 'frechet_floor')
  common.write(
    args.json,
    {
      'stages': stages,
      'total_seconds': sum(stage['seconds'] for stage in stages.values()),
      'peak_gib': max(stage['peak_gib'] for stage in stages.values()),
      **{name: scores[name] for name in kept},
    },
  )


if __name__ == '__main__':
  main()
