"""Every trained row of the DiverseDiT paper's tables (arXiv 2603.04239) whose numbers we have.

  python -m diversedit_jax.main --config=configs/paper.py --mode=list
  python -m diversedit_jax.main --workdir=DIR \
    --config=configs/paper.py:table1/SiT-B+DiverseDiT,data=store:DIR

Hardware, time and memory: as in the header of the size's own file, b256.py to xl512.py.
The numbers are the paper's, FID-50K and so on; none has been measured with this code yet. Steps are
the papers' round ones, 5,000 to an epoch (5,004 batches of 256 exactly): 80 epochs are 400K.
Unlike the other files, the rows have the paper's own diversity loss: 10 random blocks at each step,
where the project's default is all of them; only tableA7/SiT-L-24-layers has all.
Without a row: Table A1, which is the recipe; A2, which is of an analysis (`--mode=analyze`); A5,
A6, A9 and A10, which are not transcribed; and rows that the paper quotes from others.
Meta-arguments after the row: data, steps. All else is a key, as `--config.seed=1`.
"""

from collections.abc import Mapping
import dataclasses
import difflib
from typing import Any

import ml_collections

from configs import common, imagenet
from diversedit_jax import types

_METRICS = ('FID', 'sFID', 'IS', 'Prec', 'Rec')


@dataclasses.dataclass(frozen=True)
class Row:
  """One experiment.

  name: TABLE/ROW. method, size, resolution, steps, guidance: see `imagenet.get`.
  skips: None is what the method implies. layers: how many random blocks a diversity loss compares;
    0 is all, the project's default. options: further keys of the config.
  paper: what the paper measured. note: what is not a number, or is assumed.
  """

  name: str
  method: str
  size: str
  _: dataclasses.KW_ONLY
  resolution: int = 256
  steps: int = 400_000
  guidance: float = 1.0
  skips: bool | None = None
  layers: int = 10
  options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  paper: Mapping[str, float]
  note: str = ''


def _p(*values: float, **named: float) -> dict[str, float]:
  return dict(zip(_METRICS, values, strict=False)) | named


_SIT, _REPA, _MEANFLOW = 'flow', 'repa', 'meanflow'
_SIT_OURS, _REPA_OURS, _MEANFLOW_OURS = 'flow+diverse', 'repa+diverse', 'meanflow+diverse'
_ORTH = {'diversity.weights': (0.33, 0.0, 0.0)}
_MI = {'diversity.weights': (0.0, 0.33, 0.0)}
_DISPERSION = {'diversity.weights': (0.0, 0.0, 0.33)}
_OFF = 'never positive by (14), so the adaptive weight keeps it off'
_INTERVAL = {'sampler.guidance_high': 0.7}  # REPA's.
_ASSUMED = 'method and guidance assumed; the released command samples with 1.8'
_LENGTH = 'length assumed: 240 epochs, as MeanFlow'
_ALWAYS = 'guided at all times: assumed, as these FIDs differ from those of Table 2'
_REPA_5 = {'guidance': 1.35, 'options': {'repa.pairs': 'dinov2-vit-b@5'}, 'note': _ALWAYS}
_REPA_8 = {'guidance': 1.35, 'options': {'repa.pairs': 'dinov2-vit-b@8'}, 'note': _ALWAYS}


def _range(lo: float, hi: float) -> dict[str, Any]:
  return {'diversity.lo': lo, 'diversity.hi': hi}


