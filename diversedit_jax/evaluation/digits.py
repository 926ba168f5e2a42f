"""Scores of generated digits: do they look like their label, and are they spread like real ones?

Class consistency is the share of samples to which a classifier of real digits gives the label they
were sampled with. The Fréchet distance is taken in the principal components of real training
pixels, to the held-out test split; the distance of the real train split to the same split is the
floor below which differences mean nothing. Components are not whitened: whitening gives the
faintest of them the weight of the strongest, which raises the floor and hides dropped classes.
"""

import dataclasses
from typing import Any, Self

import numpy as np

from diversedit_jax.data import sources
from diversedit_jax.evaluation import checks, scores
from diversedit_jax.types import UserError

COMPONENTS = 32
FEATURE_SPACE = (
  f'{COMPONENTS} principal components of real training pixels in [-1, 1], not whitened; '
  'samples clipped to [-1, 1], not quantised'
)
CLASSIFIER = 'RBF SVM (gamma 0.001, C 1, pixels 0..16) fitted on the real train split'


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DigitsReference:
  """What samples are compared with; made by `build`.

  classifier: a `sklearn.svm.SVC` fitted on pixels 0..16, [N, 64] -> [N].
  classifier_test_accuracy: its share of right answers on the real test split.
  mean: mean real training image, pixels in [-1, 1], [64].
  components: the leading principal directions, [64, 32].
  train_statistics, test_statistics: mean and covariance of the real splits' features.
  counts: number of examples in each of the real splits.
  """

  classifier: Any
  classifier_test_accuracy: float
  mean: np.ndarray
  components: np.ndarray
  train_statistics: tuple[np.ndarray, np.ndarray]
  test_statistics: tuple[np.ndarray, np.ndarray]
  counts: dict[str, int]

  @classmethod
  def build(cls) -> Self:
    """Fits classifier and components on the real train split: under a second, no randomness."""
    from sklearn import svm  # Here, because its import takes a second that others need not pay.

    train, test = sources.digits('train'), sources.digits('test')
    x_train, x_test = _flat(train.data), _flat(test.data)
    classifier = svm.SVC(gamma=0.001, C=1.0).fit(_levels(x_train), train.labels)
    mean, covariance = scores.gaussian_statistics(x_train)
    components = np.linalg.eigh(covariance)[1][:, ::-1][:, :COMPONENTS]
    project = lambda x: (x - mean[None]) @ components
    return cls(
      classifier=classifier,
      classifier_test_accuracy=float(np.mean(classifier.predict(_levels(x_test)) == test.labels)),
      mean=mean,
      components=components,
      train_statistics=scores.gaussian_statistics(project(x_train)),
      test_statistics=scores.gaussian_statistics(project(x_test)),
      counts={'real_train': len(train), 'real_test': len(test)},
    )

  def features(self, images_NHWC: np.ndarray) -> np.ndarray:
    """Coordinates [N, 32] of images [N, 8, 8, 1] in the feature space, float64."""
    return (_flat(_checked(images_NHWC)) - self.mean[None]) @ self.components

  def class_consistency(
    self, images_NHWC: np.ndarray, labels_N: np.ndarray
  ) -> tuple[float, dict[str, float | None]]:
    """Share of samples classified as their label, over all and per class.

    Returns:
      The share, and the share of each class by its digit; None for a class without samples.

    Raises:
      UserError: as `evaluate`.
    """
    x = _flat(_checked(images_NHWC))
    labels_N = np.asarray(labels_N)
    if labels_N.shape != (len(x),) or labels_N.dtype.kind not in 'iu':
      raise UserError(
        f'labels are {labels_N.dtype} {labels_N.shape}, expected integers ({len(x)},)'
      )
    if labels_N.min() < 0 or labels_N.max() > 9:
      raise UserError(f'labels lie in [{labels_N.min()}, {labels_N.max()}], expected [0, 9]')
    right = self.classifier.predict(_levels(x)) == labels_N
    of_class = {str(k): right[labels_N == k] for k in range(10)}
    return float(right.mean()), {
      k: float(hits.mean()) if hits.size else None for k, hits in of_class.items()
    }

  def evaluate(self, images_NHWC: np.ndarray, labels_N: np.ndarray) -> dict[str, Any]:
    """All scores of samples, ready for JSON.

    Args:
      images_NHWC: samples [N, 8, 8, 1], floating, nominally in [-1, 1], N >= 2.
      labels_N: the labels they were sampled with, integers [N] in [0, 9].

    Returns:
      class_consistency, per_class, classifier, classifier_test_accuracy, frechet_distance,
      frechet_floor, feature_space, counts, and `warnings`: sentences about samples that make the
      numbers doubtful.

    Raises:
      UserError: for other shapes or types, labels outside the classes, or values not finite.
    """
    consistency, per_class = self.class_consistency(images_NHWC, labels_N)
    statistics = scores.gaussian_statistics(self.features(images_NHWC))
    return {
      'class_consistency': consistency,
      'per_class': per_class,
      'classifier': CLASSIFIER,
      'classifier_test_accuracy': self.classifier_test_accuracy,
      'frechet_distance': scores.frechet_distance(*statistics, *self.test_statistics),
      'frechet_floor': scores.frechet_distance(*self.train_statistics, *self.test_statistics),
      'feature_space': FEATURE_SPACE,
      'counts': {'samples': len(images_NHWC), **self.counts},
      'warnings': _warnings(np.asarray(images_NHWC), per_class),
    }


def _warnings(images_NHWC: np.ndarray, per_class: dict[str, float | None]) -> list[str]:
  """Sentences about samples whose scores mean little."""
  found = []
  n = len(images_NHWC)
  if n <= COMPONENTS:
    found.append(
      f'{n} samples cannot give a covariance of full rank in {COMPONENTS} dimensions; the Fréchet '
      f'distance needs at least {COMPONENTS + 1}'
    )
  flat = images_NHWC.reshape(n, -1)
  constant = np.count_nonzero(np.ptp(flat, axis=1) < 1e-3)
  if constant:
    found.append(f'{constant} of {n} samples are constant images')
  copies = n - len(np.unique(flat, axis=0))
  if copies:
    found.append(f'{copies} of {n} samples are exact copies of another sample')
  missing = [k for k, share in per_class.items() if share is None]
  if missing:
    found.append(f'no samples of the classes {", ".join(missing)}')
  return found


def _checked(images_NHWC: np.ndarray) -> np.ndarray:
  images_NHWC = np.asarray(images_NHWC)
  if images_NHWC.shape[1:] != (8, 8, 1) or len(images_NHWC) < 2:
    raise UserError(f'digits need images (N >= 2, 8, 8, 1); got {images_NHWC.shape}')
  if images_NHWC.dtype.kind != 'f':
    raise UserError(f'digits need floating images in [-1, 1]; got {images_NHWC.dtype}')
  bad = np.count_nonzero(~np.isfinite(images_NHWC).all(axis=(1, 2, 3)))
  if bad:
    raise checks.NotFinite(f'{bad} of {len(images_NHWC)} samples have values that are not finite')
  return images_NHWC


def _flat(images_NHWC: np.ndarray) -> np.ndarray:
  """Pixels [N, 64], float64, clipped to [-1, 1] as a picture file would."""
  return np.clip(images_NHWC.reshape(len(images_NHWC), -1).astype(np.float64), -1, 1)


def _levels(x: np.ndarray) -> np.ndarray:
  """Pixels in [-1, 1] on the scale 0..16 of the data set."""
  return 8 * (x + 1)
