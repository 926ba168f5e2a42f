"""Which runs a report is of, and what each recorded over its steps."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import io
import os
import pathlib
import re
from typing import Any

import numpy as np

from diversedit_jax import paths
from diversedit_jax.analysis import output
from diversedit_jax.data import files
from diversedit_jax.experiment import flat_config, kernels, learned, run_dir
from diversedit_jax.reporting import charts, curves, records
from diversedit_jax.training import writers

_DEEP = 3  # Folders between that of a study and those of its runs, theirs included.
_PARTS = re.compile(r'\d+|\D+').findall
_NO_CURVES = ('step', 'seconds')

Curve = tuple[np.ndarray, np.ndarray]
"""Steps and values, float64 [n], of which none is NaN or infinite."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Series:
  """Things of some steps, of which not all need be shown. of: how many there are."""

  shown: Sequence[tuple[float, Any]] = ()
  of: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A run as its records tell of it.

  name: short, and no other run's. number: nor this, which decides colour and dashes.
  facts: of `records.gather`. config: flat and complete.
  data: data.json. attention: kernel by platform. curves: by the name of a metric.
  not_finite: how many values curves leave out. similarity, blocks: arrays by name of telemetry,
  by step. previews: bytes of PNG files by step. cka: similarities [L, L] by t. analysis: parts of
  analysis.json by name. figures: bytes of PNG files of other modes by name.
  missing: what was not recorded or cannot be read.
  """

  name: str
  number: int
  facts: Mapping[str, Any]
  config: Mapping[str, Any]
  data: Mapping[str, Any]
  attention: Mapping[str, str]
  curves: Mapping[str, Curve]
  not_finite: Mapping[str, int]
  similarity: Series
  blocks: Series
  previews: Series
  cka: Series
  analysis: Mapping[str, Any]
  figures: Mapping[str, bytes]
  missing: Sequence[str]


def find(named: Sequence[str]) -> dict[str, pathlib.Path]:
  """Directories of runs by a short name: those named, and those in a folder that is none itself.

  Raises:
    UserError: a folder holds no run.
  """
  found: list[pathlib.Path] = []
  for text in named:
    folder = run_dir.directory(text)
    inside = [folder] if (folder / flat_config.FILE).is_file() else _within(folder)
    if not inside:
      run_dir.open_recorded(text)  # Says so.
    found += [path for path in inside if path not in found]
  if len(found) == 1:
    return {found[0].name or str(found[0]): found[0]}
  if len({paths.is_bucket(path) for path in found}) > 1:
    return {str(path): path for path in found}  # On a disk and in a bucket: nothing in common.
  common = os.path.commonpath([str(path.parent) for path in found])
  return {os.path.relpath(str(path), common): path for path in found}


def _within(folder):
  """Runs in a folder, by name; a run that lies in another run's folder is that one's affair."""
  found: list[pathlib.Path] = []
  for depth in range(1, _DEEP + 1):
    files_there = folder.glob('/'.join(['*'] * depth + [flat_config.FILE]))
    found += [
      file.parent
      for file in files_there
      if flat_config.is_run(file.parent) and not any(p in file.parents for p in found)
    ]
  return sorted(found, key=_by_numbers)


def _by_numbers(path):
  """So that seed10 comes after seed9."""
  return [(word.isdecimal(), int(word) if word.isdecimal() else word) for word in _PARTS(str(path))]


def numbers(names: Sequence[str]) -> list[int]:
  """A number for each run, so that runs in one folder have one colour.

  The variants of a study are folders, and the runs in them its seeds. Runs are counted where all
  are in one folder, each in its own, or in more folders than there are colours.
  """
  folders: dict[str, list[str]] = {}
  for name in names:
    folders.setdefault(os.path.dirname(name), []).append(name)
  if len(folders) > charts.COLOURS or len(folders) in (1, len(names)):
    return list(range(len(names)))
  places = {folder: i for i, folder in enumerate(folders)}
  return [
    places[folder] + charts.COLOURS * folders[folder].index(name)
    for name in names
    for folder in [os.path.dirname(name)]
  ]


def read_all(found: Mapping[str, pathlib.Path], frames: int) -> list[Run]:
  """What runs recorded, see `read`; found: their directories by name."""
  counted = zip(numbers(list(found)), found.items(), strict=True)
  return [read(name, path, frames, number) for number, (name, path) in counted]


def read(name: str, path: pathlib.Path, frames: int, number: int = 0) -> Run:
  """What a run recorded. frames: how many steps of pictures and of similarities are read at most.

  Raises:
    UserError: metrics, config or account are damaged.
  """
  facts = records.gather(path)
  found, not_finite = _curves(writers.read_jsonl(path / 'metrics.jsonl'))
  missing: list[str] = []
  series = lambda pattern, opened: _series(path, pattern, frames, opened, missing)
  analysis = _analysis(path, missing)
  run = Run(
    name=name,
    number=number,
    facts=facts,
    config=flat_config.stored(path),
    data=learned.read(path),
    attention=files.read_json(path / kernels.FILE, may_lack=True),
    curves=_scored(facts['scores'], found),
    not_finite=not_finite,
    similarity=series('telemetry/similarity-*.npz', _arrays),
    blocks=series('telemetry/blocks-*.npz', _arrays),
    previews=series('samples/preview-*.png', pathlib.Path.read_bytes),
    cka=_cka(path, missing),
    analysis=analysis,
    figures=_figures(path, analysis),
    missing=missing,
  )
  return dataclasses.replace(run, missing=[*facts['not_recorded'], *missing, *_lacking(run, path)])


def _curves(rows) -> tuple[dict[str, Curve], dict[str, int]]:
  """Steps and values by metric, and how many values are no numbers."""
  points: dict[str, list[tuple[float, float]]] = {}
  for row in rows:
    for name, value in row.items():
      if name not in _NO_CURVES and isinstance(value, int | float):
        points.setdefault(name, []).append((row['step'], value))
  found, bad = {}, {}
  for name, pairs in points.items():
    xs, ys = np.array(sorted(pairs), np.float64).T
    fine = np.isfinite(ys)
    if fine.any():
      found[name] = (xs[fine], ys[fine])
    if not fine.all():
      bad[name] = int((~fine).sum())
  return found, bad


def _scored(scores, found) -> dict[str, Curve]:
  """Curves with those of online evaluations, of which files tell if rows do not."""
  points: dict[str, dict[float, float]] = {}
  for file, content in scores.items():
    step = content['protocol'].get('step')
    if file.startswith(f'{records.DURING}step-') and isinstance(step, int):
      for name, value in content['scores'].items():
        points.setdefault(f'eval/{name}', {})[step] = value
  of_files = {name: sorted(by_step.items()) for name, by_step in points.items()}
  return found | {name: tuple(np.array(pairs, np.float64).T) for name, pairs in of_files.items()}


def _series(path, pattern, frames, opened: Callable, missing) -> Series:
  """Files with a step at the end of their names: some of them, evenly spread, opened."""
  there = sorted((step, file) for file in path.glob(pattern) if (step := _step(file)) is not None)
  shown = []
  for i in curves.evenly(len(there), frames):
    step, file = there[i]
    content = _attempt(lambda file=file: opened(file), file, missing)
    shown += [] if content is None else [(step, content)]
  return Series(shown=shown, of=len(there))


def _step(file):
  digits = file.stem.rpartition('-')[2]
  return int(digits) if digits.isdecimal() else None


def _arrays(file) -> dict[str, np.ndarray]:
  with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as found:
    return {name: found[name] for name in found.files}


def _attempt(read: Callable[[], Any], file, missing):
  try:
    return read()
  except Exception as error:  # Zip files, arrays and JSON that are damaged raise many types.
    missing.append(f'{file.parent.name}/{file.name} cannot be read: {type(error).__name__}')
    return None


def _cka(path, missing) -> Series:
  """Linear unbiased CKA by t, of `--mode=analyze`."""
  file, start = path / 'analysis' / 'cka.npz', 'linear/unbiased/t='
  arrays = (_attempt(lambda: _arrays(file), file, missing) if file.exists() else None) or {}
  found = [(float(k.removeprefix(start)), v) for k, v in arrays.items() if k.startswith(start)]
  return Series(shown=sorted(found, key=lambda pair: pair[0]), of=len(found))


def _analysis(path, missing) -> Mapping[str, Any]:
  """The parts of analysis.json; none of a form that this version does not know."""
  file = path / 'analysis' / output.FILE
  content = _attempt(lambda: files.read_json(file), file, missing) if file.exists() else None
  if content is None:
    return {}
  if content.get('schema') != output.SCHEMA:
    missing.append(f'analysis.json in a form that this version knows: schema={output.SCHEMA}')
    return {}
  return content.get('parts', {})


def _figures(path, analysis) -> dict[str, bytes]:
  """Pictures of other modes that the page does not draw anew, by name.

  The sheet of `--mode=analyze` shows what others show.
  """
  drawn = {'sheet.png'} if analysis else set()
  drawn |= {'cka.png'} if (path / 'analysis' / 'cka.npz').exists() else set()
  for part in analysis.values():
    for stem, figure in part.get('figures', {}).items():
      kinds = {(one.get('kind'), bool(one.get('stacked'))) for one in figure.get('panels', [])}
      drawn |= {f'{stem}.png'} if kinds == {('curves', False)} else set()
  there = [p for p in path.glob('analysis/*.png') if p.name not in drawn]
  there += [*path.glob('eval/sweep-*.png'), *path.glob('samples/grid.png')]
  return {f'{p.parent.name}/{p.name}': p.read_bytes() for p in sorted(there)}


def _lacking(run, path):
  """What a run may have recorded and did not, beside what its report lists, in words."""
  kinds = (
    ('similarities of blocks', run.similarity, 'log.telemetry_every'),
    ('sizes of blocks', run.blocks, 'log.telemetry_every'),
    ('pictures of samples', run.previews, 'preview.every'),
  )
  latents = any(path.glob('samples/preview-*.npz'))
  for what, series, key in kinds:
    if series.of:
      continue
    if what == 'pictures of samples' and latents:
      yield 'pictures of samples: its previews are latents, which nothing decoded'
    elif run.config[key] and run.facts['steps']['done'] >= run.config[key]:
      yield f'{what}, though {key}={run.config[key]}'
    else:
      yield f'{what}: {key}={run.config[key]}, {run.facts["steps"]["done"]:,} steps done'
  if not run.facts['scores']:
    yield 'scores: neither --mode=eval nor eval.every made any'
  if not run.cka.of:
    yield 'CKA between blocks, which --mode=analyze makes'
