"""The notebooks of colab/ are what their text says, show what they made, and run.

What they need to run is not among the requirements of the other tests: see colab/README.md.
"""

import json
import pathlib
import re

import pytest

COLAB = pathlib.Path(__file__).parents[2] / 'colab'
TEXTS = sorted(COLAB.glob('*.py'))
CELL = re.compile(r'^# %%( .*)?$', re.MULTILINE)  # A magic command of a cell is `%%writefile`.
# What holds after a notebook has run, in its own process.
CHECKS = {
  'quickstart': "assert card['scores']['frechet_distance'] > 0",
  'sampling': """
before = draw.cache_info().misses
explore.widget.children[0].value = 5.5
assert draw.cache_info().misses == before + 1
""",
  'your_pictures': """
assert len(source) == 200
assert json.loads(pathlib.Path('runs/mine/init.json').read_text())
""",
  'tpu': """
one, other = ([row['loss'] for row in rows] for rows in runs.values())
assert all(abs(a - b) < 1e-3 for a, b in zip(one, other, strict=True))
assert state['fsdp 8'] < state['data 8'] / 7
""",
  'representations': """
assert all(parts[name].keys() >= {'cka', 'probe', 'rank'} for name in RUNS)
assert pathlib.Path('runs/diverse/analysis/compare.png').is_file()
""",
}


def cells_of(notebook):
  return json.loads(notebook.read_text())['cells']


def plain(text):
  """Lines without the marks that make comments of prose and of magic commands."""
  lines = (re.sub(r'^(\s*)# ?', r'\1', line).strip() for line in text.strip().splitlines())
  return [line for line in lines if line]


def told(outputs):
  """What cells printed. Commands that failed say so there, and raise nothing."""
  return ''.join(line for output in outputs for line in output.get('text', ()))


def check_told(outputs):
  assert not re.search('^error:(?!.*libtpu)|Traceback', told(outputs), re.MULTILINE)


@pytest.mark.parametrize('text', TEXTS, ids=lambda path: path.stem)
def test_notebook_and_text_are_the_same(text):
  notebook = cells_of(text.with_suffix('.ipynb'))
  _, *parts = CELL.split(text.read_text())
  kinds, sources = parts[::2], parts[1::2]
  assert [cell['cell_type'] == 'markdown' for cell in notebook] == [
    '[markdown]' in (k or '') for k in kinds
  ]
  # A heading of Markdown loses its marks here too, on both sides alike.
  assert [plain(''.join(c['source'])) for c in notebook] == [
    plain('\n'.join(plain(s))) for s in sources
  ]


@pytest.mark.parametrize('text', TEXTS, ids=lambda path: path.stem)
def test_outputs_are_kept_and_hold_no_error(text):
  cells = [cell for cell in cells_of(text.with_suffix('.ipynb')) if cell['cell_type'] == 'code']
  outputs = [output for cell in cells for output in cell['outputs']]
  assert not [output for output in outputs if output['output_type'] == 'error']
  assert [output for output in outputs if 'image/png' in output.get('data', {})]
  check_told(outputs)
  assert not re.search('/(root|home|tmp)/', told(outputs)), 'a path of the machine that ran it'
  assert text.with_suffix('.ipynb').stat().st_size < 700_000


@pytest.mark.slow
@pytest.mark.parametrize('text', TEXTS, ids=lambda path: path.stem)
def test_notebook_runs(text, tmp_path):
  """With fewer steps, in an empty folder, and without installing what is installed."""
  jupytext, nbclient, nbformat = map(pytest.importorskip, ('jupytext', 'nbclient', 'nbformat'))
  notebook = jupytext.read(text)
  notebook.cells = [c for c in notebook.cells if 'install' not in c.metadata.get('tags', ())]
  for cell in notebook.cells:
    cell.source = re.sub(r'STEPS = \d+', 'STEPS = 60', cell.source)
  notebook.cells.append(nbformat.v4.new_code_cell(CHECKS[text.stem]))
  place = {'metadata': {'path': str(tmp_path)}}
  nbclient.NotebookClient(notebook, timeout=600, resources=place).execute()
  check_told([o for cell in notebook.cells for o in cell.get('outputs', ())])