# fmt: off
ROWS = (
  # 256 px, no guidance.
  Row('table1/SiT-B', _SIT, 'B/2', paper=_p(36.80, 6.77, 40.09, 0.51, 0.63)),
  Row('table1/SiT-B+DiverseDiT', _SIT_OURS, 'B/2', paper=_p(28.05, 6.04, 50.66, 0.57, 0.63)),
  Row('table1/REPA-B', _REPA, 'B/2', paper=_p(22.99, 6.70, 64.73, 0.59, 0.65)),
  Row('table1/REPA-B+DiverseDiT', _REPA_OURS, 'B/2', paper=_p(17.29, 6.56, 79.92, 0.62, 0.65)),
  Row('table1/SiT-L', _SIT, 'L/2', paper=_p(18.77, 5.27, 71.44, 0.64, 0.63)),
  Row('table1/SiT-L+DiverseDiT', _SIT_OURS, 'L/2', paper=_p(16.10, 5.08, 79.47, 0.66, 0.64)),
  Row('table1/REPA-L', _REPA, 'L/2', paper=_p(9.57, 5.34, 113.32, 0.69, 0.66)),
  Row('table1/REPA-L+DiverseDiT', _REPA_OURS, 'L/2', paper=_p(8.47, 5.42, 123.03, 0.69, 0.67)),
  Row('table1/SiT-XL', _SIT, 'XL/2', paper=_p(17.43, 5.11, 76.00, 0.64, 0.64)),
  Row('table1/SiT-XL+DiverseDiT', _SIT_OURS, 'XL/2', paper=_p(12.42, 4.85, 95.01, 0.68, 0.63)),
  Row('table1/REPA-XL', _REPA, 'XL/2', paper=_p(8.73, 5.21, 118.68, 0.69, 0.65)),
  Row('table1/REPA-XL+DiverseDiT', _REPA_OURS, 'XL/2', paper=_p(8.09, 5.02, 123.23, 0.70, 0.65)),

  # 256 and 512 px, guided.
  Row('table2/80-epochs', _REPA_OURS, 'XL/2', guidance=1.35, options=_INTERVAL,
      paper=_p(1.89, 4.44, 276.85, 0.81, 0.66), note=_ASSUMED),
  Row('table2/200-epochs', _REPA_OURS, 'XL/2', steps=1_000_000, guidance=1.35, options=_INTERVAL,
      paper=_p(1.52, 4.23, 282.72, 0.81, 0.66), note=_ASSUMED),
  Row('table3/80-epochs', _REPA_OURS, 'XL/2', resolution=512, guidance=1.35, options=_INTERVAL,
      paper=_p(2.21, 4.31, 241.08, 0.82, 0.61), note=_ASSUMED),
  Row('table3/200-epochs', _REPA_OURS, 'XL/2', resolution=512, steps=1_000_000, guidance=1.35,
      options=_INTERVAL, paper=_p(1.99, 4.19, 267.12, 0.83, 0.61), note=_ASSUMED),

  # One step; guidance is part of MeanFlow's training.
  Row('table4/MeanFlow-B', _MEANFLOW, 'B/2', paper=_p(9.44)),
  Row('table4/MeanFlow-B+DiverseDiT', _MEANFLOW_OURS, 'B/2', paper=_p(8.51)),
  Row('table4/MeanFlow-L', _MEANFLOW, 'L/2', paper=_p(8.73)),
  Row('table4/MeanFlow-L+DiverseDiT', _MEANFLOW_OURS, 'L/2', paper=_p(7.15)),
  Row('table4/MeanFlow-XL', _MEANFLOW, 'XL/2', paper=_p(5.94)),
  Row('table4/MeanFlow-XL+DiverseDiT', _MEANFLOW_OURS, 'XL/2', paper=_p(5.69)),
  Row('table5/MeanFlow-XL', _MEANFLOW, 'XL/2', steps=1_200_000, paper=_p(3.43), note=_LENGTH),
  Row('table5/MeanFlow-XL+DispLoss', 'meanflow+dispersive', 'XL/2', steps=1_200_000,
      paper=_p(3.21), note=_LENGTH),
  Row('table5/MeanFlow-XL+DiverseDiT', _MEANFLOW_OURS, 'XL/2', steps=1_200_000, paper=_p(2.99),
      note=_LENGTH),

  # Parts of DiverseDiT.
  Row('table6/SiT-B-full', _SIT_OURS, 'B/2', paper=_p(28.05)),
  Row('table6/SiT-B-no-diversity', _SIT, 'B/2', skips=True, paper=_p(32.77)),
  Row('table6/SiT-B-no-residual', _SIT_OURS, 'B/2', skips=False, paper=_p(33.72)),
  Row('table6/REPA-B-full', _REPA_OURS, 'B/2', paper=_p(17.29)),
  Row('table6/REPA-B-no-diversity', _REPA, 'B/2', skips=True, paper=_p(20.66)),
  Row('table6/REPA-B-no-residual', _REPA_OURS, 'B/2', skips=False, paper=_p(18.18)),
  Row('table7/REPA-B-only-orth', _REPA_OURS, 'B/2', options=_ORTH, paper=_p(18.97)),
  Row('table7/REPA-B-only-MI', _REPA_OURS, 'B/2', options=_MI, paper=_p(17.70)),
  Row('table7/REPA-B-only-dispersion', _REPA_OURS, 'B/2', options=_DISPERSION, paper=_p(20.85),
      note=_OFF),
  Row('table8/SiT-B-0.1-0.5', _SIT_OURS, 'B/2', options=_range(0.1, 0.5), paper=_p(28.05)),
  Row('table8/SiT-B-0.2-0.7', _SIT_OURS, 'B/2', options=_range(0.2, 0.7), paper=_p(30.59)),
  Row('table8/SiT-B-0.3-0.9', _SIT_OURS, 'B/2', options=_range(0.3, 0.9), paper=_p(31.85)),
  Row('table8/SiT-B-constant', _SIT_OURS, 'B/2', options={'diversity.adaptive': False}, paper={},
      note='expected: diverges'),

  # Together with other methods.
  Row('table9/SiT-B+DiverseDiT', _SIT_OURS, 'B/2', paper=_p(28.05)),
  Row('table9/SiT-B+DiverseDiT+DispLoss', 'flow+diverse+dispersive', 'B/2', paper=_p(24.98)),
  Row('table9/SiT-B+DiverseDiT+SRA', 'flow+diverse+sra', 'B/2', paper=_p(21.95)),

  # 512 px, no guidance.
  Row('tableA3/SiT-B', _SIT, 'B/2', resolution=512, paper=_p(43.46)),
  Row('tableA3/SiT-B+DiverseDiT', _SIT_OURS, 'B/2', resolution=512, paper=_p(33.18)),
  Row('tableA3/REPA-B', _REPA, 'B/2', resolution=512, paper=_p(30.13)),
  Row('tableA3/REPA-B+DiverseDiT', _REPA_OURS, 'B/2', resolution=512, paper=_p(23.82)),
  Row('tableA3/SiT-L', _SIT, 'L/2', resolution=512, paper=_p(22.75)),
  Row('tableA3/SiT-L+DiverseDiT', _SIT_OURS, 'L/2', resolution=512, paper=_p(19.19)),
  Row('tableA3/REPA-L', _REPA, 'L/2', resolution=512, paper=_p(10.82)),
  Row('tableA3/REPA-L+DiverseDiT', _REPA_OURS, 'L/2', resolution=512, paper=_p(9.83)),
  Row('tableA3/SiT-XL', _SIT, 'XL/2', resolution=512, paper=_p(19.65)),
  Row('tableA3/SiT-XL+DiverseDiT', _SIT_OURS, 'XL/2', resolution=512, paper=_p(17.68)),
  Row('tableA3/REPA-XL', _REPA, 'XL/2', resolution=512, paper=_p(7.91)),
  Row('tableA3/REPA-XL+DiverseDiT', _REPA_OURS, 'XL/2', resolution=512, paper=_p(7.18)),

  # Depth of alignment, guided at all times.
  Row('tableA4/REPA-B-5', _REPA, 'B/2', **_REPA_5, paper=_p(12.47)),
  Row('tableA4/REPA-B-5+DiverseDiT', _REPA_OURS, 'B/2', **_REPA_5, paper=_p(8.33)),
  Row('tableA4/REPA-B-8', _REPA, 'B/2', **_REPA_8, paper=_p(16.46)),
  Row('tableA4/REPA-B-8+DiverseDiT', _REPA_OURS, 'B/2', **_REPA_8, paper=_p(12.92)),
  Row('tableA4/REPA-L-5', _REPA, 'L/2', **_REPA_5, paper=_p(5.14)),
  Row('tableA4/REPA-L-5+DiverseDiT', _REPA_OURS, 'L/2', **_REPA_5, paper=_p(4.18)),
  Row('tableA4/REPA-L-8', _REPA, 'L/2', **_REPA_8, paper=_p(3.86)),
  Row('tableA4/REPA-L-8+DiverseDiT', _REPA_OURS, 'L/2', **_REPA_8, paper=_p(3.39)),
  Row('tableA4/REPA-XL-5', _REPA, 'XL/2', **_REPA_5, paper=_p(3.33)),
  Row('tableA4/REPA-XL-5+DiverseDiT', _REPA_OURS, 'XL/2', **_REPA_5, paper=_p(3.17)),
  Row('tableA4/REPA-XL-8', _REPA, 'XL/2', **_REPA_8, paper=_p(3.50)),
  Row('tableA4/REPA-XL-8+DiverseDiT', _REPA_OURS, 'XL/2', **_REPA_8, paper=_p(3.16)),

  # Blocks that the diversity loss compares.
  Row('tableA7/SiT-L-none', _SIT, 'L/2', paper=_p(18.77, IS=71.44, hours=18.66)),
  Row('tableA7/SiT-L-5-layers', _SIT_OURS, 'L/2', layers=5,
      paper=_p(16.85, IS=77.62, hours=19.90)),
  Row('tableA7/SiT-L-10-layers', _SIT_OURS, 'L/2', layers=10,
      paper=_p(16.10, IS=79.47, hours=21.02)),
  Row('tableA7/SiT-L-15-layers', _SIT_OURS, 'L/2', layers=15,
      paper=_p(16.01, IS=82.05, hours=23.45)),
  Row('tableA7/SiT-L-20-layers', _SIT_OURS, 'L/2', layers=20,
      paper=_p(15.84, IS=83.95, hours=25.96)),
  Row('tableA7/SiT-L-24-layers', _SIT_OURS, 'L/2', layers=0,
      paper=_p(15.77, IS=85.64, hours=28.50)),

  # Table 7 without alignment.
  Row('tableA8/SiT-B-only-orth', _SIT_OURS, 'B/2', options=_ORTH, paper=_p(31.32)),
  Row('tableA8/SiT-B-only-MI', _SIT_OURS, 'B/2', options=_MI, paper=_p(29.97)),
  Row('tableA8/SiT-B-only-dispersion', _SIT_OURS, 'B/2', options=_DISPERSION, paper=_p(36.12),
      note=_OFF),
)
# fmt: on


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


def listing() -> str:
  """A line for every row: name, method, size, steps, the paper's numbers, what else it sets."""
  cells = [('row', 'method', 'size', 'steps', "the paper's numbers", 'sets')]
  for row in ROWS:
    numbers = '  '.join(f'{name} {value:.2f}' for name, value in row.paper.items())
    cells.append(
      (row.name, row.method, row.size, f'{row.steps:,}', numbers or '-', '; '.join(_sets(row)))
    )
  widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
  lines = [
    '  '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
    for line in cells
  ]
  return '\n'.join(lines)


def _skips(row: Row) -> bool:
  return common.has_skips(row.method) if row.skips is None else row.skips


def _diverse(row: Row) -> bool:
  return 'diverse' in row.method.split('+')


def _sets(row: Row) -> list[str]:
  """What the columns before do not tell."""
  said = [f'{row.resolution} px'] if row.resolution != 256 else []
  said += [f'guidance {row.guidance}'] if row.guidance != 1 else []
  said += [f'skips={row.skips}'] if row.skips is not None else []
  layers = f'{row.layers} random layers' if row.layers else 'all layers'
  said += [layers] if _diverse(row) else []
  said += [f'{key}={value}' for key, value in row.options.items()]
  return [*said, row.note] if row.note else said
