"""Similarity of block representations: centred kernel alignment (CKA), and diversity from it.

For n samples with features X [n, p] and Y [n, q], kernels K(X) and L(Y), both [n, n], and
H = I - 11'/n (arXiv 1905.00414, 2010.15327; DiverseDiT, arXiv 2603.04239, Eq. 7):

  linear   K = X X'                                                                   (1)
  rbf      K_ij = exp(-|x_i - x_j|^2 / (2 s^2)),  s^2 = b^2 median |x_i - x_j|^2      (2)
  biased   HSIC0(K, L) = Tr(K H L H) / (n - 1)^2                                      (3)
  unbiased HSIC1(K, L) = [ Tr(K~ L~) + (1'K~1)(1'L~1) / ((n-1)(n-2))
                           - 2 1'K~L~1 / (n-2) ] / (n (n-3)),  n >= 4                 (4)
  CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))                                (5)

K~ is K with its diagonal set to zero. (3) tends to 1 when p >> n, whatever the features; (4) does
not, and may come out slightly negative. Over minibatches the terms of (4) are summed and (5) is
taken once. The linear kernel needs no [n, n] matrix when n >= p: Tr(KHLH) = |Yc'Xc|_F^2 with
centred columns, and likewise for (4). Everything runs in float64 numpy.
"""

from collections.abc import Callable
import dataclasses
from typing import Self

import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.types import UserError

KERNELS = ('linear', 'rbf')
ESTIMATORS = ('biased', 'unbiased')
MEDIANS = ('offdiag', 'full')
VIEWS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'flatten': lambda f_LNTD: f_LNTD.reshape(*f_LNTD.shape[:2], -1),
  'mean': lambda f_LNTD: f_LNTD.mean(axis=2, dtype=np.float64),
  'tokens': lambda f_LNTD: f_LNTD.reshape(f_LNTD.shape[0], -1, f_LNTD.shape[-1]),
}


def view(f_LNTD: np.ndarray, kind: str) -> np.ndarray:
  """Features [L, n, p] of block outputs [L, N, T, D] under one of three views.

    'flatten'  an example is a sample of T D features: knows where a token stands
    'mean'     an example is a sample, its tokens averaged to D features
    'tokens'   every token is a sample of D features: n = N T correlated samples

  Raises:
    UserError: for an unknown view.
  """
  if kind not in VIEWS:
    raise UserError(f'unknown view {kind!r}{trees.did_you_mean(kind, VIEWS)}')
  types.check('f_LNTD', f_LNTD, 'L N T D')
  return VIEWS[kind](np.asarray(f_LNTD))


def cka(
  features: np.ndarray,
  other: np.ndarray | None = None,
  *,
  kernel: str = 'linear',
  estimator: str = 'biased',
  bandwidth: float = 1.0,
  median: str = 'offdiag',
) -> np.ndarray | float:
  """Centred kernel alignment (5) of features over the same n samples.

  Args:
    features: [L, n, p], or [n, p] together with `other`.
    other: None compares the L layers with each other; [M, n, q] compares them with M others,
      [n, q] compares two.
    kernel: 'linear' (1) or 'rbf' (2).
    estimator: 'biased' (3) or 'unbiased' (4), the latter from n = 4.
    bandwidth: b in (2), a fraction of the median distance of each layer's samples. Unused by
      the linear kernel. Published choices lie between 0.2 and 1.
    median: over the pairs 'offdiag' i < j, or over the 'full' matrix with its zero diagonal.

  Returns:
    [L, L], [L, M], or a float for two [n, p] arrays; 1 on the diagonal of [L, L].

  Raises:
    UserError: for unknown names, shapes that do not fit, too few samples, values that are not
      finite, or a layer that is constant over the samples.
  """
  options = _Options(kernel=kernel, estimator=estimator, bandwidth=bandwidth, median=median)
  features = np.asarray(features)
  if other is None:
    return _normalise(_terms(features, options))
  other = np.asarray(other)
  pair = features.ndim == other.ndim == 2
  if pair:
    features, other = features[None], other[None]
  left, right = _layers(features, options), _layers(other, options)
  if left[0].n != right[0].n:
    raise UserError(f'CKA compares the same samples; got n = {left[0].n} and {right[0].n}')
  # Two linear layers may have chosen different forms, each by its own p; take one for both.
  if left[0].gram != right[0].gram:
    left, right = (_layers(x, options, gram=True) for x in (features, other))
  cross = np.array([[_hsic(x, y, options) for y in right] for x in left])
  scales = [np.sqrt(_self_terms(layers, options)) for layers in (left, right)]
  values = cross / (scales[0][:, None] * scales[1][None])
  return float(values[0, 0]) if pair else values


