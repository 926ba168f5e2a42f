"""The sections of a config that say how samples are scored: `eval` and `sweep`."""

import dataclasses
import re

from diversedit_jax import options, types
from diversedit_jax.data import images
from diversedit_jax.evaluation import manifold, panel, picture_metrics
from diversedit_jax.training import average

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
  'cmmd': min,
  'fdr6': min,
  'classifier_fid': min,
  'classifier_consistency': max,
}
"""Scores by name, and which of two is the better one."""
LABELS_FILE = 'file:'
"""Begins an `eval.labels` that names a file."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalOptions(picture_metrics.MetricOptions, panel.PanelOptions):
  """How samples are scored; see docs/evaluation.md."""

  name: str = options.option(
    'fid-{step}',
    doc="Name of the files eval/NAME.json and .npz; '{step}' becomes the step, '{weights}' their "
    'name.',
  )
  reference: str = options.option(
    '',
    path=True,
    doc="What to score against: ADM's .npz, one that --mode=stats wrote, pictures as in "
    'data.source (folder:DIR, store:DIR, ...), or digits.',
  )
  number: int = options.option(50_000, at_least=1, doc='Number of samples to score.')
  labels: str = options.option(
    'random',
    path=True,
    doc='random (SiT, REPA), balanced, one class index, null (no class), or file:LABELS.npy.',
  )
  quantiser: str = options.option(
    'truncate',
    choices=images.QUANTISERS,
    doc='Floats to bytes: truncate (REPA, SRA, REG) or round_half (DiT, SiT, MeanFlow).',
  )
  inception: str = options.option(
    '', path=True, doc="File of the FID network's weights, or its folder; random:SEED for trials."
  )
  encoder: str = options.option('', doc='A second network, such as dinov2-vit-l for FD-DINOv2.')
  encoder_weights: str = options.option(
    '', path=True, doc='Folder with the official weights of eval.encoder.'
  )
  encoder_reference: str = options.option(
    '',
    path=True,
    doc="As eval.reference, from --mode=stats with the same encoder; '' takes eval.reference's "
    'pictures.',
  )
  classifier: str = options.option(
    '',
    path=True,
    doc="A classifier of the data's classes that --mode=classifier wrote, beside Inception or "
    'alone.',
  )
  classifier_epochs: int = options.option(
    5, at_least=1, doc='Passes over the training split of --mode=classifier.'
  )
  keep_samples: bool = options.option(
    True, doc="Keeps the samples as eval/NAME.npz, which ADM's evaluator reads too."
  )
  every: int = options.option(
    0, at_least=0, doc='Steps between evaluations while training; 0 is off.'
  )
  every_number: int = options.option(
    1_000,
    at_least=1,
    doc='Samples of an evaluation while training; enough to watch, too few to quote.',
  )
  best: str = options.option(
    'fid', choices=BEST, doc='Score by which the best averaged weights are kept.'
  )

  def __post_init__(self):
    super().__post_init__()
    name = self.name.replace('{step}', '0').replace('{weights}', '0')
    if not re.fullmatch(r'[\w.+=@-]+', name):
      raise types.UserError(
        f"eval.name={self.name!r} names a file: letters, digits, '.+=@-_', '{{step}}' and "
        "'{weights}' only"
      )
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

  def metrics(self) -> picture_metrics.MetricOptions:
    """What is computed."""
    return picture_metrics.MetricOptions(
      batch_size=self.batch_size,
      precision_recall=self.precision_recall,
      kid_subsets=self.kid_subsets,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SweepOptions(options.Section, section='sweep', may_change=True):
  """Settings of `--mode=sweep`: all weights with every scale and interval low <= high."""

  weights: tuple[str, ...] = options.option(
    (),
    doc="Weights as in sample.weights: 'ema@std=0.05,ema@std=0.10'; none takes those of "
    'sample.weights.',
  )
  guidance_scales: tuple[float, ...] = options.option(
    (1.0, 1.25, 1.5, 1.75, 2.0), at_least=0, doc='Guidance scales; 1 is none.'
  )
  guidance_lows: tuple[float, ...] = options.option(
    (0.0,), at_least=0, at_most=1, doc='Lower ends of the intervals of t in which guidance acts.'
  )
  guidance_highs: tuple[float, ...] = options.option(
    (0.7, 1.0), at_least=0, at_most=1, doc='Upper ends of those intervals.'
  )
  number: int = options.option(5_000, at_least=1, doc='Samples for each setting.')
  score: str = options.option('fid', choices=BEST, doc='Score that is tabled first and plotted.')

  def __post_init__(self):
    super().__post_init__()
    for name in ('guidance_scales', 'guidance_lows', 'guidance_highs'):
      values = getattr(self, name)
      if not values or len(set(values)) < len(values):
        raise types.UserError(f'sweep.{name} must hold different numbers, got {values}')
    if len({average.chosen(name, 'sweep.weights') for name in self.weights}) < len(self.weights):
      raise types.UserError(f'sweep.weights must hold different weights, got {self.weights}')
    if not self.points():
      raise types.UserError(
        f'sweep.guidance_lows={self.guidance_lows} are all above '
        f'sweep.guidance_highs={self.guidance_highs}'
      )

  def points(self, *, guided_at_1: bool = False) -> list[tuple[float, float, float]]:
    """(scale, low, high); without guidance once, as of the whole interval.

    guided_at_1: whether something is guided at scale 1 too: the class token, by its own scale.
    """
    intervals = [(a, b) for a in self.guidance_lows for b in self.guidance_highs if a <= b]
    return [
      (scale, low, high)
      for scale in (self.guidance_scales if intervals else ())
      for low, high in ([(0.0, 1.0)] if scale == 1 and not guided_at_1 else intervals)
    ]
