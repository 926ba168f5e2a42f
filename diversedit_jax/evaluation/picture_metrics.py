"""Scores of pictures against references: numbers, and what makes them doubtful, in words."""

from collections.abc import Iterable, Mapping
import dataclasses
from typing import Any

import jax
import numpy as np

from diversedit_jax import options as options_lib
from diversedit_jax.evaluation import (
  accumulate,
  checks,
  cmmd,
  feature_network,
  manifold,
  reference,
  scores,
)
from diversedit_jax.types import UserError

PRECISION_RECALL = ('none', *manifold.ARITHMETIC)
CMMD = 'cmmd'
KID_SIZE = 1000
"""Number of points of a subset, as the authors of the kernel distance have it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetricOptions(options_lib.Section, section='eval', may_change=True):
  """What is computed beside Fréchet distances and the Inception Score."""

  batch_size: int = options_lib.option(
    64, at_least=1, doc='Pictures that the scoring networks see at a time, over all devices.'
  )
  precision_recall: str = options_lib.option(
    'float32',
    choices=PRECISION_RECALL,
    doc="Arithmetic of precision and recall: float32, float16 (ADM's) or none.",
  )
  kid_subsets: int = options_lib.option(
    100, at_least=0, doc='Subsets of the kernel distance; 0 leaves it out.'
  )

  @property
  def pool(self) -> bool:
    """Whether features of single pictures are needed."""
    return self.precision_recall != 'none' or self.kid_subsets > 0


class PictureMetrics:
  """Scores by one network against one reference, for pictures of one size.

  What cannot fit is refused at once. If the reference brings images, they go through the network
  once, when they are first needed.
  """

  def __init__(
    self,
    network: feature_network.FeatureNetwork,
    against: reference.Reference,
    *,
    image_size: int,
    options: MetricOptions,
    mesh: jax.sharding.Mesh,
  ):
    """Checks that network, reference and size go together.

    Raises:
      UserError: as `reference.check_fits`; or too few pictures for precision and recall.
    """
    widths = network.widths(image_size)
    reference.check_fits(
      against,
      width=widths['pool'],
      spatial_width=widths.get('spatial'),
      inception_sha256=network.sha256,
      image_size=image_size,
    )
    self.given = options
    if network.only:
      options = dataclasses.replace(options, precision_recall='none', kid_subsets=0)
    points = against.pool_ND if against.pool_ND is not None else against.images_NHWC
    if network.only == CMMD and points is None:
      raise UserError(
        f'{against.name} holds no features of single pictures, which CMMD compares: give '
        'eval.cmmd_reference, pictures or what --mode=stats with eval.cmmd wrote'
      )
    wanted = options.precision_recall != 'none' and points is not None
    if wanted and len(points) <= manifold.NEIGHBOURS:
      raise UserError(
        f'{against.name} brings {len(points)} pictures, but precision and recall need at least '
        f'{manifold.NEIGHBOURS + 1}; precision_recall=none leaves them out'
      )
    self.network, self.reference, self.options = network, against, options
    self._mesh, self._kinds = mesh, frozenset(widths)
    self._pool = options.pool or network.only == CMMD
    self._extractor = feature_network.Extractor(network, mesh, options.batch_size)
    self._theirs = against  # With what its images add, once they were looked at.

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the scores that this reference makes possible."""
    theirs, options = self.reference, self.options
    pictures = theirs.images_NHWC is not None
    # The images stand in for statistics only where there are none at all.
    statistics = theirs.mu is not None or pictures
    spatial = theirs.mu_s is not None or (pictures and theirs.mu is None)
    pool = theirs.pool_ND is not None or pictures
    if self.network.only == CMMD:
      return ('',)  # The prefix says all.
    there = {
      ('fid',): statistics,
      ('sfid',): spatial and 'spatial' in self._kinds,
      ('inception_score', 'inception_score_std'): 'logits' in self._kinds,
      ('precision', 'recall'): pool and options.precision_recall != 'none',
      ('kid', 'kid_std'): pool and options.kid_subsets > 0,
      ('consistency',): self.network.labelled,
    }
    return tuple(name for names, found in there.items() if found for name in names)

  def sums(self, count: int) -> feature_network.Sums:
    """Takes the features of `count` pictures; `scores` takes what it gives in the end."""
    theirs = self._look_at_reference()
    keep = count if self._pool and theirs.pool_ND is not None else 0
    return feature_network.Sums(self._extractor, count, keep=keep)

  def scores(
    self, summary: accumulate.Summary, labels_N: np.ndarray | None = None
  ) -> tuple[dict[str, float], list[str]]:
    """The scores by name, those of `names`, and what makes them doubtful, in words.

    labels_N: class that each sample was drawn of, [n].
    """
    theirs, found, warnings = self._look_at_reference(), {}, list(summary.warnings)
    if self.network.only == CMMD:
      distance = cmmd.cmmd(summary.pool_ND, theirs.pool_ND, mesh=self._mesh)
      doubts = _doubts_of_points(len(summary.pool_ND), len(theirs.pool_ND))
      return {'': distance}, doubts + self._doubts()
    if theirs.mu is not None:
      found['fid'] = scores.frechet_distance(summary.mu, summary.sigma, theirs.mu, theirs.sigma)
    else:
      warnings.append(f'{self.reference.name} has no mu and sigma, so there is no FID')
    if theirs.mu_s is not None and summary.mu_s is not None:
      found['sfid'] = scores.frechet_distance(
        summary.mu_s, summary.sigma_s, theirs.mu_s, theirs.sigma_s
      )
    if summary.inception_score is not None:
      found['inception_score'] = summary.inception_score
      found['inception_score_std'] = summary.inception_score_std
    if summary.pool_ND is not None:
      found |= self._pairwise(theirs.pool_ND, summary.pool_ND, warnings)
    if self.network.labelled:
      found['consistency'] = float(np.mean(summary.classes_N == labels_N))
    if theirs.n is not None and theirs.mu is not None:
      warnings += checks.rank_warnings(theirs.n, len(theirs.mu), 'the reference')
    return found, warnings + self._doubts()

  def reference_facts(self) -> dict[str, Any]:
    """Facts of the reference, for the file of scores."""
    against, theirs = self.reference, self._theirs
    return {
      'name': against.name,
      'sha256': against.sha256,
      'holds': against.holds,
      'statistics_sha256': theirs.statistics_sha256,
      'images': theirs.n,
      'images_of_precision_recall': None if theirs.pool_ND is None else len(theirs.pool_ND),
      **against.facts,
    }

  def _doubts(self):
    """Sentences about a reference or a network that do not say enough of themselves."""
    against, network, found = self.reference, self.network, []
    if against.mu is None and self._theirs.mu is not None and network.only != CMMD:
      found.append(
        f'the Fréchet distance is to the {self._theirs.n} images of {against.name}, not to '
        'statistics of a training set'
      )
    if not against.facts and against.images_NHWC is None:
      found.append(
        f'{against.name} states neither network, resize nor size of its pictures; unless it is a '
        f'published one, this distance compares with nothing. Its mu and sigma have the SHA-256 '
        f'{against.statistics_sha256}, which tells references apart whatever their names'
      )
    if network.random:
      found.append(f'the weights of {network.name} are random: these scores compare with no others')
    elif network.verified is False:
      found.append(
        f'the weights of {network.name} are not verified: {network.file} has their shapes, but the '
        'digest of no such file is published'
      )
    return found

  def _look_at_reference(self):
    """The reference with what its images add, as in ADM's evaluator."""
    given, theirs = self.reference.images_NHWC, self._theirs
    if given is None or (theirs.mu is not None and not self._pool):
      return theirs
    if theirs.pool_ND is None:
      made = self._extractor.summarise([given], len(given), keep=len(given))
      self._theirs = dataclasses.replace(theirs, pool_ND=made.pool_ND)
      if theirs.mu is None:
        self._theirs = dataclasses.replace(
          self._theirs, mu=made.mu, sigma=made.sigma, mu_s=made.mu_s, sigma_s=made.sigma_s, n=made.n
        )
    return self._theirs

  def _pairwise(self, theirs_ND, pool_ND, warnings):
    """Scores of single features against those of the reference's pictures."""
    options, found = self.options, {}
    if options.precision_recall != 'none':
      found |= scores.precision_recall(
        theirs_ND, pool_ND, arithmetic=options.precision_recall, mesh=self._mesh
      )._asdict()
      if len(theirs_ND) != reference.POOL_LIMIT:
        warnings.append(
          f'precision and recall are against {len(theirs_ND)} pictures instead of '
          f'{reference.POOL_LIMIT}, and depend on that number'
        )
    if options.kid_subsets:
      size = min(KID_SIZE, len(theirs_ND), len(pool_ND))
      if size < KID_SIZE:
        warnings.append(f'KID is over subsets of {size} points instead of {KID_SIZE}')
      kid = scores.kernel_distance(
        pool_ND, theirs_ND, subsets=options.kid_subsets, size=size, mesh=self._mesh
      )
      found |= {'kid': kid.mean, 'kid_std': kid.std}
    return found