@dataclasses.dataclass(frozen=True, kw_only=True)
class MinibatchCKA:
  """Unbiased CKA of L layers over minibatches: sums of (4), divided once at the end.

  `total = MinibatchCKA(kernel='rbf')`, then `total = total.add(features)` for each batch, then
  `total.result()`. The median of (2) is taken per batch.
  """

  kernel: str = 'linear'
  bandwidth: float = 1.0
  median: str = 'offdiag'
  terms_LL: np.ndarray | None = None
  batches: int = 0

  def __post_init__(self) -> None:
    _ = self._options

  @property
  def _options(self) -> '_Options':
    return _Options(
      kernel=self.kernel, estimator='unbiased', bandwidth=self.bandwidth, median=self.median
    )

  def add(self, features: np.ndarray) -> Self:
    """The accumulator with the terms of features [L, n, p], n >= 4, added."""
    terms_LL = _terms(np.asarray(features), self._options)
    if self.terms_LL is not None:
      types.check('terms_LL', terms_LL, 'L L', L=len(self.terms_LL))
      terms_LL = self.terms_LL + terms_LL
    return dataclasses.replace(self, terms_LL=terms_LL, batches=self.batches + 1)

  def result(self) -> np.ndarray:
    """CKA [L, L] of all batches."""
    if self.terms_LL is None:
      raise UserError('MinibatchCKA has no batches yet; call add(features) first')
    return _normalise(self.terms_LL)


def hsic(k_NN: np.ndarray, l_NN: np.ndarray, estimator: str = 'biased') -> float:
  """Hilbert-Schmidt independence criterion of two kernel matrices [n, n], by (3) or (4).

  Raises:
    UserError: for an unknown estimator, other shapes, or too few samples.
  """
  k_NN, l_NN = np.asarray(k_NN, np.float64), np.asarray(l_NN, np.float64)
  types.check('k_NN', k_NN, 'N N')
  types.check('l_NN', l_NN, 'N N', N=len(k_NN))
  options = _Options(estimator=estimator)
  options.check_samples(len(k_NN))
  return _hsic(_from_gram(k_NN, options), _from_gram(l_NN, options), options)


