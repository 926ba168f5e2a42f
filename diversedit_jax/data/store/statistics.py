"""Mean and standard deviation by channel of the latents that a model will see, from those stored.

Stored are moments, or latents of which nothing is drawn: then std = 0 below. With
z = mean + std * epsilon and x = (z - shift) * scale, over examples and positions,

  E[z] = E[mean],   Var[z] = Var[mean] + E[std^2]                                         (1)

For Stable Diffusion's latents of photographs, Std[x] is about 0.7 to 1 in every channel.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


class Statistics:
  """Sums in float64. count: number of positions added, over all examples."""

  def __init__(self):
    self.count, self._sums = 0, 0.0

  def add(self, x_NHWC: np.ndarray, *, drawn: bool = True) -> None:
    """Adds the [mean, std] of some examples, or latents that nothing is drawn of."""
    x_NHWC = x_NHWC.astype(np.float64)
    mean, std = np.split(x_NHWC, 2, axis=-1) if drawn else (x_NHWC, np.zeros(x_NHWC.shape))
    self._sums = self._sums + np.stack([x.sum((0, 1, 2)) for x in (mean, mean**2, std**2)])
    self.count += mean[..., 0].size

  def scaled(self, vae: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and standard deviations of x by (1); `vae` has 'scale' and 'shift', if any."""
    mean, square, noise = self._sums / self.count
    scale, shift = np.asarray(vae.get('scale', 1.0)), np.asarray(vae.get('shift', 0.0))
    std = np.sqrt(np.maximum(square - mean**2, 0) + noise)
    return tuple(((mean - shift) * scale).tolist()), tuple((std * scale).tolist())
