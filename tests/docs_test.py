"""The pages that add something are followed, with a small network, in copies of the project.

Links between pages lead somewhere, and examples of the library run.
"""

import importlib.util
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
from unittest import mock

import pytest

from configs import paper
from diversedit_jax.experiment import declarations

ROOT = pathlib.Path(__file__).parents[1]
PAGES_OF_TEXT = [
  *sorted(path for path in ROOT.glob('*.md')),
  *sorted(
    path for folder in ('docs', 'benchmarks', 'colab') for path in (ROOT / folder).glob('*.md')
  ),
  ROOT / 'tests' / 'golden' / 'README.md',
]
FENCE = re.compile(r'^```.*?^```', re.DOTALL | re.MULTILINE)
LINK = re.compile(r'\]\(([^()\s]+)\)')
BLOCK = re.compile(r'```(python|bash)\n(.*?)```', re.DOTALL)
PLACE = re.compile(r'# file (\S+?)(?:, (after|before): ?(.*))?\n')
COPIED = ('diversedit_jax', 'configs')
SMALL = [
  f'--config.{setting}'
  for setting in (
    'model.depth=4',
    'model.width=32',
    'model.unroll=1',
    'train.batch_size=16',
  )
]


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
  return done.stdout + done.stderr


# page -> what it adds, and nothing else is touched; its test; what its commands must have printed
PAGES = {
  'add_a_method.md': (
    {'diversedit_jax/methods/variance.py', 'tests/methods/variance_test.py'},
    ['variance/loss', 'parameters', '`variance.margin` = 1.0 (a number; above 0)'],
  ),
  'add_a_sampler.md': (
    {'diversedit_jax/sampling/midpoint.py', 'tests/sampling/midpoint_test.py'},
    ['step 60/60', 'samples.npz'],
  ),
  'add_a_source.md': (
    {'diversedit_jax/data/sources/stripes.py', 'tests/data/sources/stripes_test.py'},
    ['stripes/8, 512 examples', 'step 60/60'],
  ),
  'add_a_block_option.md': (
    {
      'diversedit_jax/models/blocks/primer.py',
      'tests/models/squared_relu_test.py',
    },
    ['step 60/60', 'parameters'],
  ),
}
_SLOW = [page for page in PAGES if page != 'add_a_method.md']


@pytest.mark.parametrize(
  'page',
  [pytest.param(page, marks=pytest.mark.slow if page in _SLOW else ()) for page in PAGES],
)
def test_a_page_is_followed(page, tmp_path):
  project = followed(page, tmp_path)
  added, printed = PAGES[page]
  names = lambda root: {
    str(path.relative_to(root)): path.read_bytes()
    for folder in COPIED
    for path in (root / folder).rglob('*.py')
  }
  ours, theirs = names(ROOT), names(project)
  changed = {name for name in theirs if ours.get(name) != theirs[name]}
  tests = {name for name in added if name.startswith('tests/')}
  assert changed | tests == added and all((project / name).is_file() for name in tests)
  assert '1 passed' in run(project, '-m', 'pytest', '-q', *tests)
  (commands,) = blocks(page, 'bash')
  for line, words in zip(commands.replace('\\\n', '').splitlines(), printed, strict=True):
    small = SMALL if 'digits.py' in line else ()
    assert words in run(project, *line.split()[1:], *small)


def test_the_page_of_keys_is_fresh():
  page = (ROOT / 'docs' / 'config.md').read_text()
  assert page == declarations.document(), (
    'python -m diversedit_jax.main --mode=keys > docs/config.md'
  )


def anchors(text):
  """Names of a page's headings, as GitHub makes them."""
  found = []
  for heading in re.findall(r'^#+ (.+)$', FENCE.sub('', text), re.MULTILINE):
    words = re.sub(r'[^\w\- ]', '', re.sub(r'\]\([^)]*\)', '', heading).lower())
    found.append(words.strip().replace(' ', '-'))
  return [name if name not in found[:i] else f'{name}-1' for i, name in enumerate(found)]


