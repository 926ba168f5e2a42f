"""How the terms of the loss pull at each block: cosines and norms of their gradients.

The gradient of the flow's loss (the velocity's) and of each term, as they are added to the training
loss, with respect to the parameters of every block, on batches of the training split. A cosine
above 0 helps the flow, below 0 works against it, and near 0 is another direction.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import progress, rng, sharding, trees
from diversedit_jax.analysis import panels, registry
from diversedit_jax.analysis import scope as scope_lib
from diversedit_jax.methods import base
from diversedit_jax.models import stack


def lacks(scope: scope_lib.Scope) -> str:
  """Why there are no two gradients to compare."""
  terms, heads = scope.objective.terms, scope.subject.params.get('heads', {})
  if not terms:
    return (
      'compares the gradients of the terms of a method, and this one has no term beside its flow'
    )
  headless = [t.name for t in terms if type(t).heads is not base.Term.heads and t.name not in heads]
  if headless:
    return f'needs the heads of {headless[0]}, which are in checkpoints of a run only'
  if scope.batch_size > len(scope.training):
    return f'needs {scope.batch_size} training examples, and there are {len(scope.training)}'
  return ''


def products(
  losses: Callable[[Any], Mapping[str, jax.Array]], blocks: Any, depth: int
) -> dict[str, dict[str, jax.Array]]:
  """Scalar products [L], by block, of the gradients of every two losses; by their names.

  Args:
    losses: (blocks) -> scalars by name. blocks: parameters of a `stack.Stack`. depth: L.
  """
  values, pull = jax.vjp(losses, blocks)
  zeros = jax.tree.map(jnp.zeros_like, values)
  gradients = {name: pull({**zeros, name: jnp.ones_like(values[name])})[0] for name in values}
  return {
    a: {b: stack.products(of_a, of_b, depth) for b, of_b in gradients.items()}
    for a, of_a in gradients.items()
  }


def spaced(there: int, size: int, batches: int) -> np.ndarray:
  """Indices [batches, size] of `there` examples, size <= there.

  Each batch is spread evenly and has no example twice; no two batches share one if there are
  enough.
  """
  starts = np.arange(batches) * max(there // (batches * size), 1)
  return (scope_lib.spread(there, size) + starts[:, None]) % there


@registry.register('gradients', lacks=lacks)
def run(scope: scope_lib.Scope) -> registry.Findings:
  """Cosines with the flow's gradient and norms by block, means over batches."""
  flow, names = scope.objective.flow.name, [term.name for term in scope.objective.terms]
  rows = _measured(scope)
  norm = {a: np.sqrt([row[a][a] for row in rows]) for a in (flow, *names)}
  cosines, pulled = {}, {}
  for name in names:
    scale = norm[flow] * norm[name]
    dots = np.array([row[flow][name] for row in rows])
    pulls = scale > 0  # A term whose weight is 0 in a batch has no direction there.
    found = np.divide(dots, scale, out=np.zeros(dots.shape), where=pulls).sum(axis=0)
    times = pulls.sum(axis=0)
    cosines[name] = [float(x / n) if n else None for x, n in zip(found, times, strict=True)]
    pulled[name] = times.tolist()
  norms = {name: found.mean(axis=0) for name, found in norm.items()}
  log = {name: [float(x) if x > 0 else None for x in found] for name, found in norms.items()}
  return registry.Findings(
    figures={
      'gradients': [
        panels.Curves(
          title=f'direction against the {flow} loss',
          x=scope.blocks,
          x_label='block',
          y_label='cosine of the gradients',
          series=cosines,
          low=-1.05,
          high=1.05,
          reference=(0.0, 'orthogonal'),
        ),
        panels.Curves(
          title='size, as added to the loss',
          x=scope.blocks,
          x_label='block',
          y_label='norm of the gradient',
          series=log,
          log=True,
        ),
      ]
    },
    summary={
      'cosine': cosines,
      'norm': {k: v.tolist() for k, v in norms.items()},
      'batches_with_a_pull': pulled,
    },
    protocol={
      'against': flow,
      'batches': scope.config.batches,
      'batch_size': scope.batch_size,
      'data': scope.training.name,
      'examples': scope.config.batches * scope.batch_size,
    },
  )


def _measured(scope):
  """Products of the gradients, of each batch."""
  subject, config, objective = scope.subject, scope.config, scope.objective
  frozen = jax.device_put(objective.frozen(), sharding.replicated(subject.mesh))

  def measure(params, frozen, batch, key):
    draw = objective.draw(objective.encode(frozen, batch), key)
    teacher = nnx.merge(subject.graphdef, params)

    def losses(blocks):
      network = nnx.merge(subject.graphdef, trees.joined({'model': {'blocks': blocks}}, params))
      values, _ = objective.parts(
        network,
        draw,
        key=rng.stream(key, 'terms'),
        step=jnp.asarray(scope.step, jnp.int32),
        teacher=teacher,
      )
      return values

    return products(losses, params['model']['blocks'], subject.depth)

  run = jax.jit(measure, out_shardings=sharding.replicated(subject.mesh))
  done = progress.Progress('gradients', config.batches, 'batches')
  rows = []
  for i, chosen in enumerate(spaced(len(scope.training), scope.batch_size, config.batches)):
    key = rng.stream(scope.key, 'gradients', i)
    with jax.set_mesh(subject.mesh):
      found = run(subject.params, frozen, scope.training.gather(chosen), key)
    rows.append(jax.tree.map(lambda x: np.asarray(x, np.float64), found))
    done.at(i + 1)
  return rows
