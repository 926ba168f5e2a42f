"""What each method costs: its training step against the plain step, alternating in one run.

  python benchmarks/methods.py
  python benchmarks/methods.py --size=B/2 --batch=64 --dtype=bfloat16 --rounds=20      on one GPU

Times are CPU seconds of the whole process on a CPU, where other load does not count, and wall
seconds elsewhere. Beside the measured ratio stands the one that `--mode=plan` predicts from matrix
products alone; on a CPU both go into the table of docs/methods.md. Data are synthetic and encoders
have random weights: neither changes the cost.
"""

from collections.abc import Mapping
import statistics
import time

import common
import jax
import jax.numpy as jnp
import numpy as np

from configs import imagenet
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import rng, sharding
from diversedit_jax.methods import registry
from diversedit_jax.models import cost
from diversedit_jax.planning import plan
from diversedit_jax.training import state, step

IREPA = 'repa, repa.preset=irepa'
METHODS = (
  *(name for name in registry.METHODS if name != 'flow'),
  IREPA,
  'repa+diverse',
  'meanflow+diverse',
)
PAGE = common.ROOT / 'docs' / 'methods.md'


class Run:
  """One method's compiled step with its state and a batch on the device."""

  def __init__(self, name: str, args):
    method, _, preset = name.partition(', repa.preset=')
    config = imagenet.get(
      f'method={method},skips=False,size={args.size}', size='S/2', resolution=256
    )
    config.model.dtype, config.repa.dtype = args.dtype, args.dtype
    config.repa.pairs = config.haste.encoder = args.encoder
    config.repa.preset, config.train.batch_size = preset or 'repa', args.batch
    config.dispersive.groups = 1
    config.sampler.steps = 1 if 'meanflow' in method else 250
    self.experiment = experiment = experiment_lib.build(config)
    mesh = sharding.make_mesh()
    trainable = state.Trainable(experiment.network, experiment.transformation(), mesh)
    self.state = trainable.init(jax.random.key(0))
    self.frozen = jax.tree.map(
      lambda x: jnp.full(x.shape, 0.02, x.dtype),
      {e.name: e.params for e in experiment.objective.encoders},
    )
    made = step.make_step(
      experiment.objective,
      trainable.graphdef,
      experiment.transformation(),
      key=rng.stream(jax.random.key(0), 'train'),
      ema_decay=0.9999,
      learning_rate=experiment.schedule(),
    )
    self.step = step.compile_step(made, trainable.shardings, mesh)
    self.batch = sharding.put_batch(
      experiment.source.gather(np.arange(args.batch)), mesh, args.batch
    )

  def seconds(self) -> float:
    """Seconds of one step, waited for."""
    clock = time.process_time if jax.default_backend() == 'cpu' else time.perf_counter
    started = clock()
    self.state, metrics = self.step(self.state, self.batch, self.frozen)
    jax.block_until_ready((self.state, metrics))
    return clock() - started

  def predicted(self) -> float:
    """The whole step over the plain one, by matrix products."""
    architecture, execution = self.experiment.architecture, self.experiment.execution
    added = plan.method_flops(self.experiment.objective, architecture, len(self.batch['labels']))
    plain = cost.cost(plan.plain_architecture(architecture), execution).training
    return 1 + sum(added.values()) / plain


def costs(rows: Mapping[str, Mapping[str, float]]) -> dict[str, str]:
  """The last cell of a method's row on the page, by the first: measured, and predicted."""
  cell = lambda row: f'{row["ratio_median"]:.2f} ({row["ratio_predicted"]:.2f})'
  return {f'`{name.replace(", ", "`, `")}`': cell(row) for name, row in rows.items()}


def with_costs(page: str, rows: Mapping[str, Mapping[str, float]]) -> str:
  """The page with the costs of `rows` in its table of methods."""
  found = costs(rows)

  def line(text):
    cells = text.split('|')  # The first and the last cell of a row are empty.
    name = cells[1].strip() if len(cells) > 2 else ''
    return '|'.join([*cells[:-2], f' {found[name]} ', '']) if name in found else text

  return '\n'.join(map(line, page.split('\n')))


def main() -> None:
  """Measures every method against plain flow matching."""
  parser = common.parser(__doc__.splitlines()[0], 'methods')
  parser.add_argument('--size', default='S/2')
  parser.add_argument('--batch', type=int, default=4)
  parser.add_argument('--dtype', default='float32')
  parser.add_argument('--encoder', default='dinov2-vit-s')
  parser.add_argument('--rounds', type=int, default=5)
  args = parser.parse_args()
  plain, rows = Run('flow', args), {}
  plain.seconds()
  for method in METHODS:
    run = Run(method, args)
    run.seconds()
    pairs = [(plain.seconds(), run.seconds()) for _ in range(args.rounds)]
    ratios = [with_method / alone for alone, with_method in pairs]
    rows[method] = {
      'ratio_median': statistics.median(ratios),
      'ratio_min': min(ratios),
      'ratio_max': max(ratios),
      'ratio_predicted': run.predicted(),
      'seconds_median': statistics.median(with_method for _, with_method in pairs),
      'plain_seconds_median': statistics.median(alone for alone, _ in pairs),
    }
    print(method, rows[method], flush=True)
    del run
  common.write(args.json, {'arguments': common.arguments(args), 'methods': rows})
  if jax.default_backend() == 'cpu':
    PAGE.write_text(with_costs(PAGE.read_text(), rows))


if __name__ == '__main__':
  main()
