"""Alignment of each block with a frozen encoder: CKNNA (arXiv 2405.07987; REPA, 2410.06940).

CKA in which a pair of samples counts only if each of two kernels has it among its k nearest
neighbours: with unit features, K_ij = x_i . x_j, L likewise, and a_ij = 1 where j is among the k
nearest of i under both,

  align(K, L) = HSIC1(a K, a L),   CKNNA = align(K, L) / sqrt(align(K, K) align(L, L))

where HSIC1 is the unbiased estimator; a is not symmetric, so its sums are taken as they stand in
the definition, and the order of the two matters a little. A sample is no neighbour of itself. The
network is told the null label: with the true one it would agree with any encoder that tells classes
apart.
"""

import jax
import numpy as np

from diversedit_jax import rng, sharding, types
from diversedit_jax.analysis import panels, registry
from diversedit_jax.analysis import scope as scope_lib
from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import pca
from diversedit_jax.methods import batches


def cknna(x_NP: np.ndarray, y_NQ: np.ndarray, k: int = 10) -> float:
  """The alignment of two sets of features of the same samples; 1 where their cosines agree.

  Args:
    x_NP, y_NQ: features [n, p] and [n, q]. k: neighbours, 2 <= k < n.

  Raises:
    UserError: for shapes that do not fit, or too few samples.
  """
  k_NN, l_NN = _cosines(x_NP), _cosines(y_NQ)
  n = len(k_NN)
  if len(l_NN) != n or not 2 <= k < n or n < 4:
    raise types.UserError(f'CKNNA needs the same n > k >= 2 samples; got {n}, {len(l_NN)}, k = {k}')
  near_K, near_L = _nearest(k_NN, k), _nearest(l_NN, k)
  own = [_hsic(near * m_NN, near * m_NN) for near, m_NN in ((near_K, k_NN), (near_L, l_NN))]
  both = near_K & near_L
  if min(own) <= 0:
    raise types.UserError(
      f'CKNNA: HSIC of features with themselves is {min(own):.3g}, expected > 0; use more examples'
    )
  return float(_hsic(both * k_NN, both * l_NN) / np.sqrt(own[0] * own[1]))


def floor(x_NP: np.ndarray, y_NQ: np.ndarray, k: int, key: jax.Array) -> float:
  """CKNNA with the features of samples in random order: what no alignment comes to.

  Where samples of a class follow each other, a shift would still set class against class.
  """
  return cknna(x_NP, y_NQ[np.asarray(jax.random.permutation(key, len(y_NQ)))], k)


def _cosines(x_NP):
  x_NP = np.asarray(x_NP, np.float64)
  x_NP = x_NP / np.maximum(np.linalg.norm(x_NP, axis=1, keepdims=True), 1e-12)
  return x_NP @ x_NP.T


def _nearest(k_NN, k):
  others = np.where(np.eye(len(k_NN), dtype=bool), -np.inf, k_NN)
  near = np.zeros(k_NN.shape, bool)
  np.put_along_axis(near, np.argpartition(-others, k - 1, axis=1)[:, :k], True, axis=1)
  return near


def _hsic(k_NN, l_NN):
  """The unbiased estimator of matrices without diagonal that need not be symmetric."""
  n = len(k_NN)
  ends = k_NN.sum() * l_NN.sum() / ((n - 1) * (n - 2))
  middle = 2 * (k_NN.sum(axis=0) @ l_NN.sum(axis=1)) / (n - 2)
  return (np.sum(k_NN * l_NN.T) + ends - middle) / (n * (n - 3))


def lacks(scope: scope_lib.Scope) -> str:
  """Why no encoder can look at the examples."""
  shape, config = scope.training.pixel_shape, scope.config
  if shape is None:
    return f'shows pixels to an encoder, and {scope.training.name} has none'
  chosen = config.encoder or _known(scope)
  if not chosen and np.prod(shape) > pca.MAX_VALUES:
    return 'needs an encoder for pictures of this size: give --config.analysis.encoder=dinov2-vit-b'
  if config.neighbours >= len(scope.indices):
    return f'needs more than analysis.neighbours={config.neighbours} examples'
  return ''


@registry.register('cknna', lacks=lacks)
def run(scope: scope_lib.Scope) -> registry.Findings:
  """CKNNA of every block with an encoder's token means, by time; and the floor."""
  config, (encoder, targets_NZ) = scope.config, _targets(scope)
  f_SLNP = scope.features(**scope_lib.UNTOLD)
  found = {
    t: [cknna(x, targets_NZ, config.neighbours) for x in f_LNP]
    for t, f_LNP in zip(config.times, f_SLNP, strict=True)
  }
  key = rng.stream(scope.key, 'cknna')
  lowest = floor(f_SLNP[0, 0], targets_NZ, config.neighbours, key)
  curves = panels.Curves(
    title=f'alignment with {encoder.name}',
    x=scope.blocks,
    x_label='block',
    y_label=f'CKNNA, k = {config.neighbours}',
    series={f't = {t:g}': values for t, values in found.items()},
    ordered=True,
    reference=(lowest, 'shuffled'),
  )
  return registry.Findings(
    figures={'cknna': [curves]},
    summary={'cknna': {f't={t:g}': v for t, v in found.items()}, 'floor': lowest},
    protocol={
      'encoder': encoder.name,
      'neighbours': config.neighbours,
      'view': 'mean',
      'labels': 'null',
    },
  )


def _known(scope):
  """The encoders of the objective by name, without one that makes the data themselves."""
  return {e.name: e for e in scope.objective.encoders if not e.makes_data}


def _targets(scope):
  """The encoder, and its token means [n, Z] of the held-out examples."""
  config, known = scope.config, _known(scope)
  name = config.encoder or next(iter(known), 'pca')
  encoder = known.get(name)
  if encoder is None or config.encoder_weights:
    request = encoders.Request(
      source=scope.training,
      grid=scope.subject.architecture.grid,
      image_shape=scope.training.pixel_shape,
      weights=config.encoder_weights,
      key='analysis.encoder_weights',
    )
    encoder = encoders.open_encoder(name, request)
  apply = jax.jit(
    lambda params, batch: encoder.apply(params, batches.pixels(batch)).tokens.mean(axis=1),
    out_shardings=sharding.replicated(scope.subject.mesh),
  )
  params, size = encoder.load(), min(config.batch_size, len(scope.indices))
  rows = []
  for start in range(0, len(scope.indices), size):
    batch = scope.held_out.gather(sharding.pad_rows(scope.indices[start : start + size], size))
    shown = {name: batch[name] for name in ('pixels', 'images') if name in batch}
    with jax.set_mesh(scope.subject.mesh):
      rows.append(np.asarray(apply(params, shown)))
  return encoder, np.concatenate(rows)[: len(scope.indices)]
