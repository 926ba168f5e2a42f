"""FDr6 (arXiv 2604.28190): Fréchet distances of six networks, each against that of real pictures.

  FDr_X = FD_X(samples, training set) / FD_X(validation set, training set)            (1)
  FDr6 = mean of FDr_X over X in {Inception, ConvNeXt, DINOv2, MAE, SigLIP 2, CLIP}   (2)

The denominators are published, for ImageNet at 256 pixels, to two places. A mean over fewer
networks is `fdr_partial`, never FDr6. The released evaluator runs all but Inception in bfloat16;
here they run in float32.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

from diversedit_jax import options as options_lib
from diversedit_jax import paths, trees
from diversedit_jax.evaluation import feature_network, picture_metrics, representations
from diversedit_jax.types import UserError

# Divisors of FD-loss 5c03b81, eval_all_fds.py; that of 'inception' is against ADM's statistics.
PUBLISHED = {
  'inception': 1.68,
  'convnext': 56.87,
  'dinov2': 14.19,
  'mae': 0.04,
  'siglip': 0.60,
  'clip': 5.60,
}
PUBLISHED_SIDE, PUBLISHED_IMAGES = 256, 1_281_167  # Pictures of ImageNet's training split.
ALL, INCEPTION, CMMD_PREFIX = 'all', 'inception', 'cmmd'
_WHERE = 'https://huggingface.co/jjiaweiyang/FD-Loss'


@dataclasses.dataclass(frozen=True, kw_only=True)
class PanelOptions(options_lib.Section, section='eval', may_change=True):
  """Distances by several networks beside those of Inception and `eval.encoder`."""

  fdr: tuple[str, ...] = options_lib.option(
    (),
    doc='Networks of FDr6 (2604.28190): all, or some of inception, convnext, dinov2, mae, siglip, '
    'clip.',
  )
  fdr_weights: str = options_lib.option(
    '', path=True, doc='Folder with the official weights of eval.fdr, but for Inception.'
  )
  fdr_reference: str = options_lib.option(
    '',
    path=True,
    doc='Folder with statistics of eval.fdr, published or by --mode=stats, but for Inception; '
    "'' takes eval.reference's pictures.",
  )
  fdr_real: str = options_lib.option(
    '',
    path=True,
    doc="Scores of real pictures (JSON) to divide by; '' takes the published ones of ImageNet.",
  )
  cmmd: str = options_lib.option(
    '', path=True, doc='Weights of CLIP ViT-L/14 at 336 pixels, or their folder, for CMMD.'
  )
  cmmd_reference: str = options_lib.option(
    '', path=True, doc="As eval.encoder_reference, for CMMD; '' takes eval.reference's pictures."
  )

  def __post_init__(self):
    super().__post_init__()
    for name in self.fdr:
      if name != ALL:
        trees.check_known('eval.fdr', name, PUBLISHED)
    if len(set(self.fdr)) < len(self.fdr) or (ALL in self.fdr and len(self.fdr) > 1):
      raise UserError(f'eval.fdr={",".join(self.fdr)} names a network twice')
    beside = set(self.networks) - {INCEPTION}
    if beside and not self.fdr_weights:
      raise UserError(f'eval.fdr={",".join(self.fdr)} needs eval.fdr_weights=FOLDER')
    for name in ('fdr_weights', 'fdr_reference'):
      if getattr(self, name) and not beside:
        raise UserError(
          f'eval.{name}={getattr(self, name)!r} is for eval.fdr with another network than inception'
        )
    if self.fdr_real and not self.fdr:
      raise UserError(f'eval.fdr_real={self.fdr_real!r} is for eval.fdr')
    if self.cmmd_reference and not self.cmmd:
      raise UserError(f'eval.cmmd_reference={self.cmmd_reference!r} is for eval.cmmd')

  @property
  def networks(self) -> tuple[str, ...]:
    """The networks of `fdr`, in the order of the paper's table."""
    return tuple(name for name in PUBLISHED if name in self.fdr or ALL in self.fdr)

  def panel(self) -> 'PanelOptions':
    """These options alone."""
    names = [field.name for field in dataclasses.fields(PanelOptions)]
    return PanelOptions(**{name: getattr(self, name) for name in names})


def open_networks(options: PanelOptions) -> dict[str, feature_network.FeatureNetwork]:
  """The networks but Inception, by the prefix of their scores.

  Raises:
    UserError: weights that are missing, which are named with their place, or that are others'.
  """
  found = {
    prefix_of(name): representations.open_representation(name, options.fdr_weights)
    for name in options.networks
    if name != INCEPTION
  }
  if options.cmmd:
    found[CMMD_PREFIX] = representations.open_cmmd(options.cmmd)
  return found


def prefix_of(name: str) -> str:
  """Beginning of the names of a network's scores; Inception's have none."""
  return '' if name == INCEPTION else f'{name}_'


def key_of(prefix: str) -> str:
  """The config key of a network, by the prefix of its scores."""
  if prefix == CMMD_PREFIX:
    return 'eval.cmmd'
  return 'eval.fdr' if prefix.removesuffix('_') in PUBLISHED else 'eval.encoder'


