"""Shows that the PyTorch peers compute what this project computes, from the same weights.

  python benchmarks/peers/check.py --torch_python=PYTHON_WITH_TORCH

1. SiT with random weights goes through a file and `diversedit_jax.convert`; the prediction, the
   loss, all gradients, and all parameters and averages after one whole step are compared, for each
   variant; so do LightningDiT and DDT, for two each. On LightningDiT's clock data and noise change
   places, which the importer turns round; it mixes rows of one kernel, and Adam, which goes by each
   number, moves mixed ones otherwise: that kernel is not among the parameters and averages.
2. The diversity loss of random features, by value and gradient, in both ways of the peer.

Errors are |a - b| / |b| over all numbers of a tensor at once. The exit status is 1 if one is above
its tolerance. Tolerances are a few float32 roundings through a network of that depth; Adam's first
step divides each gradient by its own size, so entries that are rounding noise move by a whole step
in any direction, and what changed is compared with a wider one.
"""

import dataclasses
import pathlib
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))  # As when a benchmark is run.

import common
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
from peers import serving
from safetensors import numpy as safetensors
import steps
import timing

from diversedit_jax import convert, rng, sharding, trees
from diversedit_jax.methods import base, flow
from diversedit_jax.methods.diverse import definition
from diversedit_jax.training import optim, state, step

TOLERANCE, CHANGE_TOLERANCE = 5e-6, 5e-4
# PyTorch sums the squares of a whole tensor in float32 on a CPU: of 6 million, 2e-5 was seen.
NORM_TOLERANCE = 5e-5
EMA_DECAY = 0.5  # An average that moves by more than its rounding within one step.
_CASES = (  # Block, variant, qk_norm, wide head.
  *(('sit', variant, False, ()) for variant in steps.VARIANTS),
  ('lightning', 'plain', False, ()),
  ('lightning', 'skips+loss', True, ()),
  ('ddt', 'plain', False, (2, 512, 8)),
  ('ddt', 'skips+loss', True, (2, 512, 8)),
)
_WAYS = ('per_pair', 'normalised_once')


class Given(flow.StochasticInterpolant):
  """The flow with noise and times that stand in the batch."""

  def draw(self, batch, key):
    del key
    x_NHWC, eps_NHWC, t_N = batch['latents'], batch['noise'], batch['t']
    x_t, target = self.noised(x_NHWC, eps_NHWC, t_N)
    y_N = batch['labels']
    return base.NoisyBatch(x_t=x_t, t=t_N, y=y_N, target=target, noise=eps_NHWC, batch=batch)


def error(found, expected) -> float:
  """Relative error of an array or of all arrays of a tree at once."""
  pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True))
  difference = sum(float(np.sum(np.square(np.float64(a) - np.float64(b)))) for a, b in pairs)
  size = sum(float(np.sum(np.square(np.float64(b)))) for _, b in pairs)
  return (difference / size) ** 0.5


def largest_error(found, expected) -> float:
  """The largest relative error of one tensor."""
  errors = jax.tree.map(error, found, expected)
  return max(jax.tree.leaves(errors))


