"""The sections of a config that say how samples are scored: `eval` and `sweep`."""

import dataclasses
import re

from diversedit_jax import trees, types
from diversedit_jax.data import images
from diversedit_jax.evaluation import manifold, picture_metrics
from diversedit_jax.experiment import sections

BEST = {
  'fid': min,
  'sfid': min,
  'kid': min,
  'inception_score': max,
  'precision': max,
  'recall': max,
  'frechet_distance': min,
  'class_consistency': max,
  'encoder_fid': min,
  'encoder_kid': min,
}
"""Scores by name, and which of two is the better one."""
LABELS_FILE = 'file:'
"""Begins an `eval.labels` that names a file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions:
  """How samples are scored; see `configs.common.base` and docs/evaluation.md.

  name: of the result file; '{step}' in it becomes the step of the checkpoint.
  reference: 'digits', an .npz, or pictures as `data.source` names them; '' for none.
  number, labels, quantiser: of the samples. inception: file of its weights, or 'random:SEED'.
  encoder, encoder_weights, encoder_reference: a second network, and what it compares with.
  batch_size, precision_recall, kid_subsets: see `evaluation.picture_metrics.MetricOptions`.
  keep_samples: as an .npz. every, every_number, best: of evaluations while training.
  """

  name: str
  reference: str
  number: int
  labels: str
  quantiser: str
  inception: str
  encoder: str
  encoder_weights: str
  encoder_reference: str
  batch_size: int
  precision_recall: str
  kid_subsets: int
  keep_samples: bool
  every: int
  every_number: int
  best: str

  def __post_init__(self):
    if not re.fullmatch(r'[\w.+=-]+', self.name.replace('{step}', '0')):
      raise types.UserError(
        f"eval.name={self.name!r} names a file: letters, digits, '.+=-_' and '{{step}}' only"
      )
    trees.check_known('eval.quantiser', self.quantiser, images.QUANTISERS)
    trees.check_known('eval.best', self.best, BEST)
    sections.at_least('eval', 'every', self.every, 0)
    self.judge()
    for name in ('number', 'every_number'):
      self.check_number(f'eval.{name}', getattr(self, name))
    if self.encoder and not self.encoder_weights:
      raise types.UserError(f'eval.encoder={self.encoder!r} needs eval.encoder_weights=FOLDER')
    for name in ('encoder_weights', 'encoder_reference'):
      if getattr(self, name) and not self.encoder:
        raise types.UserError(f'eval.{name}={getattr(self, name)!r} is for eval.encoder')
    if self.every and not self.reference:
      raise types.UserError(f'eval.every={self.every} needs eval.reference')

  def check_number(self, key: str, number: int) -> None:
    """Refuses fewer samples than the scores need, naming the key of their number (UserError)."""
    neighbours = self.precision_recall != 'none' and self.reference != 'digits'
    low = manifold.NEIGHBOURS + 1 if neighbours else 2
    if number < low:
      why = f' with eval.precision_recall={self.precision_recall}' if neighbours else ''
      raise types.UserError(f'{key} must be at least {low}{why}, got {number}')

  def judge(self) -> picture_metrics.MetricOptions:
    """What is computed."""
    return picture_metrics.MetricOptions(
      batch_size=self.batch_size,
      precision_recall=self.precision_recall,
      kid_subsets=self.kid_subsets,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions:
  """Guidance of `--mode=sweep`: every scale with every interval low <= high.

  number: of samples for each. score: that the table and the plot are about.
  """

  guidance_scales: tuple[float, ...]
  guidance_lows: tuple[float, ...]
  guidance_highs: tuple[float, ...]
  number: int
  score: str

  def __post_init__(self):
    trees.check_known('sweep.score', self.score, BEST)
    for name in ('guidance_scales', 'guidance_lows', 'guidance_highs'):
      values = getattr(self, name)
      if not values or len(set(values)) < len(values):
        raise types.UserError(f'sweep.{name} must hold different numbers, got {values}')
    if not self.points():
      raise types.UserError(
        f'sweep.guidance_lows={self.guidance_lows} are all above '
        f'sweep.guidance_highs={self.guidance_highs}'
      )

  def points(self) -> list[tuple[float, float, float]]:
    """(scale, low, high); without guidance once, as of the whole interval."""
    intervals = [(a, b) for a in self.guidance_lows for b in self.guidance_highs if a <= b]
    return [
      (scale, low, high)
      for scale in (self.guidance_scales if intervals else ())
      for low, high in ([(0.0, 1.0)] if scale == 1 else intervals)
    ]
