"""What `--mode=analyze` writes: figures, arrays, and analysis.json with every number drawn."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import numpy as np

from diversedit_jax.analysis import drawing, panels, registry
from diversedit_jax.data import files
from diversedit_jax.evaluation import card

FILE, SHEET = 'analysis.json', 'sheet'
SCHEMA = 1


def write(
  folder: pathlib.Path,
  name: str,
  found: registry.Findings,
  protocol: Mapping[str, Any],
  *,
  title: str,
  only: str = '',
) -> list[pathlib.Path]:
  """Writes figures and arrays of a part, and its entry in analysis.json; their paths.

  Entries of other parts, of earlier commands say, stay as they are.

  title: of the run, under the heading of each figure.
  only: the one figure that gets files, '' is all; drawing takes longest where models are small.
  """
  written, figures = [], {}
  if found.arrays:
    target = folder / f'{name}.npz'
    with files.atomic(target) as temporary:
      np.savez(temporary, **found.arrays)
    written.append(target)
  for stem, shown in found.figures.items():
    asked = only in ('', stem)
    heading = '\n'.join(filter(None, (found.headings.get(stem), title)))
    paths = (
      drawing.draw(folder / stem, shown, columns=columns(shown), title=heading) if asked else []
    )
    written += map(pathlib.Path, paths)
    figures[stem] = {
      'files': [pathlib.PurePath(path).name for path in paths],
      'panels': [panels.facts(panel) for panel in shown],
    }
  content = read(folder)
  content['parts'][name] = {
    'protocol': {**protocol, **found.protocol},
    'summary': found.summary,
    'arrays': f'{name}.npz' if found.arrays else None,
    'figures': figures,
  }
  card.write_json(folder / FILE, content)
  return written


def write_sheet(
  folder: pathlib.Path, shown: Sequence[panels.Panel], title: str
) -> list[pathlib.Path]:
  """Writes the sheet, one small figure of what matters most; its paths."""
  paths = drawing.draw(folder / SHEET, shown, columns=2, title=title)
  return [pathlib.Path(path) for path in paths]


def read(folder: pathlib.Path) -> dict[str, Any]:
  """The content of analysis.json; without parts if there is none, or one of another form."""
  try:
    content = json.loads((folder / FILE).read_bytes())
  except (OSError, ValueError):
    content = {}
  if not isinstance(content, dict) or content.get('schema') != SCHEMA:
    return {'schema': SCHEMA, 'parts': {}}
  return content


def columns(shown: Sequence[panels.Panel]) -> int:
  """Panels in a row, so that the last row is as full as can be."""
  if not all(isinstance(panel, panels.Heatmap) for panel in shown):
    return 2
  return 3 if len(shown) in (5, 6, 9) else 4
