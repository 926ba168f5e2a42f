"""Similarity of a model's blocks on fixed images, noise, labels and times."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import rng, sharding, types
from diversedit_jax.analysis import kernels, similarity
from diversedit_jax.data import sources
from diversedit_jax.methods import base
from diversedit_jax.models import taps

_BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisConfig:
  """examples: real ones, the first of the held-out split. times: t in (0, 1], each analysed alone.

  view: of `similarity.VIEWS`. bandwidth: of the RBF kernel, in median distances.
  """

  examples: int
  times: tuple[float, ...]
  view: str
  bandwidth: float

  def __post_init__(self):
    if self.examples < 4 or not self.times or not all(0 <= t <= 1 for t in self.times):
      raise types.UserError(
        'analysis needs at least 4 examples and times in [0, 1]; got '
        f'examples={self.examples}, times={self.times}'
      )
    similarity.view(np.zeros((1, 1, 1, 1)), self.view)  # Refuses an unknown view.
    kernels.Options(bandwidth=self.bandwidth)  # Refuses a bandwidth that is not positive.


def block_features(
  graphdef: nnx.GraphDef,
  params: dict,
  source: sources.Source,
  config: AnalysisConfig,
  *,
  objective: base.Objective,
  frozen: Mapping[str, Any],
  key: jax.Array,
  mesh: jax.sharding.Mesh,
) -> np.ndarray:
  """Outputs of every block for noised real examples, one row per time.

  Example i has the same noise at all times, and its true label. `frozen` are the weights of the
  objective's encoders, for models that take a class token.

  Returns:
    float32 [times, L, n, p] under the config's view.
  """
  n = min(config.examples, len(source))
  whole = sharding.replicated(mesh)
  # The mean is taken where the features are: all of them would be gigabytes at full size.
  tap = taps.token_mean() if config.view == 'mean' else taps.every()

  def features(params, frozen, batch, index_N, t):
    network = nnx.merge(graphdef, params)
    batch = objective.encode(frozen, batch)

    def draw(key, example):
      one = {name: x[None] for name, x in example.items()}
      return jax.tree.map(lambda x: x[0], objective.draw(one, key))

    draws = jax.vmap(draw)(rng.per_example(key, index_N), batch)
    labels_N = batch['labels'] if network.model.architecture.num_classes else draws.y
    t_N = jnp.full(index_N.shape, t, jnp.float32)
    draws = dataclasses.replace(objective.flow.at(draws, t_N), y=labels_N)
    return objective.flow.run(network, draws, tap).features

  run = jax.jit(features, out_shardings=whole)
  divisor = sharding.batch_divisor(mesh)
  size = -(-min(_BATCH, n) // divisor) * divisor
  rows = []
  for t in config.times:
    parts = []
    for start in range(0, n, size):
      indices = np.minimum(np.arange(start, start + size), n - 1)  # The last batch repeats its end.
      batch = source.gather(indices)
      out = np.asarray(run(params, frozen, batch, indices.astype(np.int32), np.float32(t)))
      out = out[:, : n - start]
      parts.append(out if config.view == 'mean' else similarity.view(out, config.view))
    rows.append(np.concatenate(parts, axis=1))
  return np.stack(rows).astype(np.float32)


def cka_matrices(
  features: np.ndarray, times: Sequence[float], bandwidth: float
) -> dict[tuple[str, str, float], np.ndarray]:
  """CKA [L, L] by (kernel, estimator, time), for both kernels and both estimators."""
  return {
    (kernel, estimator, t): similarity.cka(
      f_Lnp, kernel=kernel, estimator=estimator, bandwidth=bandwidth
    )
    for kernel in similarity.KERNELS
    for estimator in similarity.ESTIMATORS
    for t, f_Lnp in zip(times, features, strict=True)
  }
