"""A hook of mkdocs: pages that lie outside docs/, pages of the API, and links between all of them.

`Formulas` shows indented lines of docstrings as they are.

Links to files that are no page become their names; with DOCS_SOURCE, the address of a folder of the
project on the web, they lead there.
"""

import os
import pathlib
import posixpath
import re

import griffe
from mkdocs.structure import files as files_lib

ROOT = pathlib.Path(__file__).parents[1]
PAGES = {
  'README.md': 'index.md',
  'CHANGELOG.md': 'changes.md',
  'benchmarks/README.md': 'benchmarks.md',
  'benchmarks/NOTES.md': 'notes.md',
  'colab/README.md': 'colab.md',
  'tests/golden/README.md': 'golden.md',
}
# Every file of the folder is a method or what methods share.
ROOMS = sorted(
  path.stem
  for path in (ROOT / 'diversedit_jax' / 'methods').glob('*.py')
  if path.stem not in ('__init__', 'base', 'objective')
)
API = {
  'models': (
    'models.sit',
    'models.config',
    'models.config_parts',
    'models.sizes',
    'models.taps',
    'models.block',
    'models.blocks',
    'models.blocks.sit',
    'models.blocks.lightning',
    'models.ddt',
    'models.networks',
    'models.norms',
    'models.rotary',
    'models.groups',
  ),
  'methods': (
    'methods.base',
    'methods.objective',
    'methods.diverse.definition',
    *(f'methods.{room}' for room in ROOMS),
    'losses.velocity',
  ),
  'sampling': (
    'sampling.trajectory',
    'sampling.guidance',
    'sampling.steppers',
    'interpolants.paths',
    'interpolants.convert',
    'interpolants.times',
  ),
  'scores': (
    'evaluation.scores',
    'evaluation.panel',
    'evaluation.cmmd',
    'frozen.inception',
    'analysis.similarity',
    'analysis.parts.cknna',
    'analysis.parts.rank',
    'analysis.parts.variance',
  ),
  'files': ('experiment', 'options', 'convert', 'data.order', 'rng', 'types'),
}
_FENCE = re.compile(r'(^```.*?^```)', re.DOTALL | re.MULTILINE)
_LINK = re.compile(r'(!?)\[([^\]]*)\]\(([^()\s]+)\)')
_INDENTED = re.compile(r'(?<=\n\n)((?:  +\S.*(?:\n|$)|\n(?=  ))+)')


class Formulas(griffe.Extension):
  """Fences what is indented below an empty line: equations, shapes, commands."""

  def on_object(self, *, obj, **_):
    if obj.docstring:
      fence = lambda match: f'```text\n{match.group().rstrip()}\n```\n'
      obj.docstring.value = _INDENTED.sub(fence, obj.docstring.value)


def on_files(files, config):
  """Adds what is not in docs/."""
  for name, page in PAGES.items():
    content = (ROOT / name).read_text()
    files.append(files_lib.File.generated(config, page, content=content))
  for name, modules in API.items():
    content = f'# {name.capitalize()}\n\n' + '\n'.join(f'::: diversedit_jax.{m}' for m in modules)
    files.append(files_lib.File.generated(config, f'api/{name}.md', content=content))
  return files


def on_page_markdown(markdown, page, files, **_):
  """Points links at pages of the site."""
  site = page.file.src_uri
  here = next((name for name, uri in PAGES.items() if uri == site), f'docs/{site}')
  lead = lambda match: _link(match, posixpath.dirname(here), posixpath.dirname(site), files)
  parts = _FENCE.split(markdown)
  return ''.join(part if i % 2 else _LINK.sub(lead, part) for i, part in enumerate(parts))


def _link(match, folder, site_folder, files):
  """A link of a page in a folder of the project, as one of a page in a folder of the site."""
  picture, text, target = match.groups()
  name, hash_, anchor = target.partition('#')
  if not name or re.match(r'[a-z]+:', name):
    return match.group()
  path = posixpath.normpath(posixpath.join(folder, name))
  uri = PAGES.get(path, path.removeprefix('docs/'))
  if files.get_file_from_path(uri) is not None:
    return f'{picture}[{text}]({posixpath.relpath(uri, site_folder or ".")}{hash_}{anchor})'
  if not (ROOT / path).exists():
    return match.group()  # mkdocs says that it leads nowhere.
  source = os.environ.get('DOCS_SOURCE', '').rstrip('/')
  return f'[{text}]({source}/{path})' if source else text if '`' in text else f'`{text}`'
