"""Every kind of machine can install the pinned requirements."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
PINS = ROOT / 'requirements-cpu.txt'
LINUX = [f'manylinux_2_{minor}' for minor in range(5, 29)] + ['manylinux1', 'manylinux2014']
PLATFORMS = {
  'x86-64 Linux': [f'{name}_x86_64' for name in LINUX],
  'ARM Linux': [f'{name}_aarch64' for name in LINUX],
  'Apple silicon': ['macosx_14_0_arm64'],
}


@pytest.mark.slow
@pytest.mark.parametrize('platform', PLATFORMS)
def test_pins_can_be_installed(platform, tmp_path):
  """Asks the package index; all but `promise`, which is Python alone, must be there compiled."""
  words = [f'--platform={name}' for name in PLATFORMS[platform]]
  command = [sys.executable, '-m', 'pip', 'install', '--dry-run', '--no-deps', '--quiet']
  command += ['--python-version=3.11', '--implementation=cp', f'--target={tmp_path}']
  command += ['--only-binary=:all:', '--no-binary=promise', '-r', PINS, *words]
  done = subprocess.run(command, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
