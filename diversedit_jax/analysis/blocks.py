"""Similarity of a model's blocks on fixed images, noise, labels and times."""

from collections.abc import Sequence
import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from diversedit_jax import interpolants, rng, sharding, types
from diversedit_jax.analysis import kernels, similarity
from diversedit_jax.data import sources
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
  path: interpolants.Path,
  key: jax.Array,
  mesh: jax.sharding.Mesh,
) -> np.ndarray:
  """Outputs of every block for noised real examples, one row per time.

  Example i has the same noise at all times, and its true label.

  Returns:
    float32 [times, L, n, p] under the config's view.
  """
  n = min(config.examples, len(source))
  whole = sharding.replicated(mesh)
  # The mean is taken where the features are: all of them would be gigabytes at full size.
  tap = taps.token_mean() if config.view == 'mean' else taps.every()

  def features(params, x_NHWC, y_N, index_N, t):
    model = nnx.merge(graphdef, params).model
    keys_N = rng.per_example(key, index_N)
    eps_NHWC = jax.vmap(lambda k: jax.random.normal(k, x_NHWC.shape[1:], x_NHWC.dtype))(keys_N)
    t_N = jnp.full(x_NHWC.shape[:1], t, jnp.float32)
    x_t = interpolants.interpolate(path, x_NHWC, eps_NHWC, t_N)
    y_N = y_N if model.config.num_classes else jnp.zeros_like(y_N)
    return model(x_t, t_N, y_N, tap=tap).features

  run = jax.jit(features, out_shardings=whole)
  divisor = sharding.batch_divisor(mesh)
  size = -(-min(_BATCH, n) // divisor) * divisor
  rows = []
  for t in config.times:
    parts = []
    for start in range(0, n, size):
      indices = np.minimum(np.arange(start, start + size), n - 1)  # The last batch repeats its end.
      batch = source.gather(indices)
      x = batch[sources.KEYS[source.space]]
      out = np.asarray(run(params, x, batch['labels'], indices.astype(np.int32), np.float32(t)))
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
