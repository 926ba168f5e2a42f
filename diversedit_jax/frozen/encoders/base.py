"""Frozen encoders by name: a pure function from pixels to features, and the weights it needs.

An encoder is opened with shapes only, so that a run can be planned and traced without its weights;
`load` reads or fits them. Its parameters travel through the training step as an argument, never as
constants of the program. To add one, register what makes it:

  base.register('mine', make)      make(base.Request) -> base.Encoder
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax

from diversedit_jax import trees, types
from diversedit_jax.data import sources


class Features(NamedTuple):
  """The features of images.

  tokens: one feature per patch of the model, row-major, [N, T, Z] float32.
  summary: the feature of the whole image (a class token), [N, Z] float32; None if the encoder has
    none.
  """

  tokens: jax.Array
  summary: jax.Array | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """The circumstances for which an encoder is made.

  source: the training split.
  grid: rows and columns of the model's patches.
  image_shape: shape (H, W, C) of the pixels.
  weights: folder or file with pretrained weights, '' if none was given.
  dtype: dtype of the encoder's matrix products.
  key: config key that gives `weights`, for messages; '' for none.
  """

  source: sources.Source
  grid: tuple[int, int]
  image_shape: tuple[int, int, int]
  weights: str = ''
  dtype: str = 'float32'
  key: str = ''

  def blamed(self, act: Callable[[], Any]) -> Any:
    """What a function gives; the key of the weights begins the message of its UserError."""
    try:
      return act()
    except types.UserError as error:
      prefix = f'{self.key}={self.weights!r}: ' if self.key else ''
      raise types.UserError(f'{prefix}{error}') from error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoder:
  """A frozen function of pixels.

  name: the registered name.
  params: the parameters as jax.ShapeDtypeStruct.
  apply: pure function (params, pixels_NHWC in [-1, 1] float32) -> Features.
  load: function () -> params as arrays; raises UserError if its file is missing.
  file: function () -> name of the file that `load` reads, '' if it reads none; raises as `load`.
  image_shape: shape (H, W, C) of the pixels.
  flops: cost of one image, a multiply-add being 2.
  """

  name: str
  params: Any
  apply: Callable[[Any, jax.Array], Features]
  load: Callable[[], Any]
  image_shape: tuple[int, int, int]
  flops: float
  file: Callable[[], str] = lambda: ''

  def shapes(self) -> Features:
    """Shapes of the features of one image, [1, T, Z] and [1, Z] or None."""
    pixels = jax.ShapeDtypeStruct((1, *self.image_shape), 'float32')
    return jax.eval_shape(self.apply, self.params, pixels)


Make = Callable[[Request], Encoder]
_ENCODERS: dict[str, Make] = {}


def register(name: str, make: Make) -> None:
  """Makes an encoder known by name.

  Raises:
    ValueError: another function has the name, or it has a character that a config reserves.
  """
  if not name or set(name) & set('@+,: '):
    raise ValueError(f'an encoder cannot be called {name!r}: @ + , : and spaces are reserved')
  if _ENCODERS.setdefault(name, make) is not make:
    raise ValueError(f'an encoder {name!r} exists already')


def open_encoder(name: str, request: Request) -> Encoder:
  """The encoder with a registered name; its weights are not read yet.

  Raises:
    UserError: the name is unknown, or the encoder cannot take such pixels or such a grid.
  """
  if name not in _ENCODERS:
    raise types.UserError(f'no encoder {name!r}{trees.did_you_mean(name, _ENCODERS)}')
  encoder = _ENCODERS[name](request)
  rows, cols = request.grid
  found = encoder.shapes().tokens.shape[1]
  if found != rows * cols:
    raise types.UserError(
      f'encoder {name!r} gives {found} tokens, but the model has {rows}x{cols} patches'
    )
  return encoder