def reference_of(
  options: PanelOptions, prefix: str, network: feature_network.FeatureNetwork
) -> str:
  """What the options name for a network to compare with, '' for nothing.

  Raises:
    UserError: the folder of statistics has none of the network.
  """
  if prefix == CMMD_PREFIX:
    return options.cmmd_reference
  name = prefix.removesuffix('_')
  if name not in options.networks or not options.fdr_reference:
    return ''
  folder = paths.path(options.fdr_reference)
  published = representations.REPRESENTATIONS[name].statistics
  own = sorted(folder.glob(f'*-{network.name}-{network.sha256[:8]}.npz'))
  if len(own) > 1:
    raise UserError(
      f'eval.fdr_reference={options.fdr_reference!r} holds several statistics by {network.name}: '
      f'{", ".join(path.name for path in own)}; leave one'
    )
  if own or (folder / published).is_file():
    return str(own[0] if own else folder / published)
  raise UserError(
    f'eval.fdr_reference={options.fdr_reference!r} holds neither {published}, which is in the data '
    f'published at {_WHERE} (there unpack paper_ref_stats.pkl, by their script), nor what '
    f'--mode=stats with eval.fdr={name} and these weights writes'
  )


class Ratios:
  """The ratios (1) and their mean (2), of the distances that were found."""

  def __init__(
    self, options: PanelOptions, metrics: Mapping[str, picture_metrics.PictureMetrics], side: int
  ):
    """Reads the distances of real pictures, if a file is given.

    Args:
      options: which networks.
      metrics: by prefix of the names of their scores.
      side: pixels of the pictures.

    Raises:
      UserError: a file of scores without one of the distances, or with one to another reference.
    """
    self._names, self._side = options.networks, side
    self._metrics = {name: metrics[prefix_of(name)] for name in self._names}
    for name, one in self._metrics.items():
      if 'fid' not in one.names:
        raise UserError(
          f'eval.fdr={",".join(self._names)} needs a Fréchet distance by {name}, and '
          f'{one.reference.name} holds neither its statistics nor pictures'
        )
    self._given = options.fdr_real
    self._real = self._read() if self._given else {k: PUBLISHED[k] for k in self._names}

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the scores."""
    if not self._names:
      return ()
    return (*(f'fdr_{name}' for name in self._names), self._mean)

  @property
  def _mean(self) -> str:
    return 'fdr6' if len(self._names) == len(PUBLISHED) else 'fdr_partial'

  def facts(self) -> dict[str, Any]:
    """What the ratios are to, for the protocol card; {} without any."""
    if not self._names:
      return {}
    of = pathlib.Path(self._given).name if self._given else 'published, ImageNet at 256 pixels'
    return {'fdr': {'real': self._real, 'of': of}}

  def add(self, found: dict[str, Any]) -> dict[str, Any]:
    """What `picture_metrics.score` gave, with the ratios and what makes them doubtful."""
    if not self._names:
      return found
    scores = found['scores']
    ratios = {
      f'fdr_{name}': scores[f'{prefix_of(name)}fid'] / self._real[name] for name in self._names
    }
    ratios[self._mean] = sum(ratios.values()) / len(ratios)
    return found | {'scores': scores | ratios, 'warnings': found['warnings'] + self._warnings()}

  def _warnings(self):
    found = []
    if self._mean == 'fdr_partial':
      found.append(f'fdr_partial is the mean over {", ".join(self._names)}; FDr6 is over all six')
    if not self._given:
      if self._side != PUBLISHED_SIDE:
        found.append(
          f'FDr divides by distances of ImageNet at {PUBLISHED_SIDE} pixels, and the pictures have '
          f'{self._side}; eval.fdr_real=FILE divides by scores of real pictures'
        )
      # Published statistics do not say of how many pictures they are.
      counts = {one.reference_facts()['images'] for one in self._metrics.values()}
      if others := sorted(counts - {None, PUBLISHED_IMAGES}):
        found.append(
          f'FDr divides by distances to the {PUBLISHED_IMAGES:,} pictures that ImageNet is trained '
          f'with, and the reference has {", ".join(map(str, others))}; eval.fdr_real=FILE divides '
          'by scores of real pictures against the same reference'
        )
    return found

  def _read(self) -> dict[str, float]:
    path = paths.path(self._given)
    try:
      content = json.loads(path.read_text())
      scores, references = content['scores'], content['references']
    except (OSError, ValueError, TypeError, KeyError) as error:
      raise UserError(
        f'eval.fdr_real={self._given!r} is no file of scores that evaluate_npz wrote: {error}'
      ) from error
    found = {}
    for name, one in self._metrics.items():
      key = f'{prefix_of(name)}fid'
      if not isinstance(scores.get(key), float) or scores[key] <= 0:
        raise UserError(
          f'eval.fdr_real={self._given!r} needs {key}, a number above 0, got {scores.get(key)!r}: '
          f'score the real pictures by evaluate_npz with --fdr={",".join(self._names)}'
        )
      theirs = references.get(one.network.name, {}).get('sha256')
      if theirs != one.reference.sha256:
        raise UserError(
          f'eval.fdr_real={self._given!r} has {key} to a reference with SHA-256 {theirs}, expected '
          f'{one.reference.sha256}, that of {one.reference.name}'
        )
      found[name] = scores[key]
    return found
