"""A step taken apart: the loss of each example, the size of each block, and what is not finite.

Forwards an example that is not finite stays alone, so the first block whose output is not finite is
where it begins; backwards the gradient of every parameter is lost, and comes from the last block to
the first.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import sharding, trees, types
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods import batches
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import stack, taps, tuning
from diversedit_jax.training import state as state_lib
from diversedit_jax.training import step as step_lib

_SHOWN = 6  # Names in a sentence.
_BLOCKS = 'model/blocks/'

Found = Mapping[str, Any]
"""What `make` computes, arrays of bool saying where all values are finite:

  metrics          scalars of the step, 'grad_norm' among them
  inputs           by name [N], of floating arrays of the batch and features of encoders
  loss, t, label   [N], as drawn for this step
  prediction       [N], finite
  blocks           [N, L], outputs finite; rms [N, L], their root mean squares
  parameters       by path, finite; those of blocks by layer, as they are stacked
  gradients        likewise, of what is trained
  parameter_norm, gradient_norm   [L]
"""


def make(
  objective: objective_lib.Objective,
  trainable: state_lib.Trainable,
  *,
  key: jax.Array,
  depth: int,
  accumulate: int = 1,
) -> Callable[[state_lib.TrainState, types.Batch, step_lib.Frozen], Found]:
  """Makes a function of what goes into a step, at the step's own times and noise; jitted."""
  gradients = step_lib.make_gradients(
    objective, trainable.graphdef, key=key, accumulate=accumulate, fixed=trainable.fixed
  )
  tap = taps.every(lambda f_NTD: (_finite(f_NTD), arithmetic.rms(f_NTD, (1, 2))))

  def diagnose(state, batch, frozen):
    grads, metrics, draw = gradients(state, batch, frozen)

    def of_examples(draw):
      network = tuning.cast_products(nnx.merge(trainable.graphdef, state.params))
      _, loss_N, _ = objective.flow.forward(network, draw, taps.nothing())
      output = objective.flow.run(network, draw, tap)
      blocks_LN, rms_LN = output.features
      return {
        'loss': loss_N,
        'prediction': _finite(output.pred),
        'blocks': blocks_LN.T,
        'rms': rms_LN.T,
      }

    if accumulate == 1:
      found = of_examples(draw)
    else:
      parts = jax.lax.map(of_examples, batches.microbatches(draw, accumulate))
      found = jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:]), parts)
    floating = {k: x for k, x in draw.batch.items() if jnp.issubdtype(x.dtype, jnp.inexact)}
    norms = lambda tree: stack.norms(tree.get('model', {}).get('blocks', {}), depth)
    return found | {
      'metrics': metrics | {'grad_norm': trees.global_norm(grads)},
      'inputs': jax.tree.map(_finite, floating),
      't': draw.t,
      'label': draw.y,
      'parameters': _finite_leaves(state.params),
      'gradients': _finite_leaves(grads),
      'parameter_norm': norms(state.params),
      'gradient_norm': norms(grads),
    }

  return jax.jit(diagnose, out_shardings=sharding.replicated(trainable.mesh))


def findings(found: Found, names: Sequence[str]) -> list[str]:
  """Sentences about what is not finite, in the order in which it comes about; [] if all is.

  found: on the host. names: what each example of the batch is called.
  """
  lines = [
    f'parameter {name}: not finite before the step'
    for name in _bad_leaves(found['parameters'], found['parameter_norm'])
  ]
  for name, fine_N in found['inputs'].items():
    if not fine_N.all():
      lines.append(f'{name}: {_listed(names, ~fine_N)} not finite')
  blocks_NL, fine_N = found['blocks'], found['blocks'].all(axis=1)
  if not fine_N.all():
    first = int(np.argmin(blocks_NL.all(axis=0)))
    lines.append(
      f'output of block {first + 1}, the first such: {_listed(names, ~blocks_NL[:, first])} not '
      'finite'
    )
  for what, this_N in (
    ('prediction', found['prediction']),
    ('loss', np.isfinite(found['loss'])),
  ):
    if (fine_N & ~this_N).any():
      lines.append(f'{what}: {_listed(names, fine_N & ~this_N)} not finite')
    fine_N = fine_N & this_N
  bad = {k: float(v) for k, v in found['metrics'].items() if not np.isfinite(v)}
  if bad:
    lines.append(f'metrics: {", ".join(f"{k} is {v}" for k, v in bad.items())}')
  leaves = _bad_leaves(found['gradients'], found['parameter_norm'])
  if leaves:
    of_blocks = [name for name in leaves if ' of block ' in name]
    last = max((int(name.rpartition(' ')[2]) for name in of_blocks), default=0)
    at = f', of blocks up to {last}' if last else ''
    more = f' and {len(leaves) - _SHOWN} more' if len(leaves) > _SHOWN else ''
    lines.append(f'gradients, not finite{at}: {", ".join(leaves[:_SHOWN])}{more}')
  return lines


def _finite(x):
  return jnp.isfinite(x).all(axis=tuple(range(1, x.ndim)))


def _finite_leaves(tree):
  return {
    name: _finite(x) if name.startswith(_BLOCKS) else jnp.isfinite(x).all()
    for name, x in trees.named_leaves(tree).items()
  }


def _bad_leaves(fine, of_blocks):
  """Names of leaves, with the number of the block, in depth order; what is in none comes first."""
  found = []
  for name, value in fine.items():
    if not name.startswith(_BLOCKS):
      found += [] if value else [(0, name)]
      continue
    part = name.removeprefix(_BLOCKS).partition('/')[0]
    for k in np.flatnonzero(~value):
      block = stack.block_of(part, int(k), len(of_blocks)) + 1
      found.append((block, f'{name} of block {block}'))
  return [name for _, name in sorted(found, key=lambda pair: pair[0])]


def _listed(names, bad_N):
  """'example 7 is' or 'examples 7, 9 are', at most a few of them."""
  if bad_N.all():
    return f'all {len(bad_N)} examples are'
  chosen = [names[i] for i in np.flatnonzero(bad_N)]
  more = f' and {len(chosen) - _SHOWN} more' if len(chosen) > _SHOWN else ''
  listed = f'{", ".join(chosen[:_SHOWN])}{more}'
  return f'example {listed} is' if len(chosen) == 1 else f'examples {listed} are'
