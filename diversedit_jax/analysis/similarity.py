"""Similarity of block representations: centred kernel alignment (CKA), and diversity from it.

  CKA(K, L) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))                                (5)

with the kernels (1), (2), (2') and the estimators (3), (4) of `kernels.py` (arXiv 1905.00414,
2010.15327; DiverseDiT, arXiv 2603.04239, Eq. 7). The biased estimator tends to 1 when features
outnumber samples, whatever the features are; the unbiased one does not, and may come out slightly
negative. Over minibatches b (2010.15327) the unbiased terms are summed before they are
divided, so that no more than one minibatch is held:

  CKA = sum_b HSIC1(K_b, L_b) / sqrt(sum_b HSIC1(K_b, K_b) sum_b HSIC1(L_b, L_b))     (6)
"""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from diversedit_jax import trees, types
from diversedit_jax.analysis import kernels
from diversedit_jax.types import UserError

KERNELS = kernels.KERNELS
ESTIMATORS = (*kernels.ESTIMATORS, 'minibatch')
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
  trees.check_known('view', kind, VIEWS)
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
  degree: int = 3,
) -> np.ndarray | float:
  """Centred kernel alignment (5) of features over the same n samples.

  Args:
    features: [L, n, p], or [n, p] together with `other`.
    other: None compares the L layers with each other; [M, n, q] compares them with M others,
      [n, q] compares two.
    kernel: 'linear' (1), 'rbf' (2) or 'poly' (2').
    estimator: 'biased' (3) or 'unbiased' (4), the latter from n = 4; for minibatches see
      `of_batches`.
    bandwidth: b in (2), a fraction of the median distance of each layer's samples. Unused by
      the linear kernel. Published choices lie between 0.2 and 1.
    median: over the pairs 'offdiag' i < j, or over the 'full' matrix with its zero diagonal.
    degree: d in (2').

  Returns:
    [L, L], [L, M], or a float for two [n, p] arrays; 1 on the diagonal of [L, L].

  Raises:
    UserError: for unknown names, shapes that do not fit, too few samples, values that are not
      finite, or a layer that is constant over the samples.
  """
  options = kernels.Options(
    kernel=kernel, estimator=estimator, bandwidth=bandwidth, median=median, degree=degree
  )
  features = np.asarray(features)
  if other is None:
    return _normalise(_terms(features, options))
  other = np.asarray(other)
  pair = features.ndim == other.ndim == 2
  if pair:
    features, other = features[None], other[None]
  values = _ratio(*_cross_terms(features, other, options))
  return float(values[0, 0]) if pair else values


def of_batches(
  batches: Iterable[np.ndarray],
  others: Iterable[np.ndarray] | None = None,
  *,
  kernel: str = 'linear',
  estimator: str = 'minibatch',
  bandwidth: float = 1.0,
  degree: int = 3,
) -> np.ndarray:
  """Centred kernel alignment of features that come batch after batch.

  Args:
    batches: [L, b, p] each, one after the other. others: [M, b, q] for the same samples; None
      compares the L layers with each other.
    kernel, bandwidth, degree: as in `cka`; the median of (2) and m of (2') are of each minibatch.
    estimator: 'minibatch' (6), which holds one batch at a time and leaves out a last one that is
      smaller than the first; the others of `cka` put all batches together.

  Returns:
    [L, L] or [L, M].

  Raises:
    UserError: as `cka`.
  """
  trees.check_known('estimator', estimator, ESTIMATORS)
  numbers = {'kernel': kernel, 'bandwidth': bandwidth, 'degree': degree}
  if estimator != 'minibatch':
    whole = lambda parts: None if parts is None else np.concatenate(list(parts), axis=1)
    return cka(whole(batches), whole(others), estimator=estimator, **numbers)
  options = kernels.Options(estimator='unbiased', **numbers)
  if others is None:
    return _normalise(sum(_terms(x, options) for x in _full(batches)))
  pairs = zip(_full(batches), _full(others), strict=True)
  sums = [_cross_terms(x, y, options) for x, y in pairs]
  return _ratio(*(sum(terms) for terms in zip(*sums, strict=True)))


