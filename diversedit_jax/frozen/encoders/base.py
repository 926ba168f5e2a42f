"""Frozen encoders by name: a pure function from pixels to features, and the weights it needs.

An encoder is opened with shapes only, so that a run can be planned and traced without its weights;
`load` reads or fits them. Its parameters travel through the training step as an argument, never as
constants of the program. To add one, register what makes it:

  base.register('mine', make)      make(base.Request) -> base.Encoder
"""

from collections.abc import Callable, Mapping
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
  queries, keys: of the patches in the attention of each block that was asked for, [N, T, H, d] in
    the dtype of the products, by the number of the block.
  """

  tokens: jax.Array
  summary: jax.Array | None
  queries: Mapping[int, jax.Array] = {}
  keys: Mapping[int, jax.Array] = {}

  def named(self) -> dict[str, jax.Array]:
    """What there is by name: 'tokens', 'summary', 'queries/BLOCK', 'keys/BLOCK'."""
    found = {'tokens': self.tokens, 'summary': self.summary}
    found |= {f'queries/{block}': x for block, x in self.queries.items()}
    found |= {f'keys/{block}': x for block, x in self.keys.items()}
    return {name: x for name, x in found.items() if x is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
  """The circumstances for which an encoder is made.

  source: the training split.
  grid: rows and columns of the model's patches.
  image_shape: shape (H, W, C) of the pixels.
  weights: folder or file with pretrained weights, '' if none was given.
  dtype: dtype of the encoder's matrix products.
  key: config key that gives `weights`, for messages; '' for none.
  attention: blocks, counted from 1, whose queries and keys are wanted beside the tokens.
  plain_norm: whether tokens of transformers end in a LayerNorm without scale and bias, as RAE's,
    whatever their features are otherwise.
  """

  source: sources.Source
  grid: tuple[int, int]
  image_shape: tuple[int, int, int]
  weights: str = ''
  dtype: str = 'float32'
  key: str = ''
  attention: tuple[int, ...] = ()
  plain_norm: bool = False

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
  blocks: number of blocks whose attention can be asked for; 0 if it shows none.
  request: what it was made for; `open_encoder` sets it.
  makes_data: whether its tokens, on their grid, are the latents that the model learns to make.
  """

  name: str
  params: Any
  apply: Callable[[Any, jax.Array], Features]
  load: Callable[[], Any]
  image_shape: tuple[int, int, int]
  flops: float
  file: Callable[[], str] = lambda: ''
  blocks: int = 0
  request: Request | None = dataclasses.field(default=None, repr=False)
  makes_data: bool = False

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
    UserError: the name is unknown, the encoder cannot take such pixels or such a grid, or it has
      not the attention that is asked for.
  """
  if name not in _ENCODERS:
    raise types.UserError(f'no encoder {name!r}{trees.did_you_mean(name, _ENCODERS)}')
  encoder = dataclasses.replace(_ENCODERS[name](request), request=request)
  if request.attention and not encoder.blocks:
    raise types.UserError(
      f"encoder {name!r} has no attention to look at; take a transformer, as 'dinov2-vit-b'"
    )
  if absent := [block for block in request.attention if not 1 <= block <= encoder.blocks]:
    raise types.UserError(
      f'encoder {name!r} has blocks 1 to {encoder.blocks}, and the attention of block {absent[0]} '
      'is asked for'
    )
  rows, cols = request.grid
  found = encoder.shapes().tokens.shape[1]
  if found != rows * cols:
    raise types.UserError(
      f'encoder {name!r} gives {found} tokens, but the model has {rows}x{cols} patches'
    )
  return encoder


def joined(a: Encoder, b: Encoder) -> Encoder:
  """One encoder that gives what two of the same name give, so that it runs once."""
  if a.request is None or b.request is None or a.request.attention == b.request.attention:
    return a
  blocks = tuple(sorted({*a.request.attention, *b.request.attention}))
  return open_encoder(a.name, dataclasses.replace(a.request, attention=blocks))