def broken(text, folder):
  """Links of a page in a folder that lead nowhere; those into the web are not followed."""
  wrong = []
  for link in LINK.findall(FENCE.sub('', text)):
    name, _, anchor = link.partition('#')
    if re.match(r'[a-z]+:', name):
      continue
    page = folder / name
    known = anchors(page.read_text() if name else text) if anchor and page.exists() else ['']
    if not page.exists() or anchor not in known:
      wrong.append(link)
  return wrong


@pytest.mark.parametrize('page', PAGES_OF_TEXT, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
  assert not broken(page.read_text(), page.parent)


def test_a_link_that_leads_nowhere_is_found():
  text = '[a](methods.md) [b](none.md) [c](methods.md#frozen-encoders) [d](methods.md#none) [e](#x)'
  assert broken(text, ROOT / 'docs') == ['none.md', 'methods.md#none', '#x']


def test_the_site_has_every_page(monkeypatch):
  """What `mkdocs build --strict` would say, without mkdocs."""
  nav = re.findall(r'^ +- [^:]+: (\S+\.md)$', (ROOT / 'mkdocs.yml').read_text(), re.MULTILINE)
  for name in ('griffe', 'mkdocs', 'mkdocs.structure'):
    monkeypatch.setitem(sys.modules, name, mock.MagicMock(Extension=object))
  hook = runpy.run_path(str(ROOT / 'launch' / 'docs_pages.py'))
  pages, api = hook['PAGES'], hook['API']
  assert all((ROOT / name).is_file() for name in pages)
  assert all(
    importlib.util.find_spec(f'diversedit_jax.{m}') for group in api.values() for m in group
  )
  there = [path.name for path in (ROOT / 'docs').glob('*.md')]
  assert sorted(nav) == sorted([*there, *pages.values(), *(f'api/{name}.md' for name in api)])


def names_nothing(text):
  """Names of files, rows and keys of a page that there are not."""
  rows, keys = {row.name for row in paper.ROWS}, declarations.keys()
  sections = {key.partition('.')[0] for key in keys}
  wrong = []
  for name in re.findall(r'`([^`\s]+)`', FENCE.sub('', text)):
    if re.fullmatch(r'table\w+/[^.]\S*[^.]', name):
      known = name in rows
    elif re.fullmatch(r'[\w/]+/[\w.]+\.\w+', name):
      known = (ROOT / name).is_file()
    elif name.partition('.')[0] in sections and re.fullmatch(r'\w+\.[\w.]+', name):
      known = name in keys
    else:
      continue
    wrong += [] if known else [name]
  return wrong


def test_the_page_of_the_paper_names_what_is_there():
  text = (ROOT / 'docs' / 'paper.md').read_text()
  assert not names_nothing(text)
  for row in re.findall(r'configs/paper.py:(\w+/[^,\s`]+)', FENCE.search(text).group()):
    assert paper.find(row)
  tables = {row.name.partition('/')[0] for row in paper.ROWS}
  assert {name.partition('/')[0] for name in re.findall(r'`(table\w+/[^`]+)`', text)} == tables
  wrong = '`table1/SiT-Q` `diversedit_jax/none.py` `diversity.none` `diversity.mi` `table1/SiT-B`'
  assert names_nothing(wrong) == ['table1/SiT-Q', 'diversedit_jax/none.py', 'diversity.none']


@pytest.mark.slow
def test_the_hours_of_the_paper_are_fresh(monkeypatch):
  monkeypatch.syspath_prepend(ROOT / 'benchmarks')
  page = (ROOT / 'docs' / 'paper.md').read_text()
  assert page == importlib.import_module('hours').page(page), 'python benchmarks/hours.py'


@pytest.mark.slow
def test_the_library_does_what_its_page_says():
  (code,) = blocks('start.md', 'python')
  names = {}
  exec(compile(code, 'start.md', 'exec'), names)
  assert names['output'].pred.shape == names['samples'].shape == (2, 32, 32, 4)
  assert names['output'].features.shape == (12, 2, 384)
  (example,) = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
  assert set(example.splitlines()) <= set(code.splitlines())
