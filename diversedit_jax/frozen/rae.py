"""Latents of representation autoencoders (RAE, arXiv 2510.11690): tokens of a frozen encoder.

A picture becomes the patch tokens of an encoder whose last LayerNorm has no scale and bias, on
their grid, normalised by statistics of the training pictures, for each channel and position
[C, H, W] or for each channel [C, 1, 1]:

  (1)  z = (tokens - mean) / sqrt(var + 1e-5),     tokens = z sqrt(var + 1e-5) + mean

The authors' decoders (`rae_decoder`) were trained on tokens with noise, tokens + 0.8 u eps before
(1) with u uniform for each picture; latents that a diffusion model learns from have none.
"""

from collections.abc import Mapping
import dataclasses
import functools
import os
from typing import Any, Self

import jax
import numpy as np

from diversedit_jax import types
from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import family
from diversedit_jax.weights import array_files, location

NAME = 'rae'
EPSILON = 1e-5
PATCH = family.PIXELS_PER_PATCH
_FILES = ('stat.pt', 'stats.pt')


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Statistics:
  """Mean and deviation sqrt(var + 1e-5) of tokens, float32 [H, W, C] or [1, 1, C].

  file: the file they came from. sha256: digest of mean and variance; '' without statistics.
  """

  mean_HWC: np.ndarray
  std_HWC: np.ndarray
  file: str = ''
  sha256: str = ''

  @classmethod
  def of(cls, arrays: Mapping[str, np.ndarray], channels: int, file: str = '') -> Self:
    """Statistics of `mean` and `var` [C, H, W] or [C, 1, 1]; one that is absent is 0 or 1.

    Raises:
      UserError: they are something else.
    """
    found = {name: arrays[name].astype(np.float32) for name in ('mean', 'var') if name in arrays}
    fits = lambda x: x.ndim == 3 and len(x) == channels and np.isfinite(x).all()
    if not found or not all(map(fits, found.values())) or found.get('var', np.ones(1)).min() < 0:
      shapes = {name: x.shape for name, x in arrays.items()}
      raise types.UserError(
        f'expected statistics `mean` and `var` of shape ({channels}, H, W) or ({channels}, 1, 1), '
        f'finite and not negative; found {shapes}'
      )
    last = lambda name, other: np.moveaxis(found.get(name, np.float32([[[other]]])), 0, -1)
    return cls(
      mean_HWC=last('mean', 0),
      std_HWC=np.sqrt(last('var', 1) + np.float32(EPSILON)),
      file=file,
      sha256=array_files.digest(found.items()),
    )

  def over(self, shape: tuple[int, int, int]) -> dict[str, np.ndarray]:
    """'mean' and 'std', float32 of a shape (h, w, C).

    Raises:
      UserError: they are for another grid.
    """
    try:
      spread = {'mean': self.mean_HWC, 'std': self.std_HWC}
      return {name: np.array(np.broadcast_to(x, shape)) for name, x in spread.items()}
    except ValueError as error:
      raise types.UserError(
        f'the statistics are for {self.mean_HWC.shape} latents (rows, columns, channels), but the '
        f'encoder gives {shape}'
      ) from error


NONE = Statistics(mean_HWC=np.zeros((1, 1, 1), np.float32), std_HWC=np.ones((1, 1, 1), np.float32))
"""Those of latents that are tokens as they are."""


def statistics(path: str | os.PathLike[str], channels: int) -> Statistics:
  """Reads statistics of so many channels from a published file or its folder; '' is `NONE`.

  Raises:
    UserError: there is no such file, or it holds something else.
  """
  if not str(path):
    return NONE
  publisher = 'The authors publish them beside their decoders'
  path = array_files.find(path, _FILES, 'latents of an RAE need their statistics', publisher)
  try:
    return Statistics.of(array_files.load(path), channels, location.name(path))
  except types.UserError as error:
    raise types.UserError(f'{path}: {error}') from error


def normalise(p: Mapping[str, jax.Array], tokens_NHWC: jax.Array) -> jax.Array:
  """Tokens to latents by (1); p: `Statistics.over`."""
  return (tokens_NHWC - p['mean'][None]) / p['std'][None]


def denormalise(p: Mapping[str, jax.Array], z_NHWC: jax.Array) -> jax.Array:
  """Latents to tokens, the inverse of `normalise`."""
  return z_NHWC * p['std'][None] + p['mean'][None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
  """What makes latents of pixels; nothing is read before it is asked for.

  encoder: the frozen encoder, of the plain norm. grid: rows and columns of its tokens.
  file: file of the statistics, '' for none.
  """

  encoder: encoders.Encoder
  grid: tuple[int, int]
  file: str

  @property
  def shape(self) -> tuple[int, int, int]:
    """(h, w, C) of the latents."""
    return *self.grid, self.encoder.shapes().tokens.shape[-1]

  def tokenizer(self) -> encoders.Encoder:
    """The encoder whose tokens are latents, row-major, [N, T, C] float32."""
    one = {name: jax.ShapeDtypeStruct(self.shape, 'float32') for name in ('mean', 'std')}

    def apply(params: Any, x_NHWC: jax.Array) -> encoders.Features:
      tokens = self.encoder.apply(params['encoder'], x_NHWC).tokens
      z_NHWC = normalise(params['statistics'], tokens.reshape(-1, *self.shape))
      return encoders.Features(tokens=z_NHWC.reshape(tokens.shape), summary=None)

    def load():
      found = statistics(self.file, self.shape[-1])
      return {'encoder': self.encoder.load(), 'statistics': found.over(self.shape)}

    return encoders.Encoder(
      name=NAME,
      params={'encoder': self.encoder.params, 'statistics': one},
      apply=apply,
      load=load,
      file=self.encoder.file,
      image_shape=self.encoder.image_shape,
      flops=self.encoder.flops,
      request=self.encoder.request,
      makes_data=True,
    )

  def facts(self, whole: bool) -> dict[str, Any]:
    """What decides the latents: the encoder's name, and digests of its weights and the statistics.

    An encoder that is fitted to the data has no weights of its own.

    whole: whether weights that are not given are an error (UserError) or left out.
    """
    found = {'encoder': self.encoder.name, 'statistics_sha256': self._statistics_sha256}
    if self._reads_file and (whole or self.encoder.request.weights):
      found['encoder_sha256'] = self._encoder_sha256
    return found

  @functools.cached_property
  def _reads_file(self):
    try:
      return bool(self.encoder.file())
    except types.UserError:
      return True

  @functools.cached_property
  def _statistics_sha256(self):
    return statistics(self.file, self.shape[-1]).sha256

  @functools.cached_property
  def _encoder_sha256(self):
    request = dataclasses.replace(self.encoder.request, dtype='float32')
    exact = encoders.open_encoder(self.encoder.name, request)
    named = jax.tree_util.tree_leaves_with_path(exact.load())
    return array_files.digest((jax.tree_util.keystr(path), x) for path, x in named)


def open_latents(name: str, request: encoders.Request, file: str) -> Latents:
  """The latents of an encoder.

  Args:
    name: of the encoder. request: pixels and grid, see `encoders.Request`.
    file: file of the statistics, '' for none.

  Raises:
    UserError: the encoder is unknown, or does not take such pixels or such a grid.
  """
  request = dataclasses.replace(request, plain_norm=True)
  encoder = encoders.open_encoder(name, request)
  return Latents(encoder=encoder, grid=request.grid, file=file)
