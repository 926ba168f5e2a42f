"""Rows of tables as a config file offers them: by name, by what trains them, and as a list."""

import dataclasses
import difflib

import ml_collections

from configs import common, imagenet
from configs.tables.row import Row
from diversedit_jax import types
from diversedit_jax.methods import registry, repa
from diversedit_jax.models import sizes


@dataclasses.dataclass(frozen=True)
class Book:
  """rows: all, in their order. file: the config file that offers them, as 'configs/paper.py'."""

  rows: tuple[Row, ...]
  file: str

  def config(self, arg: str | None = None) -> ml_collections.ConfigDict:
    """The config of `ROW,data=...,steps=...`; without a row the table of all, under `listing`.

    Raises:
      UserError: for an unknown row (the nearest is named) or meta-argument.
    """
    if not arg:
      return ml_collections.ConfigDict({'listing': self.listing()})
    name, _, rest = arg.partition(',')
    row = self.find(name)
    data = row.data or imagenet.dry_run_data(row.method, row.resolution)
    args = common.parse_arg(rest, data=data, steps=row.steps)
    config = imagenet.recipe(
      method=row.method,
      size=row.size,
      resolution=row.resolution,
      steps=args.steps,
      guidance=row.guidance,
      skips=_skips(row),
      data=args.data,
    )
    if _diverse(row) and row.layers:
      config.diversity.layers = 'random'
      config.diversity.num_layers = row.layers
    common.set_options(config, row.options)
    return config

  def find(self, name: str) -> Row:
    """The row of a name; capitals do not matter.

    Raises:
      UserError: naming the nearest row.
    """
    rows = {row.name.lower(): row for row in self.rows}
    if name.lower() not in rows:
      near = difflib.get_close_matches(name.lower(), rows, n=1, cutoff=0.0)[0]
      raise types.UserError(
        f'no row {name!r} in {self.file}; the nearest is {rows[near].name!r}, and '
        f'--config={self.file} --mode=list shows all'
      )
    return rows[name.lower()]

  def trained_as(self) -> dict[str, str]:
    """The first row whose training is the same, by row; the first one has itself."""
    first: dict[str, str] = {}
    return {row.name: first.setdefault(self._training(row), row.name) for row in self.rows}

  def _training(self, row):
    """The config without how it is sampled, written out."""
    config = self.config(row.name)
    if 'repa' in registry.parse(row.method):
      depth = sizes.size(row.size).depth
      pairs = repa.parse_pairs(config.repa.pairs, depth)
      config.repa.pairs = ','.join(f'{encoder}@{block}' for encoder, block in pairs)
    del config.sampler
    return config.to_json(sort_keys=True)

  def listing(self) -> str:
    """A line for every row: name, method, size, steps, published numbers, what else it sets.

    Notes stand below, by number. A row whose model another row has trained names that row.
    """
    cells = [('row', 'method', 'size', 'steps', 'published', 'sets')]
    notes: dict[str, int] = {}
    models = self.trained_as()
    for row in self.rows:
      numbers = '  '.join(f'{name} {value:.2f}' for name, value in row.paper.items())
      sets = _sets(row)
      if models[row.name] != row.name:
        sets = [f'the model of {models[row.name]}', *_sampled(row)]
      marks = [f'[{notes.setdefault(n, len(notes) + 1)}]' for n in row.note.split('; ') if n]
      sets = [*sets, ' '.join(marks)] if marks else sets
      steps = f'{row.steps:,}'
      cells.append((row.name, row.method, row.size, steps, numbers or '-', '; '.join(sets)))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
      '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
      for line in cells
    ]
    return '\n'.join([*lines, '', *(f'[{number}] {note}' for note, number in notes.items())])


def _skips(row: Row) -> bool:
  return common.has_skips(row.method) if row.skips is None else row.skips


def _diverse(row: Row) -> bool:
  return 'diverse' in row.method.split('+')


def _sampled(row: Row) -> list[str]:
  """How it is sampled, where that is not the default."""
  high = row.options.get('sampler.guidance_high', 1)
  return [f'guidance {row.guidance} in [0, {high}]'] if row.guidance != 1 else []


def _sets(row: Row) -> list[str]:
  """What the columns before do not tell."""
  said = [f'{row.resolution} px'] if row.resolution != 256 else []
  said += _sampled(row)
  said += [f'skips={row.skips}'] if row.skips is not None else []
  layers = f'{row.layers} random layers' if row.layers else 'all layers'
  said += [layers] if _diverse(row) else []
  options = {k: v for k, v in row.options.items() if not k.startswith('sampler.')}
  return [*said, *(f'{key}={value}' for key, value in options.items())]