def diversity_score(similarity_LL: np.ndarray) -> float:
  """1 minus the mean similarity of two different layers: 0 if all are alike, 1 if unrelated.

  Args:
    similarity_LL: [L, L], L >= 2, such as CKA; the diagonal does not count.

  Raises:
    UserError: for another shape.
  """
  similarity_LL = np.asarray(similarity_LL, np.float64)
  depth = len(similarity_LL)
  if similarity_LL.shape != (depth, depth) or depth < 2:
    raise UserError(f'a diversity score needs a matrix (L, L), L >= 2; got {similarity_LL.shape}')
  return float(1 - similarity_LL[~np.eye(depth, dtype=bool)].mean())


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Options:
  """Checked choice of kernel and estimator."""

  kernel: str = 'linear'
  estimator: str = 'biased'
  bandwidth: float = 1.0
  median: str = 'offdiag'

  def __post_init__(self) -> None:
    for name, known in (('kernel', KERNELS), ('estimator', ESTIMATORS), ('median', MEDIANS)):
      value = getattr(self, name)
      if value not in known:
        raise UserError(f'unknown {name} {value!r}{trees.did_you_mean(value, known)}')
    if not 0 < self.bandwidth < np.inf:
      raise UserError(f'bandwidth is a fraction of the median, > 0; got {self.bandwidth}')

  @property
  def unbiased(self) -> bool:
    return self.estimator == 'unbiased'

  def check_samples(self, n: int) -> None:
    least = 4 if self.unbiased else 2
    if n < least:
      raise UserError(f'the {self.estimator} estimator needs n >= {least} samples; got {n}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Layer:
  """One layer's kernel, prepared for sums over pairs of samples.

  values: the kernel matrix [n, n], centred (biased) or without diagonal (unbiased), if `gram`;
    else the centred features [n, p] of a linear kernel.
  diagonal: [n], what has to be taken off Tr(KL) to leave the diagonal out; zero if done.
  rows: [n], row sums of K~; only for the unbiased estimator.
  """

  gram: bool
  values: np.ndarray
  diagonal: np.ndarray
  rows: np.ndarray

  @property
  def n(self) -> int:
    return len(self.values)


def _terms(features: np.ndarray, options: _Options) -> np.ndarray:
  """HSIC [L, L] of every two layers of features [L, n, p]."""
  layers = _layers(features, options)
  terms_LL = np.zeros((len(layers), len(layers)))
  for i, x in enumerate(layers):
    for j, y in enumerate(layers[: i + 1]):
      terms_LL[i, j] = terms_LL[j, i] = _hsic(x, y, options)
  return terms_LL


def _self_terms(layers: list[_Layer], options: _Options) -> np.ndarray:
  return _positive(np.array([_hsic(x, x, options) for x in layers]))


def _normalise(terms_LL: np.ndarray) -> np.ndarray:
  """(5) from HSIC terms."""
  scale_L = np.sqrt(_positive(np.diag(terms_LL)))
  return terms_LL / (scale_L[:, None] * scale_L[None])


def _positive(terms_L: np.ndarray) -> np.ndarray:
  # HSIC1(K, K) estimates a positive number without bias, and may miss below zero.
  if not (terms_L > 0).all():
    bad = int(np.argmax(~(terms_L > 0)))
    raise UserError(
      f'HSIC of layer {bad} (from 0) with itself is {terms_L[bad]:.3g}, expected > 0; '
      'use more samples'
    )
  return terms_L


def _layers(features: np.ndarray, options: _Options, gram: bool | None = None) -> list[_Layer]:
  if features.ndim != 3 or 0 in features.shape:
    raise UserError(f'CKA needs features (L, n, p), or two (n, p); got {features.shape}')
  options.check_samples(features.shape[1])
  return [_layer(x_NP, i, options, gram) for i, x_NP in enumerate(features)]


def _layer(x_NP: np.ndarray, i: int, options: _Options, gram: bool | None) -> _Layer:
  x_NP = np.asarray(x_NP, np.float64)
  if not np.isfinite(x_NP).all():
    raise UserError(f'features of layer {i} (from 0) have values that are not finite')
  largest = np.abs(x_NP).max()
  # Neither kernel nor estimator feels a shift of the features; without it (1) loses no digits.
  x_NP = x_NP - x_NP.mean(axis=0, keepdims=True)
  if np.abs(x_NP).max() <= 1e-13 * largest:
    raise UserError(f'features of layer {i} (from 0) are the same for every sample')
  n, p = x_NP.shape
  if options.kernel == 'rbf':
    return _from_gram(_rbf(x_NP, i, options), options)
  if n < p if gram is None else gram:
    return _from_gram(x_NP @ x_NP.T, options)
  if not options.unbiased:
    return _Layer(gram=False, values=x_NP, diagonal=np.zeros(n), rows=np.zeros(n))
  diagonal = np.square(x_NP).sum(axis=1)
  # K 1 = X (X' 1) vanishes for centred features, so K~ 1 is what the diagonal takes away.
  return _Layer(gram=False, values=x_NP, diagonal=diagonal, rows=-diagonal)


def _rbf(x_NP: np.ndarray, i: int, options: _Options) -> np.ndarray:
  """Kernel matrix (2)."""
  k_NN = x_NP @ x_NP.T
  square_N = np.diag(k_NN)
  distance_NN = np.clip(square_N[:, None] + square_N[None] - 2 * k_NN, 0, None)
  np.fill_diagonal(distance_NN, 0)
  n = len(x_NP)
  pairs = distance_NN if options.median == 'full' else distance_NN[np.triu_indices(n, 1)]
  scale = options.bandwidth**2 * np.median(pairs)
  if scale <= 0:
    raise UserError(
      f'layer {i} (from 0): the median distance of the samples is 0, so the rbf kernel has no '
      'width; too many samples are copies of each other'
    )
  return np.exp(-distance_NN / (2 * scale))


def _from_gram(k_NN: np.ndarray, options: _Options) -> _Layer:
  n = len(k_NN)
  zeros = np.zeros(n)
  if options.unbiased:
    k_NN = k_NN.copy()
    np.fill_diagonal(k_NN, 0)
    return _Layer(gram=True, values=k_NN, diagonal=zeros, rows=k_NN.sum(axis=1))
  k_NN = k_NN - k_NN.mean(axis=0, keepdims=True)
  k_NN = k_NN - k_NN.mean(axis=1, keepdims=True)
  return _Layer(gram=True, values=k_NN, diagonal=zeros, rows=zeros)


def _hsic(x: _Layer, y: _Layer, options: _Options) -> float:
  """(3) or (4) from prepared layers of the same form."""
  n = x.n
  product = np.vdot(x.values, y.values) if x.gram else np.square(y.values.T @ x.values).sum()
  if not options.unbiased:
    return float(product / (n - 1) ** 2)
  trace = product - x.diagonal @ y.diagonal
  ends = x.rows.sum() * y.rows.sum() / ((n - 1) * (n - 2))
  middle = 2 * (x.rows @ y.rows) / (n - 2)
  return float((trace + ends - middle) / (n * (n - 3)))
