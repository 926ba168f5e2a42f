"""Similarity of a model's blocks on fixed images, noise, labels and times."""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import options, rng, sharding, types
from diversedit_jax.analysis import similarity
from diversedit_jax.data import sources
from diversedit_jax.methods import base
from diversedit_jax.models import taps

_BATCH = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisConfig(options.Section, section='analysis', may_change=True):
  """What `--mode=analyze` looks at."""

  examples: int = options.option(
    256, at_least=4, doc='Real examples, the first of the held-out split.'
  )
  times: tuple[float, ...] = options.option(
    (0.1, 0.5, 0.9), at_least=0, at_most=1, doc='Times t, each analysed alone.'
  )
  view: str = options.option(
    'mean', choices=similarity.VIEWS, doc='Features of an example from those of its tokens.'
  )
  bandwidth: float = options.option(
    1.0, above=0, doc='Width of the RBF kernel, in median distances.'
  )
  full: bool = options.option(
    False,
    doc='Draws both kernels and both estimators, not only linear unbiased CKA; the .npz has all.',
  )

  def __post_init__(self):
    super().__post_init__()
    if not self.times:
      raise types.UserError('analysis.times is empty; name at least one time in [0, 1]')


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
  size = sharding.round_up(min(_BATCH, n), mesh)
  rows = []
  for t in config.times:
    parts = []
    for start in range(0, n, size):
      indices = sharding.pad_rows(np.arange(start, min(start + size, n), dtype=np.int32), size)
      out = np.asarray(run(params, frozen, source.gather(indices), indices, np.float32(t)))
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
