"""How similar the blocks are while training: the L x L matrix of mean cosines, every K steps."""

from collections.abc import Callable, Mapping
import pathlib
from typing import Any

from flax import nnx
import jax
import numpy as np

from diversedit_jax import rng, sharding, types
from diversedit_jax.data import files
from diversedit_jax.methods import base
from diversedit_jax.methods.diverse import definition
from diversedit_jax.models import taps
from diversedit_jax.training import loop, writers
from diversedit_jax.training import state as state_lib


def make_similarity(
  objective: base.Objective,
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
  divisor = sharding.batch_divisor(trainable.mesh)
  rows = -(-examples // divisor) * divisor

  def similarity(params, batch, step, frozen):
    few = objective.encode(frozen, {name: x[:rows] for name, x in batch.items()})
    draw = objective.draw(few, rng.stream(key, 'telemetry', step))
    network = nnx.merge(trainable.graphdef, params)
    features = objective.flow.run(network, draw, taps.every()).features
    return definition.similarity_matrices(features[:, :examples])

  run = jax.jit(similarity, out_shardings=sharding.replicated(trainable.mesh))
  return lambda params, batch, step: run(params, batch, step, frozen)


def hook(
  every: int,
  similarity: Callable[..., dict[str, jax.Array]],
  folder: pathlib.Path,
  writer: writers.Writer,
  *,
  active: bool,
) -> loop.Hook:
  """Writes `similarity-STEP.npz` and the mean off-diagonal cosines beside the other metrics."""

  def run(step, state, batch):
    matrices = {k: np.asarray(v) for k, v in similarity(state.params, batch, state.step).items()}
    if not active:
      return
    depth = len(matrices['token'])
    with files.atomic(folder / f'similarity-{step:08d}.npz') as path:
      np.savez(path, step=step, **matrices)
    if depth > 1:
      off_diagonal = ~np.eye(depth, dtype=bool)
      writer.row(
        step, {f'similarity/{k}': float(v[off_diagonal].mean()) for k, v in matrices.items()}
      )
    shown = np.clip((matrices['token'] + 1) / 2, 0, 1).astype(np.float32)
    writer.images(step, {'similarity_matrix/token': shown[None, :, :, None]})

  return loop.Hook(every=every, run=run)