def check_step(
  child: serving.Child, case: steps.Case, folder: pathlib.Path
) -> dict[str, tuple[float, float]]:
  """name -> (error, tolerance) of one case."""
  variant, batch, turned = case.variant, case.batch, case.block == 'lightning'
  architecture = case.architecture()
  side = architecture.input_size[0]
  names = ('size', 'batch', 'variant', 'block', 'qk_norm', 'head')
  facts = {name: getattr(case, name) for name in names}
  child.ask('make', side=side, decay=EMA_DECAY, **facts)
  child.ask('save', file=str(folder / 'weights.safetensors'))
  weights = convert.load(folder / 'weights.safetensors')
  params = convert.to_ours(weights, case.block)
  generator = np.random.default_rng(1)
  x_NHWC, eps_NHWC = generator.standard_normal((2, batch, *architecture.shape), np.float32)
  t_N = generator.uniform(size=batch).astype(np.float32)
  y_N = np.array([steps.CLASSES, *range(1, batch)], np.int32)  # One without a class.
  inputs, outputs = folder / 'inputs.safetensors', folder / 'outputs.safetensors'
  channels_first = lambda x: np.ascontiguousarray(np.moveaxis(x, -1, 1))
  ends = [channels_first(x) for x in (x_NHWC, eps_NHWC)]
  data, noise, t = (*reversed(ends), 1 - t_N) if turned else (*ends, t_N)
  safetensors.save_file({'latents': data, 'noise': noise, 't': t, 'y': y_N}, inputs)
  theirs = child.ask('given', inputs=str(inputs), outputs=str(outputs))
  arrays = safetensors.load_file(outputs)
  fixed = {name: x for name, x in weights.items() if f'gradient.{name}' not in arrays}

  def trained(params):
    return {'model': trainable.trained(params)['model']}

  def converted(prefix):
    named = {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    return trained(convert.to_ours(fixed | named, case.block))

  def moved(tree):
    moves = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), tree, start)
    if turned:
      del moves['model']['time_embed']['fc1']['kernel']
    return moves

  objective = steps.objective(variant)
  fields = {f.name: getattr(objective.flow, f.name) for f in dataclasses.fields(objective.flow)}
  objective = dataclasses.replace(objective, flow=Given(**fields))
  trainable = steps.trainable(architecture, case.execution(), objective, sharding.make_mesh())
  graphdef = trainable.graphdef
  params = {'heads': {}, **jax.tree.map(jnp.asarray, params)}
  data = {'latents': x_NHWC, 'noise': eps_NHWC, 't': t_N, 'labels': y_N}

  def loss_fn(params, draw):
    network = nnx.merge(graphdef, params)
    return objective.loss(network, draw, key=jax.random.key(0), step=jnp.zeros((), jnp.int32))

  draw = objective.draw(jax.tree.map(jnp.asarray, data), jax.random.key(0))
  (loss, _), grads = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, draw)
  predict = jax.jit(lambda p, d: nnx.merge(graphdef, p).model(d.x_t, d.t, d.y).pred)
  pred = predict(params, draw)
  tx = steps.transformation()
  whole = step.make_step(
    objective,
    graphdef,
    tx,
    key=rng.stream(jax.random.key(0), 'train'),
    ema_decay=EMA_DECAY,
    learning_rate=optim.schedule(optim.OptimizerConfig(), 10),
    fixed=trainable.fixed,
  )
  begun = state.TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema=params,
    opt_state=tx.init(trainable.trained(params)),
  )
  after, metrics = jax.jit(whole)(begun, data, {})
  if objective.terms and not metrics['diverse/weight']:
    raise RuntimeError('the diversity loss has no weight here, so nothing of it would be compared')
  start = trained(params)
  gradients = [np.float64(x) for name, x in arrays.items() if name.startswith('gradient.')]
  norm = sum(np.sum(np.square(x)) for x in gradients) ** 0.5
  return {
    'prediction': (error(-pred if turned else pred, np.moveaxis(arrays['pred'], 1, -1)), TOLERANCE),
    'loss': (abs(float(loss) / theirs['loss'] - 1), TOLERANCE),
    'gradients, all': (error(trained(grads), converted('gradient.')), TOLERANCE),
    'gradients, the worst tensor': (
      largest_error(trained(grads), converted('gradient.')),
      10 * TOLERANCE,
    ),
    'gradient norm': (abs(float(metrics['grad_norm']) / norm - 1), TOLERANCE),
    'gradient norm, as it is clipped there': (abs(theirs['norm'] / norm - 1), NORM_TOLERANCE),
    'parameters moved': (
      error(moved(trained(after.params)), moved(converted('after.'))),
      CHANGE_TOLERANCE,
    ),
    'averages moved': (
      error(moved(trained(after.ema)), moved(converted('average.'))),
      CHANGE_TOLERANCE,
    ),
    'parameters in all': (abs(trees.count(start) - trees.count(converted('after.'))), 0),
  }


def check_loss(child: serving.Child, way: str, folder: pathlib.Path):
  """name -> (error, tolerance) of the loss of random features."""
  generator = np.random.default_rng(2)
  common_NTD = generator.standard_normal((2, 8, 16), np.float32)
  f_LNTD = common_NTD + 0.7 * generator.standard_normal((6, 2, 8, 16), np.float32)
  features, written = folder / 'features.safetensors', folder / 'gradient.safetensors'
  safetensors.save_file({'f_LNTD': f_LNTD}, features)
  theirs = child.ask('make', file=str(features), way=way)['loss']
  child.ask('gradient', file=str(written))
  ours, grad_LNTD = jax.value_and_grad(lambda f: definition.diversity_loss(f)[0])(f_LNTD)
  expected = safetensors.load_file(written)['g_LNTD']
  return {
    'value': (abs(float(ours) / theirs - 1), TOLERANCE),
    'gradient': (error(grad_LNTD, expected), TOLERANCE),
  }


def main() -> int:
  """Prints every error; 1 if one is too large."""
  parser = common.parser(__doc__.splitlines()[0], 'peers_check')
  common.add_peer_flags(parser)
  parser.add_argument('--size', default='S/8', help='of the model')
  parser.add_argument('--batch', type=int, default=3)
  args = parser.parse_args()
  rows, threads = {}, timing.use_threads(args.threads)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    with serving.Child(args.torch_python, 'torch_train.py', threads=threads) as child:
      for block, variant, qk_norm, head in _CASES:
        case = steps.Case(
          size=args.size,
          variant=variant,
          batch=args.batch,
          attention='xla',
          block=block,
          qk_norm=qk_norm,
          head=head,
        )
        rows[f'{block}, {variant}{", qk_norm" * qk_norm}'] = check_step(child, case, folder)
    with serving.Child(args.torch_python, 'torch_loss.py', threads=threads) as child:
      for way in _WAYS:
        rows[f'diversity loss, {way}'] = check_loss(child, way, folder)
  bad = [
    f'{case}: {what}' for case, row in rows.items() for what, (e, most) in row.items() if e > most
  ]
  for case, row in rows.items():
    for what, (found, most) in row.items():
      print(f'{case:36s}{what:38s}{found:12.2e}   at most {most:g}')
  print('equal' if not bad else f'NOT equal: {bad}', flush=True)
  measured = {
    case: {what: {'error': e, 'tolerance': most} for what, (e, most) in row.items()}
    for case, row in rows.items()
  }
  common.write(args.json, {'arguments': common.arguments(args), 'errors': measured, 'bad': bad})
  return 1 if bad else 0


if __name__ == '__main__':
  sys.exit(main())
