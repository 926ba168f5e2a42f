"""What every source of examples is: facts, and any set of examples by their indices.

`gather` returns numpy arrays by fixed keys: 'labels' int32 [n], and

  'images'   pixels, uint8 or float32 in [-1, 1], [n, H, W, C]
  'latents'  scaled for the model, float16 or float32, [n, H, W, C]
  'moments'  mean and standard deviation of raw latents, [n, H, W, 2C]; sampled on the device
  'index'    int32 [n], of examples that lie on the device already (see `resident`)

one of the four, and 'pixels' uint8 [n, H, W, 3] beside latents for encoders; or 'pixels' alone, of
which a tokenizer makes latents in the step (`encoded`).
"""

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
from typing import Any, Literal, Protocol

import numpy as np

from diversedit_jax import types
from diversedit_jax.data import latents

Space = Literal['pixels', 'latents']
KEYS = {'pixels': 'images', 'latents': 'latents'}
SPLITS = ('train', 'test')


class Source(Protocol):
  """What the pipeline, the model's construction and evaluation need to know about data.

  name: name for messages and cards.
  space: what the model makes.
  shape: (H, W, C) of what the model makes.
  num_classes: number of classes.
  pixel_shape: (H, W, C) of the pixels, which are the data or lie beside them; None without any.
  scaling: what an autoencoder's latents are scaled by: moments as they are drawn, latents already;
    None for others.
  can_mirror: whether `gather` can give mirror images.
  labels: labels of all examples, int32 [len].
  label_names: names of all classes; () if they only have numbers.
  tokenizer: the frozen encoder that makes latents of 'pixels' in the step; None where there are
    latents.
  options: config keys of the section `data` that say how these examples are made, such as 'crop'.
  reads_files: whether examples are read as they are asked for, so that worker processes help.
  decodes: whether examples are decoded as they are asked for, so that a bad one shows only then.
  """

  name: str
  space: Space
  shape: tuple[int, int, int]
  num_classes: int
  pixel_shape: tuple[int, int, int] | None
  scaling: latents.Scaling | None
  can_mirror: bool
  labels: np.ndarray
  label_names: tuple[str, ...]
  tokenizer: Any = None
  options: tuple[str, ...] = ()
  reads_files: bool = False
  decodes: bool = False

  def __len__(self) -> int: ...

  def digest(self) -> str:
    """SHA-256, in hex, that other data do not have; cheap, so arrays are looked at in places."""

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Examples at `indices` [n], each in [0, len); mirrored left to right where `flips` [n].

    Raises:
      BadExample: an example turns out to be bad.
    """

  def fetch(self) -> None:
    """Copies the examples to a disk of this host where `data.cache` asks for it; else nothing.

    Raises:
      UserError: they cannot be copied.
    """

  def name_of(self, index: int) -> str:
    """What an example is called where it comes from, a file say; '' if it has no name."""
    del index
    return ''

  def mirrored_latents(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    """Latents that were encoded from mirror images, by key; {} if pixels are mirrored instead."""
    del indices
    return {}

  def pixels_digest(self) -> str:
    """SHA-256, in hex, of the pixels as `gather` gives them, so that it tells crops apart."""
    return self.digest()

  def latent_facts(self) -> dict[str, Any] | None:
    """What raw latents mean: their encoder, and scale and shift by channel; None if unknown."""
    return None

  def preparation(self) -> dict[str, str]:
    """How the examples were prepared, in words; {} if nothing is known about it."""
    return {}

  def check_encoder(self, file: str, encoder_sha256: str) -> None:
    """Refuses an encoder that did not make the latents; decoders may differ (UserError)."""


class Wrapped:
  """A source around another: whatever it does not do itself, the one that it holds does."""

  def __init__(self, of: Source):
    self.of = of

  def __len__(self) -> int:
    return len(self.of)

  def __getattr__(self, name: str):
    if name.startswith('_') or name == 'of':
      raise AttributeError(name)
    return getattr(self.of, name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """What a config asks of a source.

  spec: the whole name, 'KIND:REST'. rest: what follows the colon. split: 'train' or 'test'.
  num_classes, classes, labels, size, crop, orientation: see `opening.open_source`; None leaves it
    open.
  pixels: whether pixels that lie beside latents are read.
  cache: folder on a disk of this host for copies of stores; None for none.
  """

  spec: str
  rest: str
  split: str
  num_classes: int | None = None
  classes: str | Sequence[str] | None = None
  labels: str | None = None
  size: int | None = None
  crop: str | None = None
  orientation: str | None = None
  pixels: bool = True
  cache: str | None = None

  def path(self) -> str:
    """The path in `rest`, '{split}' filled in.

    Raises:
      UserError: the path names one split, and another than the train split is asked for.
    """
    if '{split}' not in self.rest and self.split != 'train':
      kind = self.spec.partition(':')[0]
      raise types.UserError(
        f'data {self.spec!r} names one split, which is the train split; for the {self.split!r} '
        f"split write '{{split}}' in the path, as in '{kind}:FOLDER/{{split}}'"
      )
    return self.rest.replace('{split}', self.split)


Open = Callable[[Request], Source]
KINDS: dict[str, Open] = {}
"""What opens a source, by the kind that its name begins with."""


def register(kind: str, open_source: Open) -> None:
  """Makes a kind of source known, as in `data.source=KIND:REST`.

  Raises:
    ValueError: if the kind is taken.
  """
  if KINDS.setdefault(kind, open_source) is not open_source:
    raise ValueError(f'a data source {kind!r} exists already')


class BadExample(types.UserError):
  """An example that cannot be used. reason: its name and what is wrong with it."""

  def __init__(self, source: str, reason: str, advice: str):
    super().__init__(f'{source}: {reason}; {advice}')
    self.reason = reason


def check_indices(name: str, indices: np.ndarray, n: int) -> None:
  """Refuses indices that numpy would count from the end, or that lie beyond it (IndexError)."""
  if len(indices) and not (np.min(indices) >= 0 and np.max(indices) < n):
    raise IndexError(
      f'{name} has {n} examples; got indices from {np.min(indices)} to {np.max(indices)}'
    )


def mirrored(x_NHWC: np.ndarray, flips: np.ndarray | None) -> np.ndarray:
  """The array itself, its rows mirrored left to right in place where `flips` [N]."""
  if flips is not None:
    x_NHWC[flips] = x_NHWC[flips][:, :, ::-1]
  return x_NHWC


def digest_of(*parts: Any) -> str:
  """SHA-256 in hex of arrays and of the text of everything else."""
  hashed = hashlib.sha256()
  for part in parts:
    if isinstance(part, np.ndarray):
      hashed.update(f'{part.dtype.str} {part.shape}\n'.encode())
      hashed.update(np.ascontiguousarray(part).tobytes())
    else:
      hashed.update(f'{part}\n'.encode())
  return hashed.hexdigest()