def _full(batches: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
  size = 0
  for batch in batches:
    size = size or batch.shape[1]
    if batch.shape[1] == size:
      yield batch


def hsic(k_NN: np.ndarray, l_NN: np.ndarray, estimator: str = 'biased') -> float:
  """Hilbert-Schmidt independence criterion of two kernel matrices [n, n], by (3) or (4).

  Raises:
    UserError: for an unknown estimator, other shapes, or too few samples.
  """
  k_NN, l_NN = np.asarray(k_NN, np.float64), np.asarray(l_NN, np.float64)
  types.check('k_NN', k_NN, 'N N')
  types.check('l_NN', l_NN, 'N N', N=len(k_NN))
  options = kernels.Options(estimator=estimator)
  options.check_samples(len(k_NN))
  return kernels.hsic(kernels.from_gram(k_NN, options), kernels.from_gram(l_NN, options), options)


def diversity_score(similarity_LL: np.ndarray) -> float:
  """1 minus the mean similarity of two different layers: 0 if all are alike, 1 if unrelated.

  Args:
    similarity_LL: [L, L], L >= 2, such as CKA; the diagonal does not count.

  Raises:
    UserError: for another shape.
  """
  similarity_LL = np.asarray(similarity_LL, np.float64)
  depth = max(similarity_LL.shape, default=0)
  if similarity_LL.shape != (depth, depth) or depth < 2:
    raise UserError(f'a diversity score needs a matrix (L, L), L >= 2; got {similarity_LL.shape}')
  return float(1 - similarity_LL[~np.eye(depth, dtype=bool)].mean())


def block_diversity(similarity_LL: np.ndarray) -> np.ndarray:
  """1 minus the mean similarity of each layer to the others, [L]; their mean is the score.

  Raises:
    UserError: for another shape than [L, L], L >= 2.
  """
  diversity_score(similarity_LL)
  others = np.where(np.eye(len(similarity_LL), dtype=bool), 0.0, similarity_LL)
  return 1 - others.sum(axis=1) / (len(similarity_LL) - 1)


def _terms(features: np.ndarray, options: kernels.Options) -> np.ndarray:
  """HSIC [L, L] of every two layers of features [L, n, p]."""
  layers = kernels.prepare(features, options)
  terms_LL = np.zeros((len(layers), len(layers)))
  for i, x in enumerate(layers):
    for j, y in enumerate(layers[: i + 1]):
      terms_LL[i, j] = terms_LL[j, i] = kernels.hsic(x, y, options)
  return terms_LL


def _cross_terms(
  features: np.ndarray, other: np.ndarray, options: kernels.Options
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """HSIC of layers [L, n, p] with others [M, n, q]: [L, M], and of each with itself, [L], [M]."""
  left, right = kernels.prepare(features, options), kernels.prepare(other, options)
  if left[0].n != right[0].n:
    raise UserError(f'CKA compares the same samples; got n = {left[0].n} and {right[0].n}')
  # Two linear layers may have chosen different forms, each by its own p; take one for both.
  if left[0].gram != right[0].gram:
    left, right = (kernels.prepare(x, options, gram=True) for x in (features, other))
  cross = np.array([[kernels.hsic(x, y, options) for y in right] for x in left])
  own = (np.array([kernels.hsic(x, x, options) for x in layers]) for layers in (left, right))
  return cross, *own


def _ratio(cross_LM: np.ndarray, own_L: np.ndarray, own_M: np.ndarray) -> np.ndarray:
  """(5) from HSIC terms of two sets of layers."""
  return cross_LM / np.sqrt(_positive(own_L)[:, None] * _positive(own_M)[None])


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
