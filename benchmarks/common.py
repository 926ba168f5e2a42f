"""What every benchmark prints first and writes last: machine, versions, numbers."""

import argparse
from collections.abc import Sequence
import json
import os
import pathlib
import platform
import subprocess
import sys

import jax
from peers import serving
import sources
import timing

from diversedit_jax.evaluation import card

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))  # configs/ lies beside the package, not in it.
RESULTS = ROOT / 'benchmarks' / 'results'
# Paths below a machine's own folders say nothing elsewhere.
_PATHS = ('json', 'torch_python')


def header() -> dict:
  """Device, versions and load; a number without these means nothing."""
  device = jax.devices()[0]
  return {
    'device': f'{device.device_kind} x {jax.device_count()}',
    'platform': device.platform,
    'runtime': getattr(device.client, 'platform_version', '').splitlines()[0:1],
    'commit': commit(),
    'sources': sources.digest(),
    'cpu_count': os.cpu_count(),
    'machine': platform.machine(),
    'python': platform.python_version(),
    'versions': card.versions(),
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'load_average': os.getloadavg()[0],
  }


def commit() -> str | None:
  """The commit that is checked out, with '+' where files differ from it; None without git."""
  git = lambda *words: subprocess.run(
    ['git', *words], cwd=ROOT, capture_output=True, text=True, check=True
  ).stdout.strip()
  try:
    changed = git('status', '--porcelain', '--untracked-files=no', '--', ':!benchmarks/results')
    return git('rev-parse', '--short=12', 'HEAD') + ('+' if changed else '')
  except (OSError, subprocess.CalledProcessError):
    return None


def parser(description: str, name: str) -> argparse.ArgumentParser:
  """Arguments that all benchmarks share."""
  made = argparse.ArgumentParser(description=description)
  made.add_argument('--json', default=str(RESULTS / f'{name}.json'), help='where the numbers go')
  return made


def add_peer_flags(parser: argparse.ArgumentParser) -> None:
  """Arguments of benchmarks that have a peer in PyTorch."""
  parser.add_argument(
    '--torch_python',
    default=serving.default_python(),
    help='a Python that has torch and safetensors (default: $TORCH_PYTHON, or this one)',
  )
  # On one core a thread never spins while it waits for another, which CPU seconds would count.
  parser.add_argument(
    '--threads', type=int, default=1, help='cores for each program; 0 is all of them'
  )


def peer_turn(child: serving.Child, count: int) -> timing.Turn:
  """One turn of a peer, with so many runs."""
  answer = child.ask('turn', count=count)
  return timing.Turn(answer['wall'], answer['cpu'])


def check_peer(device: str) -> None:
  """Stops a benchmark whose peer computes on another kind of device. device: as the peer says."""
  here = 'cuda' if jax.default_backend() == 'gpu' else jax.default_backend()
  if device.partition(':')[0] != here:
    raise SystemExit(f'the peer computes on {device}, this program on {here}: nothing to compare')


def chosen(parts: Sequence[str], known: Sequence[str]) -> Sequence[str]:
  """The parts of a benchmark that were asked for; stops it if it does not have one."""
  unknown = sorted(set(parts) - set(known))
  if unknown:
    raise SystemExit(f'unknown --parts {unknown}, expected some of {known}')
  return parts


def arguments(args: argparse.Namespace) -> dict:
  """What was asked for, without the machine's own paths."""
  return {name: value for name, value in vars(args).items() if name not in _PATHS}


def write(path: str, measured: dict) -> None:
  """Prints the numbers and writes them with the header."""
  content = {'header': header(), **measured}
  print(json.dumps(content, indent=2))
  target = pathlib.Path(path)
  target.parent.mkdir(parents=True, exist_ok=True)
  target.write_text(json.dumps(content, indent=2) + '\n')
