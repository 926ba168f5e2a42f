"""Which mesh, batch and recomputation on which hardware; writes the table of docs/scale.md.

  python benchmarks/sizing.py
  python benchmarks/sizing.py --rows=0,3

Each row is `--mode=plan --config.plan.compile_for=TARGET` of a config with the diversity loss and
long skips. Memory is the compiler's account of the program, which did not run; images a second are
expected, by arithmetic, at the share of peak FLOP/s that is named. Rows that are not made anew stay
as results/sizing.json has them. Needs the compilers of `ahead.py`.
"""

import argparse
import dataclasses
import json
import pathlib

import ahead
import common

from configs import imagenet
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.modes import plan as plan_mode
from diversedit_jax.planning import devices
from diversedit_jax.planning import plan as plan_lib

_HERE = pathlib.Path(__file__).parent
_RESULTS, _PAGE = _HERE / 'results' / 'sizing.json', _HERE.parent / 'docs' / 'scale.md'
_BEGIN, _END = '<!-- made by benchmarks/sizing.py -->\n', '<!-- end -->\n'
# Dense bfloat16 by data sheet.
_TFLOPS = {'h100': 989.0, 'h200': 989.0, 'a100-80': 312.0, 'v5e': 197.0, 'v5p': 459.0, 'v6e': 918.0}
_MFU = 0.2


@dataclasses.dataclass(frozen=True)
class Row:
  """Keys are those of the config."""

  size: str
  resolution: int
  batch: int
  target: str
  remat: str = 'none'
  fsdp: int = 1
  zero1: bool = False


ROWS = (
  Row('B/2', 256, 256, 'h100:8'),
  Row('XL/2', 256, 256, 'h100:8'),
  Row('XL/2', 256, 256, 'h200:8'),
  Row('XL/2', 256, 256, 'v6e:4x4'),
  Row('XL/2', 512, 256, 'h200:8'),
)


def made(row: Row) -> dict:
  """The plan of a row and the compiler's account."""
  config = imagenet.get('method=diverse', size=row.size, resolution=row.resolution)
  config.train.batch_size, config.model.remat = row.batch, row.remat
  config.mesh.fsdp, config.optimizer.shard_over_data = row.fsdp, row.zero1
  config.plan.update(
    dict(
      compile_for=row.target,
      devices=None,
      mfu=_MFU,
      peak_tflops=_TFLOPS[devices.parse(row.target)[0]],
    )
  )
  experiment = experiment_lib.build(config, planned=True)
  target = devices.find(row.target)
  numbers = plan_mode.numbers(experiment, experiment.plan.count(target))
  report = plan_mode.report(experiment, target)
  gib = lambda count: count / devices.GIB
  return dataclasses.asdict(row) | {
    'devices': report.devices,
    'needed_gib': gib(report.needed),
    'usable_gib': gib(report.usable),
    'fits': report.fits,
    'estimate': plan_lib.memory_gib(numbers) / gib(report.needed),
    'images_per_second': numbers['images_per_second'],
    'collectives': {
      kind: (sums['count'], sums['bytes']) for kind, sums in report.collectives.items()
    },
  }


def table(rows: list[dict]) -> str:
  """The rows in Markdown."""
  lines = [
    '| model | hardware | batch | mesh | remat | memory of a device, by the compiler | sent in a '
    f'step | images/s expected at {_MFU:.0%} MFU |',
    '|---|---|---|---|---|---|---|---|',
  ]
  for row in rows:
    fsdp = f'fsdp {row["fsdp"]}, ' if row['fsdp'] > 1 else ''
    sent = sum(size for _, size in row['collectives'].values())
    cells = (
      f'{row["size"]}, {row["resolution"]} px',
      f'`{row["target"]}`',
      str(row['batch']),
      f'{fsdp}data {row["devices"] // row["fsdp"]}' + ', ZeRO-1' * row['zero1'],
      row['remat'],
      f'{row["needed_gib"]:.1f} of {row["usable_gib"]:.1f} GiB' + ': NO' * (not row['fits']),
      f'{sent / 1e9:.2f} GB' if sent else '',
      f'{row["images_per_second"]:,.0f}',
    )
    lines.append(f'| {" | ".join(cells)} |')
  return '\n'.join(lines) + '\n'


def main() -> None:
  """Makes the rows that are asked for, and the page."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  number = lambda text: tuple(map(int, text.split(',')))
  parser.add_argument('--rows', type=number, default=tuple(range(len(ROWS))))
  args = parser.parse_args()
  ahead.only_compile()
  old = json.loads(_RESULTS.read_text())['rows'] if _RESULTS.exists() else []
  known = {tuple(row[f.name] for f in dataclasses.fields(Row)): row for row in old}
  for i in args.rows:
    known[dataclasses.astuple(ROWS[i])] = made(ROWS[i])
    print(table([known[dataclasses.astuple(ROWS[i])]]), flush=True)
    rows = [known[dataclasses.astuple(row)] for row in ROWS if dataclasses.astuple(row) in known]
    facts = {'nothing_ran': ahead.NOTHING_RAN, 'compilers': ahead.compilers(), 'rows': rows}
    common.write(str(_RESULTS), facts)
  before, _, rest = _PAGE.read_text().partition(_BEGIN)
  _, _, after = rest.partition(_END)
  _PAGE.write_text(before + _BEGIN + table(rows) + '\n' + _END + after)


if __name__ == '__main__':
  main()
