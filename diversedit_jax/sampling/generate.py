"""Samples in batches through one compiled sampler, each a function of (seed, index)."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import nnx
import jax
import numpy as np

from diversedit_jax import rng, sharding, types
from diversedit_jax.models import tuning
from diversedit_jax.sampling import guidance, trajectory

LABEL_POLICIES = ('balanced', 'random')
NULL = 'null'
"""Policy of samples without a class."""


def make_labels(
  policy: str, indices: np.ndarray, num_classes: int, seed: int, *, key: str = 'sample.labels'
) -> np.ndarray:
  """Labels of samples by their indices.

  Args:
    policy: 'balanced' (index mod K), 'random' (uniform, a function of seed and index), a class, or
      'null' (or K itself): without a class.
    indices: sample indices [n].
    num_classes: K; with 0 all labels are 0, and only a class is refused.
    seed: seed of 'random'.
    key: config key that names the policy, for messages.

  Returns:
    int32 [n].

  Raises:
    UserError: the policy is unknown, or a number outside [0, K].
  """
  indices = np.asarray(indices)
  _check(policy, num_classes, key)
  if num_classes == 0:
    return np.zeros(len(indices), np.int32)
  if policy == 'balanced':
    return (indices % num_classes).astype(np.int32)
  if policy == 'random':
    words = [np.random.Philox(key=seed, counter=[0, 0, 0, int(i)]).random_raw() for i in indices]
    return np.array([word % num_classes for word in words], np.int32)
  label = num_classes if policy == NULL else int(policy)
  return np.full(len(indices), label, np.int32)


def canonical(policy: str, num_classes: int) -> str:
  """A policy as cards name it: the number of the null label is 'null'."""
  return NULL if is_null(policy, num_classes) else policy


def is_null(policy: str, num_classes: int) -> bool:
  """Whether a policy means samples without a class, of a model that has classes."""
  return num_classes > 0 and policy in (NULL, str(num_classes))


def _check(policy, num_classes, key):
  if policy in (*LABEL_POLICIES, NULL):
    return
  words = f'{", ".join(LABEL_POLICIES)}, {NULL} (without a class)'
  if num_classes == 0:
    raise types.UserError(f'{key}={policy!r}, but the model has no classes: leave {key} out')
  if str(policy) not in {str(label) for label in range(num_classes + 1)}:
    raise types.UserError(
      f'{key}={policy!r} is neither {words} nor a class from 0 to {num_classes - 1}'
    )


Sample = Callable[..., jax.Array]
"""(network, keys_N, labels_N, config, guide) -> samples [N, H, W, C]; what a flow's `sample` is."""


class Guide(NamedTuple):
  """The network of `sampler.autoguidance`: parameters -> velocity, and its parameters."""

  velocity: Callable[[Any], guidance.Predict]
  params: Any


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
    guide: Guide | None = None,
  ):
    """Prepares the sampler; compiles at the first call.

    Args:
      graphdef: graph of a `methods.base.Network`.
      sample: the flow's `sample`.
      config: the sampler.
      mesh: devices over which batches are spread.
      seed: seed of all samples.
      batch_size: samples at a time, rounded up to the mesh.
      guide: what guides by `config.autoguidance`.
    """
    self.batch_size = sharding.round_up(batch_size, mesh)
    self.evaluations = trajectory.evaluations(config)
    self._key, self._mesh = rng.stream(jax.random.key(seed), 'sample'), mesh
    self._guiding = guide.params if guide else None
    run = self._make_run(graphdef, sample, config, guide.velocity if guide else None)
    self._run = jax.jit(run, out_shardings=sharding.replicated(mesh))

  def __call__(
    self,
    params: dict,
    labels_N: np.ndarray,
    indices_N: np.ndarray | None = None,
  ) -> np.ndarray:
    """Samples, one for each label and index.

    Args:
      params: weights.
      labels_N: class of each sample.
      indices_N: index of each sample, which decides its noise; None means 0, 1, ...

    Raises:
      UserError: guidance of a model without classes.
    """
    labels_N = np.asarray(labels_N, np.int32)
    indices_N = np.arange(len(labels_N)) if indices_N is None else np.asarray(indices_N)
    parts = []
    for start in range(0, len(labels_N), self.batch_size):
      rows = slice(start, start + self.batch_size)
      batch = {'index': indices_N[rows].astype(np.int32), 'label': labels_N[rows]}
      count = len(batch['index'])
      batch = {name: sharding.pad_rows(x, self.batch_size) for name, x in batch.items()}
      batch = jax.device_put(batch, sharding.batch_sharding(self._mesh))
      made = self._run(params, self._guiding, batch['index'], batch['label'])
      parts.append(np.asarray(made)[:count])
    return np.concatenate(parts)

  def _make_run(self, graphdef, sample, config, lead) -> Callable[..., jax.Array]:
    def run(params, guiding, index_N, label_N):
      network = tuning.for_sampling(nnx.merge(graphdef, params))
      keys_N = rng.per_example(self._key, index_N)
      return sample(network, keys_N, label_N, config, lead(guiding) if lead else None)

    return run
