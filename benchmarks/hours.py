"""What the rows of the paper's tables would cost; writes the two tables of docs/paper.md.

  python benchmarks/hours.py

Each number is `--mode=plan` of a row: FLOPs of the matrix products, divided by a device's peak and
an assumed share of it. Nothing is compiled or run. Models that several rows share count once.
"""

import pathlib

import common

from configs import paper
from configs.tables.row import Row
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.modes import plan as plan_mode

_PAGE = common.ROOT / 'docs' / 'paper.md'
_BEGIN, _END = '<!-- made by benchmarks/hours.py -->\n', '<!-- end -->\n'
# Dense, by data sheet: bfloat16, and TF32 for MeanFlow's float32 products, which a TPU has not.
_TFLOPS = {'H100': {'bfloat16': 989.0, 'float32': 495.0}, 'v6e': {'bfloat16': 918.0}}
_MFU = 0.2
_SAMPLES, _EVALUATIONS = 50_000, 250


def planned(row: Row) -> dict:
  """FLOPs of an image in training and in one evaluation, parameters, and the type of products."""
  experiment = experiment_lib.build(paper.get_config(row.name), planned=True)
  numbers = plan_mode.numbers(experiment, 8)
  return {
    'parameters': numbers['parameters'],
    'training': numbers['training_gflops_per_image'] * 1e9,
    'forward': numbers['forward_gflops_per_image'] * 1e9,
    'images': row.steps * experiment.train.batch_size,
    'evaluations': _SAMPLES * (1 if 'meanflow' in row.method else _EVALUATIONS),
    'dtype': experiment.execution.dtype,
  }


def _hours(flops: float, device: str, dtype: str) -> float | None:
  peak = _TFLOPS[device].get(dtype)
  return None if peak is None else flops / (peak * 1e12 * _MFU) / 3600


def _text(hours: float | None) -> str:
  if hours is None:
    return '-'
  return f'{hours:,.0f}' if hours >= 10 else f'{hours:.1f}' if hours >= 0.1 else '< 0.1'


def _markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  lines = [head, ('---',) * len(head), *rows]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n'


def tables() -> str:
  """Hours of each kind of model, and of each table's models, in Markdown."""
  models = paper.trained_as()
  trained = [row for row in paper.ROWS if models[row.name] == row.name]
  plans = {row.name: planned(row) for row in trained}
  kinds: dict[tuple, Row] = {}
  for row in trained:
    if row.steps == 400_000:
      kinds.setdefault((row.resolution, row.size, row.method), row)
  one = []
  for (resolution, size, method), row in sorted(kinds.items(), key=_order):
    plan = plans[row.name]
    training = plan['training'] * plan['images']
    sampling = plan['forward'] * plan['evaluations']
    hours = [_text(_hours(training, device, plan['dtype'])) for device in _TFLOPS]
    cells = (f'{size}, {resolution} px', f'`{method}`', f'`{row.name}`')
    cells += (f'{plan["parameters"] / 1e6:,.0f}M', f'{plan["training"] / 1e9:,.0f}')
    one.append((*cells, *hours, _text(_hours(sampling, 'H100', plan['dtype']))))
  by_table: dict[str, list[Row]] = {row.name.split('/')[0]: [] for row in paper.ROWS}
  for row in trained:
    by_table[row.name.split('/')[0]].append(row)
  sums, all_tables = dict.fromkeys(_TFLOPS, 0.0), []
  for table, rows in by_table.items():
    hours = {device: sum(_training(plans[row.name], device) for row in rows) for device in _TFLOPS}
    sums = {device: sums[device] + hours[device] for device in _TFLOPS}
    number = sum(row.name.startswith(f'{table}/') for row in paper.ROWS)
    all_tables.append((table.removeprefix('table'), number, len(rows), *hours.values()))
  all_tables.append(('all', len(paper.ROWS), len(trained), *sums.values()))
  by = tuple(f'{device}-hours of training' for device in _TFLOPS)
  head = ('model', '`method`', 'first row', 'parameters', 'GFLOPs an image, training')
  head += tuple(f'{device}-hours, 400K steps' for device in _TFLOPS)
  text = lambda models, hours: f'{hours:,.0f}' if hours or not models else '-'
  cells = [
    (name, str(rows), str(models), *(text(models, hours) for hours in sums))
    for name, rows, models, *sums in all_tables
  ]
  return (
    _markdown((*head, 'H100-hours, 50K samples'), one)
    + '\n'
    + _markdown(('table', 'rows', 'models not in a table above', *by), cells)
  )


def _training(plan: dict, device: str) -> float:
  """Hours of a whole training; 0 where the device has no peak for its products."""
  return _hours(plan['training'] * plan['images'], device, plan['dtype']) or 0.0


def _order(item: tuple[tuple, Row]) -> tuple:
  (resolution, size, method), _ = item
  return resolution, ('B/2', 'L/2', 'XL/2').index(size), method


def page(text: str) -> str:
  """The page with its tables made anew."""
  before, _, rest = text.partition(_BEGIN)
  _, _, after = rest.partition(_END)
  return before + _BEGIN + tables() + '\n' + _END + after


def main() -> None:
  """Writes the page."""
  path = pathlib.Path(_PAGE)
  path.write_text(page(path.read_text()))


if __name__ == '__main__':
  main()
