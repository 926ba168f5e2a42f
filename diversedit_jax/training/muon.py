"""Muon for the matrices of hidden layers (K. Jordan and others, 2024), beside AdamW for the rest.

Each matrix W [in, out], of which one array holds many (layers; queries, keys and values), moves by
its own gradient G alone, at update t = 1, 2, ...

  (1) M_t = mu M_(t-1) + (1 - mu) G_t,                    M_0 = 0
  (2) N_t = mu M_t / (1 - mu^(t+1)) + (1 - mu) G_t / (1 - mu^t)           Nesterov's momentum
  (3) X = N_t / |N_t|_F, then K times  X <- a X + (b A + c A A) X,  A = X X^T      Newton-Schulz
  (4) W <- W - rate (scale X + decay W),      scale = rms sqrt(max(in, out))

(3) takes N = U S V^T to nearly U V^T: after 5 iterations singular values of more than 0.0015 |N|_F
are in [0.68, 1.21].
An orthogonal matrix has entries of root mean square 1 / sqrt(max(in, out)), so that (4) moves all
matrices alike, and as AdamW would under the same rate with rms = 0.2 (Moonlight, 2502.16982, 2.2).

Which parameters go where, the first line that fits; what has no matrix is AdamW's always:

                                          hidden          matrices
  patches (*/patch_embed)                 AdamW           AdamW
  times, labels, class tokens (*_embed)   AdamW           Muon
  tokens before the patches (*_tokens)    AdamW           Muon
  last layers (final, base), terms' heads AdamW           Muon
  all else: matrices of blocks            Muon            Muon

'hidden' is the authors' rule: no embedding and no last layer, so neither trained tokens nor that of
an earlier prediction. 'matrices' is RAEv2's, of every parameter with two axes (2605.18324, its
code); its patches are embedded by a convolution. In both,
adaLN is a matrix like others. RAEv2 has q, k and v as one matrix; here, as with Jordan, they are
three.

(3) costs as much whatever the batch is: the devices of a mesh share the matrices of an array.
"""

from collections.abc import Mapping
import dataclasses
import fnmatch
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from diversedit_jax import options, sharding, trees

ADAMW, MUON = 'adamw', 'muon'

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # a, b and c of (3).
_EPS = 1e-8  # Added to the norm.

