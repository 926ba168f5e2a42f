"""The section of a config that says what `--mode=analyze` looks at: `analysis`."""

import dataclasses

from diversedit_jax import options, types
from diversedit_jax.analysis import registry, similarity

PARTS_OF = {
  'against': ('compare',),
  'batches': ('gradients',),
  'draws': ('variance',),
  'encoder': ('cknna',),
  'encoder_weights': ('cknna',),
  'neighbours': ('cknna',),
  'pictures': ('pca',),
  'probe_examples': ('probe',),
  'sources': ('variance',),
  'steps': ('steps',),
  'time_grid': ('times', 'variance'),
}
"""Keys that only some parts read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AnalysisConfig(options.Section, section='analysis', may_change=True):
  """What `--mode=analyze` looks at (docs/analysis.md)."""

  parts: tuple[str, ...] = options.option(
    (),
    doc='Parts, as cka,rank; () means those of the sheet (cka, probe, rank), all every one that '
    'the run allows: cka, cknna, compare, gradients, pca, probe, rank, steps, times, variance.',
  )
  examples: int = options.option(
    256, at_least=4, doc='Real examples, spread evenly over the held-out split.'
  )
  batch_size: int = options.option(
    64, at_least=4, doc="Examples at a time, of all devices; those of a minibatch of 'minibatch'."
  )
  times: tuple[float, ...] = options.option(
    (0.1, 0.5, 0.9), at_least=0, at_most=1, doc='Times t, each analysed alone.'
  )
  time_grid: tuple[float, ...] = options.option(
    (0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95),
    at_least=0,
    at_most=1,
    doc='Times of the parts that look along time: times and variance.',
  )
  view: str = options.option(
    'mean', choices=similarity.VIEWS, doc='Features of an example from those of its tokens.'
  )
  labels: str = options.option(
    'true',
    choices=('true', 'null'),
    doc='Labels that the network is told; probe and cknna always tell it the null label.',
  )
  kernel: str = options.option(
    'linear', choices=similarity.KERNELS, doc='Kernel of the CKA that is drawn.'
  )
  estimator: str = options.option(
    'unbiased',
    choices=similarity.ESTIMATORS,
    doc='Estimator of the CKA that is drawn; minibatch (arXiv 2010.15327) sums the unbiased one '
    'over minibatches and holds one of them, for tens of thousands of examples.',
  )
  bandwidth: float = options.option(
    1.0, above=0, doc='Width of the RBF kernel, in median distances.'
  )
  degree: int = options.option(3, at_least=1, doc='Degree of the polynomial kernel.')
  probe_examples: int = options.option(
    512, at_least=2, doc='Examples of the training split on which probes are fitted.'
  )
  steps: tuple[int, ...] = options.option(
    (), at_least=1, doc='Checkpoints of the part steps; () means all that the run keeps.'
  )
  against: str = options.option(
    '',
    path=True,
    doc='For the part compare: directory of another run, checkpoints/STEP, or a file of weights.',
  )
  encoder: str = options.option(
    '',
    doc="Frozen encoder of the part cknna, as in repa.pairs; '' is the method's, or else pca.",
  )
  encoder_weights: str = options.option(
    '', path=True, doc="Folder with that encoder's official weight files."
  )
  neighbours: int = options.option(
    10, at_least=2, doc='k of the part cknna (REPA, arXiv 2410.06940, takes 10).'
  )
  pictures: int = options.option(6, at_least=2, doc='Examples of the part pca.')
  sources: int = options.option(32, at_least=2, doc='Examples of the part variance.')
  draws: int = options.option(
    4, at_least=2, doc='Draws of noise for each example and time in the part variance.'
  )
  batches: int = options.option(
    4, at_least=1, doc='Training batches over which the part gradients takes means.'
  )

  def __post_init__(self):
    super().__post_init__()
    registry.check(self.parts)
    if not self.times:
      raise types.UserError('analysis.times is empty; name at least one time in [0, 1]')
    if len(set(self.time_grid)) < max(len(self.time_grid), 2):
      raise types.UserError(
        f'analysis.time_grid={self.time_grid} needs two different times or more'
      )

  @property
  def time(self) -> float:
    """The one time where a figure has place for one: the middle one of `times`."""
    return sorted(self.times)[len(self.times) // 2]