def _doubts_of_points(samples, points):
  """A sentence about few points, of which each counts with itself."""
  if min(samples, points) >= checks.STANDARD_COUNT:
    return []
  return [
    f'CMMD is of {samples} samples and {points} reference pictures; it is the biased estimate, '
    'which is larger with fewer'
  ]


def score(
  metrics: Mapping[str, PictureMetrics],
  batches: Iterable[np.ndarray],
  count: int,
  labels_N: np.ndarray | None = None,
) -> dict[str, Any]:
  """All scores of pictures by one or several networks, from one pass over the pictures.

  Args:
    metrics: by prefix of the names of their scores.
    batches: uint8 [n, H, W, 3]; their order decides the parts of the Inception Score.
    count: number of pictures, at least 2.
    labels_N: class that each was drawn of, for a network that was trained on these classes.

  Returns:
    'scores' by name, 'warnings' in words, 'references', facts by name of the network, and what is
    known of real pictures, by name; ready for JSON.

  Raises:
    UserError: another number of pictures, or features that are not finite.
  """
  sums = {prefix: one.sums(count) for prefix, one in metrics.items()}
  images = checks.ImageChecks()
  for batch in batches:
    for one in sums.values():
      one.add(batch)
    images.add(batch)
  numbers, warnings, references, measured = {}, [], {}, {}
  for prefix, one in metrics.items():
    found, told = one.scores(sums[prefix].finish(), labels_N)
    numbers |= {prefix + name: value for name, value in found.items()}
    warnings += [line for line in told if line not in warnings]
    references[one.network.name] = one.reference_facts()
    measured |= {prefix + name: value for name, value in one.network.measured.items()}
  warnings += images.warnings()
  return {'scores': numbers, 'warnings': warnings, 'references': references, **measured}
