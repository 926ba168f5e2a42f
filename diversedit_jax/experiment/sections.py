"""The sections of a config that steer a run: what each key means and what it may be."""

import dataclasses
import re

from diversedit_jax import options, types
from diversedit_jax.methods import base, registry
from diversedit_jax.models import config as model_config
from diversedit_jax.models import sizes
from diversedit_jax.training import average, nonfinite, trackers

PRECISIONS = ('default', 'high', 'highest')


def _named(kind):
  return ', '.join(
    sorted(name for name, part in registry.METHODS.items() if issubclass(part, kind))
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class General(options.Section):
  """Keys without a section."""

  seed: int = options.option(
    0, at_least=0, below=2**32, doc='Decides parameters, order of the data, noise and times.'
  )
  method: str = options.option(
    'flow',
    doc=f"Parts joined by '+': one of {_named(base.Flow)} (flow is SiT, understood where none is "
    f'named), and any of {_named(base.Term)}; see docs/methods.md.',
  )
  init_from: str = options.option(
    '',
    path=True,
    doc='Weights from which a new run starts: a file that `convert` wrote, or a folder '
    'checkpoints/STEP, here or on the hub. A run that continues needs neither them nor this key.',
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VaeOptions(options.Section, section='vae', may_change=True):
  """The autoencoder that makes pictures of latents."""

  weights: str = options.option(
    '',
    path=True,
    doc='File or folder of the autoencoder that decodes samples, or hf://ORG/REPO; see '
    'docs/weights.md. Without it they stay latents.',
  )
  scale: float | tuple[float, ...] | None = options.option(
    None,
    above=0,
    doc="Scale of latents, or one per channel; None is the store's or the file's, 0.18215 for "
    "SD's.",
  )
  shift: float | tuple[float, ...] | None = options.option(
    None, doc="Shift of latents, or one per channel; None is the store's or the file's, 0 for SD's."
  )
  dtype: str = options.option(
    'float32', choices=model_config.DTYPES, doc='Type of its matrix products.'
  )
  tile: int = options.option(
    64,
    at_least=0,
    doc='Latents with a longer side than this, in latent pixels, are decoded in tiles; 0: never.',
  )

  def __post_init__(self):
    super().__post_init__()
    if self.tile == 1:
      raise types.UserError('vae.tile must be 0 or at least 2, got 1: tiles overlap')


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSize(options.Section, section='model', decides_network=True):
  """What the network is and how it is run."""

  size: str = options.option(
    'S/2',
    choices=('', *sizes.SIZES),
    doc="S, B, M, L or XL, /1, /2, /4 or /8; '' takes depth, width, heads and patch_size.",
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainOptions(options.Section, section='train'):
  """Length and statistics of training."""

  steps: int = options.option(
    400_000,
    at_least=1,
    may_change=True,
    doc='Updates; a run may change it where the learning rate does not follow from it.',
  )
  batch_size: int = options.option(256, at_least=1, doc='Examples of a step, over all devices.')
  accumulate: int = options.option(
    1,
    at_least=1,
    may_change=True,
    doc='Microbatches of a step; a run may change it where the loss is a mean over examples.',
  )
  label_dropout: float = options.option(
    0.1, at_least=0, below=1, doc='Probability of the null label, for guidance.'
  )
  ema_decay: float = options.option(
    0.9999, at_least=0, below=1, doc='Decay of the averaged parameters at each step.'
  )
  ema_warmup: bool = options.option(
    False,
    doc="Decays by (1 + n) / (10 + n) after n steps while that is less (TensorFlow's "
    'ExponentialMovingAverage), so that the average of a short run is not its random start.',
  )
  on_nonfinite: str = options.option(
    'stop',
    choices=nonfinite.POLICIES,
    may_change=True,
    doc='Where a loss or a gradient is not finite: stop; skip, which leaves out its update; or '
    'rollback, which goes back to the newest checkpoint and leaves it out; see docs/going_on.md.',
  )
  max_skipped: int = options.option(
    10, at_least=1, may_change=True, doc='Updates that a whole run may leave out so.'
  )
  averages: tuple[str, ...] = options.option(
    (),
    doc="Further averages that are kept: decays as '0.999', or widths of power functions as "
    "'std=0.05' (arXiv 2312.02696, section 3; two of these give all others afterwards); see "
    'docs/averages.md.',
  )

  def __post_init__(self):
    super().__post_init__()
    self.tracked()

  def tracked(self) -> list[average.Average]:
    """The further averages.

    Raises:
      UserError: a text that names none, or the same average twice.
    """
    found = [average.parse(text, 'train.averages') for text in self.averages]
    for i, one in enumerate(found):
      if one in (self.main(), *found[:i]):
        beside = ', which train.ema_decay makes' if one == self.main() else ' twice'
        raise types.UserError(f'train.averages={self.averages} has {one}{beside}: leave it out')
    return found

  def main(self) -> average.Decay:
    """The average that all else reads unless told otherwise."""
    return average.Decay(self.ema_decay)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshOptions(options.Section, section='mesh', may_change=True):
  """Devices per axis; one may be -1, which takes what is left."""

  data: int = options.option(-1, at_least=-1, doc='Devices that each have examples of their own.')
  fsdp: int = options.option(
    1, at_least=-1, doc='Devices that share one copy of the state; must divide the width.'
  )
  tensor: int = options.option(
    1,
    at_least=-1,
    doc='Devices that share each matrix product; must divide the heads and the width of the MLP.',
  )
  slices: int = options.option(
    -1,
    at_least=-1,
    doc='Groups of devices with a fast network of their own, over which data alone is split: -1 '
    'asks the TPUs, 1 is none, and other devices are grouped as told.',
  )

  def __post_init__(self):
    super().__post_init__()
    for name in ('data', 'fsdp', 'tensor', 'slices'):
      if getattr(self, name) == 0:
        raise types.UserError(f'mesh.{name} must be positive or -1, got 0')


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogOptions(options.Section, section='log', may_change=True):
  """What is recorded while training, in steps."""

  every: int = options.option(
    100, at_least=1, doc='Steps between console lines and rows of metrics.jsonl.'
  )
  telemetry_every: int = options.option(
    5_000,
    at_least=0,
    doc='Steps between L x L similarity matrices of the blocks, and sizes of their outputs and '
    'gradients; 0 is off.',
  )
  telemetry_examples: int = options.option(8, at_least=1, doc='Examples that these look at.')
  tensorboard: bool = options.option(True, doc='Writes TensorBoard events beside metrics.jsonl.')
  tracker: str = options.option(
    'none',
    choices=trackers.NAMES,
    doc='Shows the run in Weights & Biases or Trackio, too: offline, unless WANDB_MODE or '
    'TRACKIO_SPACE_ID say otherwise.',
  )
  spike: float = options.option(
    10.0,
    at_least=0,
    doc='Warns, with the examples, of a loss so many robust deviations above the median of the '
    'last 100; 0 is off.',
  )
  profile: str = options.option(
    '',
    doc="FIRST:LAST, the steps of which a trace for XProf is recorded, as '100:102'; '' is none.",
  )

  def __post_init__(self):
    super().__post_init__()
    if self.profile and not (self.profiled and 1 <= self.profiled[0] <= self.profiled[1]):
      raise types.UserError(
        f'log.profile={self.profile!r}, expected FIRST:LAST, the first and the last step of a '
        "trace, counted from 1, as '100:102'"
      )

  @property
  def profiled(self) -> tuple[int, int] | None:
    """The first and the last step of the trace; None without one."""
    found = re.fullmatch(r'(\d+):(\d+)', self.profile, re.ASCII)
    return found and (int(found[1]), int(found[2]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointOptions(options.Section, section='checkpoint', may_change=True):
  """When the state is saved and what is kept."""

  every: int = options.option(10_000, at_least=1, doc='Steps between checkpoints.')
  keep: int = options.option(3, at_least=1, doc='How many of the newest are kept.')
  keep_every: int = options.option(
    50_000, at_least=0, doc='Checkpoints of its multiples are kept for ever; 0 is off.'
  )


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreviewOptions(options.Section, section='preview', may_change=True):
  """Sample grids while training."""

  every: int = options.option(10_000, at_least=0, doc='Steps between sample grids; 0 is off.')
  rows: int = options.option(8, at_least=1, doc='Rows of a grid, one class each.')
  columns: int = options.option(8, at_least=1, doc='Samples of each class.')


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleOptions(options.Section, section='sample', may_change=True):
  """Which weights make how many samples of which labels, from which seed."""

  seed: int = options.option(0, at_least=0, below=2**32, doc='Decides noise and random labels.')
  batch_size: int = options.option(128, at_least=1, doc='Samples made at a time, of all devices.')
  weights: str = options.option(
    'ema',
    doc="ema (the average), params (without it), or another average: 'ema@0.999', 'ema@std=0.10'; "
    'see docs/averages.md.',
  )
  name: str = options.option(
    '',
    doc="Folder below samples/ for those of --mode=sample; '{step}' becomes the step, '{weights}' "
    'their name.',
  )
  number: int = options.option(64, at_least=1, doc='Samples of --mode=sample.')
  labels: str = options.option(
    'balanced', doc='balanced, random, the index of one class, or null: without a class.'
  )
  matmul_precision: str = options.option(
    'highest',
    choices=PRECISIONS,
    doc='Precision of float32 products while sampling and decoding (default is TF32 or bfloat16 on '
    'some devices, which moves FID); bfloat16 models are as they are.',
  )

  def __post_init__(self):
    super().__post_init__()
    average.chosen(self.weights, 'sample.weights')
    name = self.name.replace('{step}', '0').replace('{weights}', '0')
    if not re.fullmatch(r'([\w+=@-][\w.+=@-]*)?', name):
      raise types.UserError(
        f"sample.name={self.name!r} names a folder: letters, digits, '.+=@-_', '{{step}}' and "
        "'{weights}' only"
      )
