"""Pieces of a training step, two ways each: attention, clipping with AdamW.

  python benchmarks/kernels.py

A and B alternate in one process; B is what the package does. Times are of the process's CPU on a
CPU, and of the wall otherwise. `bytes` are what the compiler counts, in units of the input.
"""

import functools

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from diversedit_jax.models import attention, config
from diversedit_jax.training import average, optim

ON_CPU = jax.default_backend() == 'cpu'


def draw(*shape, dtype=jnp.float32, seed=0):
  """Random, since products of zeros are faster than others."""
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def compare(functions, arguments, rounds) -> dict:
  """Milliseconds of two functions by name that alternate, and the ratio of the second to the first.

  Each compiled with the arguments of its name; the order changes from round to round.
  """
  compiled = {name: jax.jit(f).lower(*arguments[name]).compile() for name, f in functions.items()}
  sides = {
    name: timing.filled(functools.partial(run, *arguments[name])) for name, run in compiled.items()
  }
  times = {name: [] for name in functions}
  for i in range(rounds):
    for name in list(times)[:: 1 if i % 2 else -1]:
      times[name].append(1e3 * getattr(sides[name](), timing.main_clock()))
  a, b = times.values()
  ratios = [y / x for x, y in zip(a, b, strict=True)]
  unit = jax.tree.leaves(next(iter(arguments.values())))[0].nbytes
  found = {
    name: {
      **timing.spread(x),
      'bytes': compiled[name].cost_analysis()['bytes accessed'] / unit,
      'temporary_mib': compiled[name].memory_analysis().temp_size_in_bytes / 2**20,
    }
    for name, x in times.items()
  }
  found['ratio'] = timing.spread(ratios)
  return found


def squares(f):
  """The sum of squares of what f returns, to differentiate."""
  return lambda *x: sum(jnp.sum(jnp.square(y.astype(jnp.float32))) for y in jax.tree.leaves(f(*x)))


def both_ways(functions, arguments, rounds) -> dict:
  """Forward, and forward with backward."""
  shared = {name: arguments for name in functions}
  every = tuple(range(len(arguments)))
  gradients = {n: jax.value_and_grad(squares(f), argnums=every) for n, f in functions.items()}
  return {
    'forward': compare(functions, shared, rounds),
    'forward and backward': compare(gradients, shared, rounds),
  }


def attentions(n, rounds, dtype) -> dict:
  """JAX's own XLA attention or cuDNN against ours, at widths of heads and numbers of tokens."""
  found = {}
  own = functools.partial(jax.nn.dot_product_attention, implementation='xla')
  for tokens in (256, 1024):
    for d in (64, 72, 80, 96, 128):
      qkv = [draw(max(1, n * 256 // tokens), tokens, 16, d, dtype=dtype, seed=i) for i in range(3)]
      architecture = config.Architecture(
        input_size=(1, tokens), depth=1, width=16 * d, heads=16, patch_size=1
      )
      execution = config.Execution(dtype=jnp.dtype(dtype).name)
      chosen = attention.implementation(architecture, execution)
      ours = functools.partial(attention.attend, implementation=chosen)
      made = both_ways({'jax xla': own, f'ours ({chosen})': ours}, qkv, rounds)
      found[f'T={tokens} d={d}'] = made
  return found


def optimizers(d, depth, rounds) -> dict:
  """Optax's clipping, AdamW and the average, or ours, on the kernels of some blocks."""
  shapes = {'qkv': (d, 3 * d), 'proj': (d, d), 'fc1': (d, 4 * d), 'fc2': (4 * d, d)}
  params = {k: draw(depth, *shape, seed=i) for i, (k, shape) in enumerate(shapes.items())}
  grads = {k: draw(depth, *shape, seed=9 + i) for i, (k, shape) in enumerate(shapes.items())}
  config = optim.OptimizerConfig()
  plain = optax.chain(
    optax.clip_by_global_norm(config.clip_norm), optax.adamw(1e-4, weight_decay=0)
  )

  def update(tx):
    def run(grads, params, ema, state):
      updates, state = tx.update(grads, state, params)
      params = optax.apply_updates(params, updates)
      return params, average.decayed(ema, params, 0.9999), state

    return run

  ours = optim.make(config, 1000)
  arguments = {
    name: (grads, params, params, tx.init(params))
    for name, tx in (('optax', plain), ('ours', ours))
  }
  return compare({'optax': update(plain), 'ours': update(ours)}, arguments, rounds)


def main() -> None:
  """Measures all pieces; small ones on a CPU."""
  parser = common.parser(__doc__.splitlines()[0], 'kernels')
  parser.add_argument('--rounds', type=int, default=9)
  parser.add_argument('--batch', type=int, default=1 if ON_CPU else 64)
  parser.add_argument('--width', type=int, default=384 if ON_CPU else 1152)
  parser.add_argument('--only', default='', help='attention or optimizer')
  args = parser.parse_args()
  dtype = jnp.float32 if ON_CPU else jnp.bfloat16
  pieces = {
    'attention': lambda: attentions(args.batch, args.rounds, dtype),
    'optimizer': lambda: optimizers(args.width, 4 if ON_CPU else 28, args.rounds),
  }
  wanted = [args.only] if args.only else list(pieces)
  measured = {name: pieces[name]() for name in wanted}
  common.write(args.json, {'arguments': common.arguments(args), **measured})


if __name__ == '__main__':
  main()
