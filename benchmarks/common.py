"""What every benchmark prints first and writes last: machine, versions, numbers."""

import argparse
import json
import os
import pathlib
import platform
import sys

import jax

from diversedit_jax.evaluation import card

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # configs/ lies beside the package, not in it.
RESULTS = ROOT / 'benchmarks' / 'results'


def header() -> dict:
  """Device, versions and load; a number without these means nothing."""
  device = jax.devices()[0]
  return {
    'device': f'{device.device_kind} x {jax.device_count()}',
    'cpu_count': os.cpu_count(),
    'machine': platform.machine(),
    'python': platform.python_version(),
    'versions': card.versions(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'load_average': os.getloadavg()[0],
  }


def parser(description: str, name: str) -> argparse.ArgumentParser:
  """Arguments that all benchmarks share."""
  made = argparse.ArgumentParser(description=description)
  made.add_argument('--json', default=str(RESULTS / f'{name}.json'), help='where the numbers go')
  return made


def arguments(args: argparse.Namespace) -> dict:
  """What was asked for, without the machine's own path."""
  return {name: value for name, value in vars(args).items() if name != 'json'}


def write(path: str, measured: dict) -> None:
  """Prints the numbers and writes them with the header."""
  content = {'header': header(), **measured}
  print(json.dumps(content, indent=2))
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  target.write_text(json.dumps(content, indent=2) + '\n')
