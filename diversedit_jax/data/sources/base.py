"""What every source of examples is: facts, and any set of examples by their indices.

`gather` returns numpy arrays by fixed keys: 'labels' int32 [n], and

  'images'   pixels, uint8 or float32 in [-1, 1], [n, H, W, C]
  'latents'  scaled for the model, float16 or float32, [n, H, W, C]
  'moments'  mean and standard deviation of raw latents, [n, H, W, 2C]; sampled on the device
  'index'    int32 [n], of examples that lie on the device already (see `resident`)

one of the four, and 'pixels' uint8 [n, H, W, 3] beside latents for encoders.
"""

from typing import Literal, Protocol

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
  """

  name: str
  space: Space
  shape: tuple[int, int, int]
  num_classes: int
  pixel_shape: tuple[int, int, int] | None
  scaling: latents.Scaling | None
  mirrors: bool
  labels: np.ndarray

  def __len__(self) -> int: ...

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Examples at `indices` [n], each in [0, len); mirrored left to right where `flips` [n]."""


def check_indices(name: str, indices: np.ndarray, n: int) -> None:
  """Refuses what numpy would take from the end, or beyond it (IndexError)."""
  if len(indices) and not (np.min(indices) >= 0 and np.max(indices) < n):
    raise IndexError(
      f'{name} has {n} examples; got indices from {np.min(indices)} to {np.max(indices)}'
    )


def mirrored(x_NHWC: np.ndarray, flips: np.ndarray | None) -> np.ndarray:
  """Rows mirrored left to right where `flips` [N]."""
  if flips is None or not flips.any():
    return x_NHWC
  return np.where(flips.reshape(-1, 1, 1, 1), x_NHWC[:, :, ::-1], x_NHWC)
