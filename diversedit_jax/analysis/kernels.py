"""Kernel matrices of features and their HSIC, prepared once per layer for sums over layer pairs.

For n samples with features X [n, p] and Y [n, q], kernels K(X) and L(Y), both [n, n], and
H = I - 11'/n (arXiv 1905.00414, 2010.15327):

  linear   K = X X'                                                                   (1)
  rbf      K_ij = exp(-|x_i - x_j|^2 / (2 s^2)),  s^2 = b^2 median |x_i - x_j|^2      (2)
  poly     K_ij = (1 + x_i . x_j / m)^d,  m = mean |x_i|^2, x centred                (2')
  biased   HSIC0(K, L) = Tr(K H L H) / (n - 1)^2                                      (3)
  unbiased HSIC1(K, L) = [ Tr(K~ L~) + (1'K~1)(1'L~1) / ((n-1)(n-2))
                           - 2 1'K~L~1 / (n-2) ] / (n (n-3)),  n >= 4                 (4)

K~ is K with its diagonal set to zero. The linear kernel needs no [n, n] matrix when n >= p:
Tr(KHLH) = |Yc'Xc|_F^2 with centred columns, and likewise for (4). Everything is float64 numpy.
"""

import dataclasses

import numpy as np

from diversedit_jax import trees
from diversedit_jax.types import UserError

KERNELS = ('linear', 'rbf', 'poly')
ESTIMATORS = ('biased', 'unbiased')
MEDIANS = ('offdiag', 'full')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
  """Checked choice of kernel and estimator."""

  kernel: str = 'linear'
  estimator: str = 'biased'
  bandwidth: float = 1.0
  median: str = 'offdiag'
  degree: int = 3

  def __post_init__(self) -> None:
    for name, known in (('kernel', KERNELS), ('estimator', ESTIMATORS), ('median', MEDIANS)):
      trees.check_known(name, getattr(self, name), known)
    if not 0 < self.bandwidth < np.inf:
      raise UserError(f'bandwidth is a fraction of the median, > 0; got {self.bandwidth}')
    if self.degree < 1:
      raise UserError(f'the degree of the poly kernel is at least 1; got {self.degree}')

  @property
  def unbiased(self) -> bool:
    """Whether (4) is taken."""
    return self.estimator == 'unbiased'

  def check_samples(self, n: int) -> None:
    """Refuses fewer samples than the estimator needs (UserError)."""
    least = 4 if self.unbiased else 2
    if n < least:
      raise UserError(f'the {self.estimator} estimator needs n >= {least} samples; got {n}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
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
    """Number of samples."""
    return len(self.values)


def prepare(features: np.ndarray, options: Options, gram: bool | None = None) -> list[Layer]:
  """The layers of features [L, n, p], by kernel matrices if `gram`; None takes the smaller form.

  Raises:
    UserError: another shape, too few samples, values that are not finite or constant.
  """
  if features.ndim != 3 or 0 in features.shape:
    raise UserError(f'CKA needs features (L, n, p), or two (n, p); got {features.shape}')
  options.check_samples(features.shape[1])
  return [_layer(x_NP, i, options, gram) for i, x_NP in enumerate(features)]


def _layer(x_NP: np.ndarray, i: int, options: Options, gram: bool | None) -> Layer:
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
    return from_gram(_rbf(x_NP, i, options), options)
  if options.kernel == 'poly':
    k_NN = x_NP @ x_NP.T
    return from_gram((1 + k_NN / np.diag(k_NN).mean()) ** options.degree, options)
  if n < p if gram is None else gram:
    return from_gram(x_NP @ x_NP.T, options)
  if not options.unbiased:
    return Layer(gram=False, values=x_NP, diagonal=np.zeros(n), rows=np.zeros(n))
  diagonal = np.square(x_NP).sum(axis=1)
  # K 1 = X (X' 1) vanishes for centred features, so K~ 1 is what the diagonal takes away.
  return Layer(gram=False, values=x_NP, diagonal=diagonal, rows=-diagonal)


def _rbf(x_NP: np.ndarray, i: int, options: Options) -> np.ndarray:
  """Kernel matrix (2)."""
  k_NN = x_NP @ x_NP.T
  square_N = np.diag(k_NN)
  distance_NN = np.clip(square_N[:, None] + square_N[None] - 2 * k_NN, 0, None)
  np.fill_diagonal(distance_NN, 0)
  n = len(x_NP)
  pairs = distance_NN if options.median == 'full' else distance_NN[np.triu_indices(n, 1)]
  scale = options.bandwidth**2 * np.median(pairs)
  # Copies of a sample come out a rounding error apart.
  if scale <= options.bandwidth**2 * 1e-13 * square_N.max():
    raise UserError(
      f'layer {i} (from 0): the median distance of the samples is 0, so the rbf kernel has no '
      'width; too many samples are copies of each other'
    )
  return np.exp(-distance_NN / (2 * scale))


def from_gram(k_NN: np.ndarray, options: Options) -> Layer:
  """A layer from its kernel matrix [n, n]."""
  n = len(k_NN)
  zeros = np.zeros(n)
  if options.unbiased:
    k_NN = k_NN.copy()
    np.fill_diagonal(k_NN, 0)
    return Layer(gram=True, values=k_NN, diagonal=zeros, rows=k_NN.sum(axis=1))
  k_NN = k_NN - k_NN.mean(axis=0, keepdims=True)
  k_NN = k_NN - k_NN.mean(axis=1, keepdims=True)
  return Layer(gram=True, values=k_NN, diagonal=zeros, rows=zeros)


def hsic(x: Layer, y: Layer, options: Options) -> float:
  """(3) or (4) from prepared layers of the same form."""
  n = x.n
  product = np.vdot(x.values, y.values) if x.gram else np.square(y.values.T @ x.values).sum()
  if not options.unbiased:
    return float(product / (n - 1) ** 2)
  trace = product - x.diagonal @ y.diagonal
  ends = x.rows.sum() * y.rows.sum() / ((n - 1) * (n - 2))
  middle = 2 * (x.rows @ y.rows) / (n - 2)
  return float((trace + ends - middle) / (n * (n - 3)))
