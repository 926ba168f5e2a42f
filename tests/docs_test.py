"""The pages that add something are followed to the letter, each in a copy of the project."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from diversedit_jax.experiment import declarations

ROOT = pathlib.Path(__file__).parents[1]
BLOCK = re.compile(r'```(python|bash)\n(.*?)```', re.DOTALL)
PLACE = re.compile(r'# file (\S+?)(?:, (after|before): ?(.*))?\n')
COPIED = ('diversedit_jax', 'configs')


def blocks(page, language):
  text = (ROOT / 'docs' / page).read_text()
  return [block for found, block in BLOCK.findall(text) if found == language]


def followed(page, copy):
  """A copy of the project with the changes of a page."""
  for folder in COPIED:
    shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns('__pycache__'))
  for block in blocks(page, 'python'):
    place = PLACE.match(block)
    name, side, anchor = place.groups()
    code, file = block[place.end() :], copy / name
    if anchor is None:
      assert not file.exists(), f'{name} exists already'
      file.parent.mkdir(parents=True, exist_ok=True)
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
  done = subprocess.run(
    [sys.executable, *command],
    cwd=project,
    env=environment,
    capture_output=True,
    text=True,
    timeout=600,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  return done.stdout


@pytest.fixture(scope='module')
def with_method(tmp_path_factory):
  return followed('add_a_method.md', tmp_path_factory.mktemp('method'))


def test_a_method_is_one_file_and_one_test(with_method):
  names = lambda root: {
    str(path.relative_to(root)): path.read_bytes()
    for folder in (*COPIED, 'tests')
    for path in (root / folder).rglob('*.py')
  }
  ours, theirs = names(ROOT), names(with_method)
  added = {name for name in theirs if ours.get(name) != theirs[name]}
  assert added == {'diversedit_jax/methods/variance.py', 'tests/methods/variance_test.py'}


def test_its_test_passes_and_its_commands_run(with_method):
  told = run(with_method, '-m', 'pytest', '-q', 'tests/methods/variance_test.py')
  assert '1 passed' in told
  (commands,) = blocks('add_a_method.md', 'bash')
  told = [run(with_method, *line.split()[1:]) for line in commands.splitlines()]
  rows = (with_method / 'runs' / 'variance' / 'metrics.jsonl').read_text()
  assert '"variance/std"' in rows and '"diverse/loss"' in rows
  assert 'parameters' in told[1]
  assert '`variance.margin` = 1.0 (a number; above 0)' in told[2]


def test_the_page_of_keys_is_fresh():
  page = (ROOT / 'docs' / 'config.md').read_text()
  assert page == declarations.document(), (
    'python -m diversedit_jax.main --mode=keys > docs/config.md'
  )
