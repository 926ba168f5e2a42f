"""Every trained row of the DiverseDiT paper's tables (arXiv 2603.04239).

  python -m diversedit_jax.main --config=configs/paper.py --mode=list
  python -m diversedit_jax.main --workdir=DIR \
    --config=configs/paper.py:table1/SiT-B+DiverseDiT,data=store:DIR

Hardware, time and memory: as in the header of the size's own file, b256.py to xl512.py.
The numbers are the paper's, FID-50K and so on; none has been measured with this code yet. Steps are
the papers' round ones, 5,000 to an epoch (5,004 batches of 256 exactly): 80 epochs are 400K.
Unlike the other files, the rows have the paper's own diversity loss: 10 random blocks at each step,
where the project's default is all of them; only tableA7/SiT-L-24-layers has all.
Rows whose models are trained alike need one run: `--mode=list` names the first of them, and all
others are evaluated with its workdir, because the keys of `sampler` may change.
Without a row: Table A1, which is the recipe, and rows that the paper quotes from others.
Meta-arguments after the row: data, steps. All else is a key, as `--config.seed=1`.
The tables themselves are in configs/tables/.
"""

import difflib

import ml_collections

from configs import common, imagenet
from configs.tables import body, supplement
from configs.tables.row import Row
from diversedit_jax import types
from diversedit_jax.methods import repa
from diversedit_jax.models import sizes

ROWS = (*body.ROWS, *supplement.ROWS)


def get_config(arg: str | None = None) -> ml_collections.ConfigDict:
  """The config of `ROW,data=...,steps=...`; without a row the table of all, under `listing`.

  Raises:
    UserError: for an unknown row (the nearest is named) or meta-argument.
  """
  if not arg:
    return ml_collections.ConfigDict({'listing': listing()})
  name, _, rest = arg.partition(',')
  row = find(name)
  args = common.parse_arg(
    rest, data=imagenet.dry_run_data(row.method, row.resolution), steps=row.steps
  )
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
  config.update_from_flattened_dict(row.options)
  return config


def find(name: str) -> Row:
  """The row of a name; capitals do not matter.

  Raises:
    UserError: naming the nearest row.
  """
  rows = {row.name.lower(): row for row in ROWS}
  if name.lower() not in rows:
    near = difflib.get_close_matches(name.lower(), rows, n=1, cutoff=0.0)[0]
    raise types.UserError(
      f'no row {name!r} in the tables of the paper; the nearest is {rows[near].name!r}, and '
      '--config=configs/paper.py --mode=list shows all'
    )
  return rows[name.lower()]


def trained_as() -> dict[str, str]:
  """The first row whose training is the same, by row; the first one has itself."""
  first: dict[str, str] = {}
  return {row.name: first.setdefault(_training(row), row.name) for row in ROWS}


def _training(row: Row) -> str:
  """The config without how it is sampled, written out."""
  config = get_config(row.name)
  if 'repa' in row.method.split('+'):
    depth = sizes.size(row.size).depth
    pairs = repa.parse_pairs(config.repa.pairs, depth)
    config.repa.pairs = ','.join(f'{encoder}@{block}' for encoder, block in pairs)
  del config.sampler
  return config.to_json(sort_keys=True)


def listing() -> str:
  """A line for every row: name, method, size, steps, the paper's numbers, what else it sets.

  Notes stand below, by number. A row whose model another row has trained names that row.
  """
  cells = [('row', 'method', 'size', 'steps', "the paper's numbers", 'sets')]
  notes: dict[str, int] = {}
  models = trained_as()
  for row in ROWS:
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
