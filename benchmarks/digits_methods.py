"""How well each method samples digits after equally many steps.

  python benchmarks/digits_methods.py

Class consistency and Frechet distance to held-out digits. A check that every method trains and
samples, not a ranking: 1,442 8x8 images, one seed, options that nobody tuned. MeanFlow samples in
one evaluation, the others with 20 Heun steps and guidance 2.
"""

import json
import pathlib
import tempfile
import time

import common

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import modes

METHODS = (
  'flow',
  'diverse',
  'repa',
  'dispersive',
  'sra',
  'reg',
  'meanflow',
  'repa+diverse',
  'sra+diverse',
  'meanflow+diverse',
)


def main() -> None:
  """Trains and scores one method after the other."""
  parser = common.parser(__doc__.splitlines()[0], 'digits_methods')
  parser.add_argument('--steps', type=int, default=1_200)
  parser.add_argument('--methods', nargs='*', default=METHODS)
  args = parser.parse_args()
  rows = {}
  for method in args.methods:
    skips = 'diverse' in method  # DiverseDiT is the connections and the loss together.
    config = digits.get_config(f'method={method},skips={skips},steps={args.steps}')
    config.preview.every, config.log.telemetry_every, config.log.tensorboard = 0, 0, False
    experiment = experiment_lib.build(config)
    with tempfile.TemporaryDirectory() as folder:
      started = time.process_time()
      modes.train.run(experiment, folder)
      seconds = time.process_time() - started
      (written,) = modes.evaluate.run(experiment, folder, None)
      score = json.loads(pathlib.Path(written).read_text())
    rows[method] = {
      'class_consistency': score['class_consistency'],
      'frechet_distance': score['frechet_distance'],
      'nfe': score['protocol']['nfe'],
      'training_cpu_seconds': seconds,
    }
    # After each one, so that what was measured survives being stopped.
    common.write(args.json, {'arguments': common.arguments(args), 'methods': rows})


if __name__ == '__main__':
  main()
