"""Types that every floor shares, and the legend of the letters in array names.

An array's name ends with its shape: `x_NHWC`, `f_LNTD`. The letters are

  N  examples of the batch        H, W  rows and columns of an image or latent
  C  channels                     P     patch size
  T  tokens, (H/P)(W/P)           D     width of the transformer
  L  blocks (depth)               K     classes; label K is the null label
  G  groups of the batch          S     sampler steps
  Z  width of an encoder's features

Time t runs from 0 (data) to 1 (noise); h = t - r is the length of an interval [r, t]. Pixels lie
in [-1, 1].
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

Batch = Mapping[str, jax.Array]
"""Arrays of one step, with `labels` [N] int32 beside one of

  images   [N, H, W, C], uint8 or float32 in [-1, 1]
  latents  [N, H, W, C] float32, scaled
  moments  [N, H, W, 2C], mean and standard deviation of raw latents

Beside latents or moments there may be `pixels` [N, H, W, 3] uint8, and after the frozen encoders
have run, 'ENCODER/tokens' [N, T, Z] and what else they give, as 'ENCODER/summary' [N, Z].
"""


class UserError(ValueError):
  """Something the user asked for is impossible; the message alone tells what to change."""


class Output(NamedTuple):
  """What a network returns from one forward pass.

  pred: prediction [N, H, W, C] float32, of the kind that the flow trains; None if it is not told.
  features: what the tap collected from the block outputs, in depth order; None without a tap.
  class_token: prediction [N, Z] float32 for the class token; None in a model without one.
  base: prediction like `pred` of an earlier block; None in a model without such a head.
  """

  pred: jax.Array | None
  features: Any = None
  class_token: jax.Array | None = None
  base: jax.Array | None = None


def check(name: str, array: Any, shape: str, **sizes: int) -> None:
  """Refuses an array whose rank or sizes differ from the letters of `shape`.

  `check('x', x, 'N H W C', C=4)` demands four axes, the last of size 4. A letter that occurs twice
  must have the same size twice.

  Raises:
    ValueError: naming the array, what was found and what was expected.
  """
  letters = shape.split()
  found = tuple(array.shape)
  bound = dict(sizes)
  fits = len(found) == len(letters) and all(
    bound.setdefault(letter, size) == size for letter, size in zip(letters, found, strict=True)
  )
  if not fits:
    expected = ', '.join(f'{x}={sizes[x]}' if x in sizes else x for x in letters)
    raise ValueError(f'{name} has shape {found}, expected ({expected})')