# Names of matrices. Those of RAEv2's tokens are [tokens, width].
_MATRICES = ('kernel', 'embedding', 'time_tokens', 'label_tokens')
# Patterns of the matrices that AdamW gets, by rule.
_NOT_HIDDEN = {
  'hidden': ('*_embed/*', '*_tokens', '*/final/*', '*/base/*', 'heads/*'),
  'matrices': ('*/patch_embed/*',),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class MuonOptions(options.Section, section='optimizer.muon'):
  """What `optimizer.name=muon` does with the matrices that are its own; RAEv2's values."""

  parameters: str = options.option(
    'hidden',
    choices=tuple(_NOT_HIDDEN),
    doc='Which Muon updates: matrices of hidden layers (its authors), or all matrices (RAEv2).',
  )
  learning_rate: float | None = options.option(
    None,
    at_least=0,
    doc='Peak of the learning rate of these, same schedule; None is optimizer.learning_rate.',
  )
  momentum: float = options.option(0.95, at_least=0, below=1, doc="Decay of Nesterov's momentum.")
  weight_decay: float = options.option(0.0, at_least=0, doc='Decoupled weight decay, on these.')
  rms: float | None = options.option(
    0.2,
    above=0,
    doc="Size of an update's entries for a rate of 1, by which AdamW's rates fit (2502.16982); "
    'None scales by sqrt(max(1, out / in)) instead, for rates about 0.02 (Jordan).',
  )
  iterations: int = options.option(
    5, at_least=1, doc='Iterations of Newton-Schulz, for each matrix.'
  )


def transformation(
  config: MuonOptions, learning_rate: optax.Schedule, rest: optax.GradientTransformation
) -> optax.GradientTransformation:
  """Muon on its matrices and another transformation on the rest.

  Args:
    config: the options. learning_rate: by the number of updates already made.
    rest: what updates other parameters.
  """
  muon = optax.chain(
    _orthogonal_momentum(config),
    optax.add_decayed_weights(config.weight_decay),
    optax.scale_by_learning_rate(learning_rate),
  )
  labels = lambda params: _by_name(lambda name, x: owner(config, name), params)
  return optax.partition({MUON: muon, ADAMW: rest}, labels)


def owner(config: MuonOptions, name: str) -> str:
  """MUON or ADAMW: who updates the parameter of a path, see the table above."""
  matrix = name.rpartition('/')[2] in _MATRICES
  apart = any(fnmatch.fnmatchcase(name, pattern) for pattern in _NOT_HIDDEN[config.parameters])
  return MUON if matrix and not apart else ADAMW


def matrices(name: str, shape: tuple[int, ...]) -> tuple[int, int, int]:
  """(how many, in, out) of the matrices in an array."""
  into, out = axes(name, len(shape))
  return math.prod(shape) // (shape[into] * shape[out]), shape[into], shape[out]


def axes(name: str, rank: int) -> tuple[int, int]:
  """The axes (in, out) of the matrices in an array [in, ..., out], or [layers, in, ..., out].

  Those of blocks are stacked by layers; what stands between the two are several matrices that read
  the same, such as q, k and v.
  """
  stacked = any(part.endswith('blocks') for part in name.split('/'))
  return int(stacked), rank - 1


def flops(config: MuonOptions, params: Any, devices: int = 1) -> float:
  """FLOPs of one update's (3), of matrix products only, on the device that has most of them.

  params: nested dicts of arrays or shapes. devices: those that share the matrices; a multiply-add
  is 2.
  """
  found = 0.0
  for name, x in trees.named_leaves(params).items():
    if owner(config, name) == MUON:
      count, *sides = matrices(name, x.shape)
      m, n = sorted(sides)
      found += math.ceil(count / devices) * config.iterations * (4 * m * m * n + 2 * m**3)
  return found


def division(config: MuonOptions, params: Any) -> Mapping[str, dict[str, Any]]:
  """The parameters of MUON and of ADAMW, by path."""
  named = trees.named_leaves(params)
  return {who: {n: x for n, x in named.items() if owner(config, n) == who} for who in (MUON, ADAMW)}


def orthogonal(x_KIO: jax.Array, iterations: int) -> jax.Array:
  """(3) for each of K matrices [I, O], which the devices of the mesh that is set share out."""
  turned = x_KIO.shape[1] > x_KIO.shape[2]
  x_KMN = sharding.share_out(jnp.swapaxes(x_KIO, 1, 2) if turned else x_KIO)
  x_KMN /= jnp.linalg.norm(x_KMN, axis=(1, 2), keepdims=True) + _EPS
  a, b, c = _COEFFICIENTS
  for _ in range(iterations):
    gram_KMM = x_KMN @ jnp.swapaxes(x_KMN, 1, 2)
    x_KMN = a * x_KMN + (b * gram_KMM + c * gram_KMM @ gram_KMM) @ x_KMN
  x_KMN = sharding.share_out(x_KMN)
  return jnp.swapaxes(x_KMN, 1, 2) if turned else x_KMN


class Momentum(NamedTuple):
  """count: updates made, int32. mean: M of (1), like the parameters."""

  count: jax.Array
  mean: Any


def _orthogonal_momentum(config):
  """scale X of (4), by (1) to (3)."""

  def init(params):
    return Momentum(jnp.zeros((), jnp.int32), optax.tree.zeros_like(params))

  def update(grads, state, params=None):
    del params
    mu, t = config.momentum, optax.safe_increment(state.count)
    mean = optax.tree.update_moment(grads, state.mean, mu, 1)
    ahead = jax.tree.map(
      lambda m, g: mu * m + (1 - mu) * g,
      optax.tree.bias_correction(mean, mu, t + 1),
      optax.tree.bias_correction(grads, mu, t),
    )
    return _by_name(step, ahead), Momentum(t, mean)

  def step(name, x):
    into, _ = axes(name, x.ndim)
    stacked = jnp.moveaxis(x, into, -2)  # [layers, parts, in, out]
    made = orthogonal(stacked.reshape(-1, *stacked.shape[-2:]), config.iterations)
    return _scale(config, name, x) * jnp.moveaxis(made.reshape(stacked.shape), -2, into)

  return optax.GradientTransformation(init, update)


def _scale(config, name, x):
  _, into, out = matrices(name, x.shape)
  if config.rms is None:
    return math.sqrt(max(1.0, out / into))
  return config.rms * math.sqrt(max(into, out))


def _by_name(function, tree):
  """The tree of function(path, leaf); what is masked out has no leaves."""
  return jax.tree_util.tree_map_with_path(lambda path, x: function(trees.path_name(path), x), tree)
