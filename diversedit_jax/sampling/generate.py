"""Samples in batches through one compiled sampler, each a function of (seed, index)."""

from collections.abc import Callable
import time

from absl import logging
from flax import nnx
import jax
import numpy as np

from diversedit_jax import rng, sharding, types
from diversedit_jax.models import tuning
from diversedit_jax.sampling import trajectory

LABEL_POLICIES = ('balanced', 'random')
_REPORT_SECONDS = 10.0


def make_labels(
  policy: str, indices: np.ndarray, num_classes: int, seed: int, *, key: str = 'sample.labels'
) -> np.ndarray:
  """Labels of samples by their indices.

  Args:
    policy: 'balanced' (index mod K), 'random' (uniform, a function of seed and index), or a class.
    indices: sample indices [n]. num_classes: K; 0 gives label 0 to all. seed: of 'random'.
    key: of the config that names the policy, for messages.

  Returns:
    int32 [n].

  Raises:
    UserError: for an unknown policy or a class outside [0, K).
  """
  indices = np.asarray(indices)
  if num_classes == 0:
    return np.zeros(len(indices), np.int32)
  if policy == 'balanced':
    return (indices % num_classes).astype(np.int32)
  if policy == 'random':
    words = [np.random.Philox(key=seed, counter=[0, 0, 0, int(i)]).random_raw() for i in indices]
    return np.array([word % num_classes for word in words], np.int32)
  if not str(policy).isdigit() or int(policy) >= num_classes:
    raise types.UserError(
      f'{key}={policy!r} is neither one of {LABEL_POLICIES} nor a class below {num_classes}'
    )
  return np.full(len(indices), int(policy), np.int32)


Sample = Callable[[nnx.Module, jax.Array, jax.Array, trajectory.SamplerConfig], jax.Array]
"""(network, keys_N, labels_N, config) -> samples [N, H, W, C]; what a flow's `sample` is."""


class Generator:
  """(params, labels) -> samples [n, H, W, C] float32, in batches of one compiled size."""

  def __init__(
    self,
    graphdef: nnx.GraphDef,
    sample: Sample,
    config: trajectory.SamplerConfig,
    *,
    mesh: jax.sharding.Mesh,
    seed: int,
    batch_size: int,
  ):
    """Prepares the sampler; compiles at the first call.

    Args:
      graphdef: of a `methods.base.Network`. sample: of its flow. config: of the sampler.
      mesh: batches are spread over it. seed: of all samples. batch_size: rounded up to the mesh.
    """
    divisor = sharding.batch_divisor(mesh)
    self.batch_size = -(-batch_size // divisor) * divisor
    self.evaluations = trajectory.evaluations(config)
    self._key, self._mesh = rng.stream(jax.random.key(seed), 'sample'), mesh
    run = self._make_run(graphdef, sample, config)
    self._run = jax.jit(run, out_shardings=sharding.replicated(mesh))

  def __call__(
    self, params: dict, labels: np.ndarray, *, first_index: int = 0, progress: bool = False
  ) -> np.ndarray:
    """Samples with indices first_index, first_index + 1, ..., one for each label [n].

    Raises:
      UserError: for guidance on a model without classes.
    """
    parts, n, started, reported = [], len(labels), time.monotonic(), time.monotonic()
    for start in range(0, n, self.batch_size):
      indices = np.arange(start, start + self.batch_size)
      padded = np.asarray(labels, np.int32)[np.minimum(indices, n - 1)]
      batch = {'index': (indices + first_index).astype(np.int32), 'label': padded}
      batch = jax.device_put(batch, sharding.batch_sharding(self._mesh))
      parts.append(np.asarray(self._run(params, batch['index'], batch['label'])))
      done, now = min(start + self.batch_size, n), time.monotonic()
      if progress and (now - reported > _REPORT_SECONDS or done == n):
        rate, reported = done / (now - started), now
        logging.info('sampled %d/%d, %.3g images/s, ETA %.0f s', done, n, rate, (n - done) / rate)
    return np.concatenate(parts)[:n]

  def _make_run(self, graphdef, sample, config) -> Callable[..., jax.Array]:
    def run(params, index_N, label_N):
      network = tuning.for_sampling(nnx.merge(graphdef, params))
      return sample(network, rng.per_example(self._key, index_N), label_N, config)

    return run
