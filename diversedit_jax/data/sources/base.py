"""What every source of examples is: facts, and any set of examples by their indices.

`gather` returns numpy arrays by fixed keys: 'labels' int32 [n], and

  'images'   pixels, uint8 or float32 in [-1, 1], [n, H, W, C]
  'latents'  scaled for the model, float16 or float32, [n, H, W, C]
  'moments'  mean and standard deviation of raw latents, [n, H, W, 2C]; sampled on the device
  'index'    int32 [n], of examples that lie on the device already (see `resident`)

one of the four, and 'pixels' uint8 [n, H, W, 3] beside latents for encoders.
"""

import hashlib
from typing import Any, Literal, Protocol

import numpy as np

from diversedit_jax.data import latents

Space = Literal['pixels', 'latents']
KEYS = {'pixels': 'images', 'latents': 'latents'}
SPLITS = ('train', 'test')


class Source(Protocol):
  """What the pipeline and the model's construction need to know about data.

  name: for messages and cards. space: what the model makes. shape: (H, W, C) of it.
  pixel_shape: (H, W, C) of the pixels, be they the data or beside them; None without any.
  scaling: of moments; None where latents are scaled already, or there are none.
  mirrors: whether `gather` can give mirror images. labels: of all examples, int32 [len].
  label_names: of all classes; () where they have none but numbers.
  """

  name: str
  space: Space
  shape: tuple[int, int, int]
  num_classes: int
  pixel_shape: tuple[int, int, int] | None
  scaling: latents.Scaling | None
  mirrors: bool
  labels: np.ndarray
  label_names: tuple[str, ...]

  def __len__(self) -> int: ...

  def digest(self) -> str:
    """SHA-256, in hex, that other data do not have; cheap, so arrays are looked at in places."""

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Examples at `indices` [n], each in [0, len); mirrored left to right where `flips` [n]."""


def check_indices(name: str, indices: np.ndarray, n: int) -> None:
  """Refuses what numpy would take from the end, or beyond it (IndexError)."""
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
