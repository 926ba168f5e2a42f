"""What the blocks do while training, every K steps: how similar they are, and how large.

Both look at the first examples of a batch, at the same times and noise; the L x L matrices of mean
cosines, and for each block the root mean square of its output and the norm of its gradient.
"""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import rng, sharding, trees, types
from diversedit_jax.data import files
from diversedit_jax.losses import arithmetic
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.methods.diverse import definition
from diversedit_jax.models import stack, taps, tuning
from diversedit_jax.training import loop, writers
from diversedit_jax.training import state as state_lib


def make_similarity(
  objective: objective_lib.Objective,
  trainable: state_lib.Trainable,
  frozen: Mapping[str, Any],
  *,
  key: jax.Array,
  examples: int,
) -> Callable[[state_lib.Params, types.Batch, jax.Array], dict[str, jax.Array]]:
  """(params, batch, step) -> matrices {'token', 'mean'} [L, L] of the first examples of a batch.

  One forward pass of the trained weights at the step's own times and noise; see
  `methods.diverse.definition.similarity_matrices`.
  """
  draw_few = _draw_of(objective, trainable.mesh, key, examples)

  def similarity(params, batch, step, frozen):
    draw = draw_few(batch, step, frozen)
    network = nnx.merge(trainable.graphdef, params)
    features = objective.flow.run(network, draw, taps.every()).features
    return definition.similarity_matrices(features[:, :examples])

  run = jax.jit(similarity, out_shardings=sharding.replicated(trainable.mesh))
  return lambda params, batch, step: run(params, batch, step, frozen)


def make_sizes(
  objective: objective_lib.Objective,
  trainable: state_lib.Trainable,
  frozen: Mapping[str, Any],
  *,
  key: jax.Array,
  examples: int,
) -> Callable[[state_lib.Params, types.Batch, jax.Array], dict[str, jax.Array]]:
  """(params, batch, step) -> {'activation_rms', 'gradient_norm'} [L] of the first examples.

  The gradient is that of the flow's loss, without terms, with respect to what is trained.
  """
  draw_few = _draw_of(objective, trainable.mesh, key, examples)
  rms = taps.every(lambda f_NTD: arithmetic.rms(f_NTD[:examples]))

  def sizes(params, batch, step, frozen):
    draw = draw_few(batch, step, frozen)

    def loss(trained):
      network = tuning.cast_products(nnx.merge(trainable.graphdef, trees.joined(trained, params)))
      output, loss_N, _ = objective.flow.forward(network, draw, rms)
      return jnp.mean(loss_N[:examples]), output.features

    grads, rms_L = jax.grad(loss, has_aux=True)(trainable.trained(params))
    of_blocks = grads.get('model', {}).get('blocks', {})
    return {'activation_rms': rms_L, 'gradient_norm': stack.norms(of_blocks, rms_L.shape[0])}

  run = jax.jit(sizes, out_shardings=sharding.replicated(trainable.mesh))
  return lambda params, batch, step: run(params, batch, step, frozen)


def _draw_of(objective, mesh, key, examples):
  """(batch, step, frozen) -> what is drawn for the first rows of a batch, as many as mesh and
  `examples` need."""
  rows = sharding.round_up(examples, mesh)

  def draw(batch, step, frozen):
    few = objective.encode(frozen, {name: x[:rows] for name, x in batch.items()})
    return objective.draw(few, rng.stream(key, 'telemetry', step))

  return draw


def hook(
  name: str,
  every: int,
  compute: Callable[..., dict[str, jax.Array]],
  folder: pathlib.Path,
  writer: writers.Writer,
  *,
  active: bool,
) -> loop.Hook:
  """Writes `NAME-STEP.npz` in a folder, and numbers of it beside the other metrics.

  name: 'similarity', mean cosines of two different blocks, or 'blocks', numbers of each block.
  compute: of `make_similarity` or `make_sizes`.
  """
  file = lambda step: folder / f'{name}-{step:08d}.npz'

  def run(step, state, batch):
    found = {k: np.asarray(v) for k, v in compute(state.params, batch, state.step).items()}
    if not active:
      return
    _TELL[name](writer, step, found)
    with files.atomic(file(step)) as path:  # Last, for it says that all has been done.
      np.savez(path, step=step, **found)

  return loop.Hook(every=every, run=run, made=lambda step: file(step).exists())


def _tell_similarity(writer, step, matrices):
  depth = len(matrices['token'])
  if depth > 1:
    off_diagonal = ~np.eye(depth, dtype=bool)
    row = {f'similarity/{k}': float(v[off_diagonal].mean()) for k, v in matrices.items()}
    writer.row(step, row)
  shown = np.clip((matrices['token'] + 1) / 2, 0, 1).astype(np.float32)
  writer.images(step, {'similarity_matrix/token': shown[None, :, :, None]})


def _tell_sizes(writer, step, found):
  row = {
    f'{name}/block_{block:02d}': float(value)
    for name, value_L in found.items()
    for block, value in enumerate(value_L, 1)
  }
  writer.row(step, row)


_TELL = {'similarity': _tell_similarity, 'blocks': _tell_sizes}
