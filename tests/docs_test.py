"""docs/add_a_method.md is followed to the letter, in a copy of the project."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGE = (ROOT / 'docs' / 'add_a_method.md').read_text()
BLOCK = re.compile(r'```(python|bash)\n(.*?)```', re.DOTALL)
PLACE = re.compile(r'# file (\S+?)(?:, (after|before): ?(.*))?\n')


@pytest.fixture(scope='module')
def project(tmp_path_factory):
  """A copy with the changes of the page."""
  copy = tmp_path_factory.mktemp('project')
  for folder in ('diversedit_jax', 'configs'):
    shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns('__pycache__'))
  (copy / 'tests' / 'methods').mkdir(parents=True)
  for language, block in BLOCK.findall(PAGE):
    if language != 'python':
      continue
    place = PLACE.match(block)
    name, side, anchor = place.groups()
    code, file = block[place.end() :], copy / name
    if anchor is None:
      assert not file.exists(), f'{name} exists already'
      file.write_text(code)
      continue
    lines = file.read_text().splitlines(keepends=True)
    found = [i for i, line in enumerate(lines) if line.strip().startswith(anchor.strip())]
    assert len(found) == 1, f'{anchor!r} stands {len(found)} times in {name}'
    lines.insert(found[0] + (side == 'after'), code)
    file.write_text(''.join(lines))
  return copy


def run(project, *command):
  environment = os.environ | {'PYTHONPATH': str(project), 'JAX_PLATFORMS': 'cpu'}
  return subprocess.run(
    command, cwd=project, env=environment, capture_output=True, text=True, timeout=600
  )


def test_the_page_has_the_steps():
  places = [
    PLACE.match(block)[1] for language, block in BLOCK.findall(PAGE) if language == 'python'
  ]
  assert len(places) == 8 and len(set(places)) == 5


def test_its_test_passes(project):
  done = run(project, sys.executable, '-m', 'pytest', '-q', 'tests/methods/variance_test.py')
  assert done.returncode == 0 and '1 passed' in done.stdout, done.stdout + done.stderr


def test_its_commands_run(project):
  (commands,) = (block for language, block in BLOCK.findall(PAGE) if language == 'bash')
  for line in commands.splitlines():
    words = line.split()
    done = run(project, sys.executable, *words[1:])
    assert done.returncode == 0, done.stderr
  rows = (project / 'runs' / 'variance' / 'metrics.jsonl').read_text()
  assert '"variance/std"' in rows and '"diverse/loss"' in rows
  assert 'parameters' in done.stdout


def test_a_misspelt_key_is_refused(project):
  done = run(
    project,
    sys.executable,
    '-m',
    'diversedit_jax.main',
    '--mode=plan',
    '--config=configs/digits.py:method=varaince+diverse',
  )
  assert done.returncode == 1 and "did you mean 'variance'" in done.stderr
