"""Noise as data, computed from the index, for benchmarks and dry runs."""

import dataclasses
import functools

import numpy as np

from diversedit_jax.data.sources import base
from diversedit_jax.types import UserError

# The sizes of ImageNet, so that an epoch of a synthetic run is as long as in the papers.
SIZE = {'train': 1_281_167, 'test': 50_000}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SyntheticSource(base.Source):
  """Standard Gaussian latents computed from the index: nothing to learn, nothing to store.

  Example i has label i mod num_classes and, with a `pixel_shape`, uniform noise as pixels.
  """

  name: str
  shape: tuple[int, int, int]
  num_classes: int
  n: int
  seed: int
  pixel_shape: tuple[int, int, int] | None = None
  space: base.Space = 'latents'
  scaling: None = None
  can_mirror: bool = False
  label_names: tuple[str, ...] = ()

  def __post_init__(self) -> None:
    shapes = [shape for shape in (self.shape, self.pixel_shape) if shape is not None]
    fits = all(len(shape) == 3 and min(shape) >= 1 for shape in shapes)
    if not fits or self.num_classes < 1 or self.n < 1:
      raise UserError(
        'a synthetic source needs a shape of three positive sizes (H, W, C), num_classes >= 1 and '
        f'n >= 1; got shapes {shapes}, num_classes={self.num_classes}, n={self.n}'
      )
    if not 0 <= self.seed < 2**63:
      raise UserError(f'the seed of a synthetic source must lie in [0, 2**63); got {self.seed}')

  def __len__(self) -> int:
    return self.n

  @functools.cached_property
  def labels(self) -> np.ndarray:
    """Labels of all examples, int32 [len]."""
    return (np.arange(self.n) % self.num_classes).astype(np.int32)

  def digest(self) -> str:
    """SHA-256 of the facts that decide the noise."""
    return base.digest_of(self.shape, self.pixel_shape, self.num_classes, self.n, self.seed)

  def gather(self, indices: np.ndarray, flips: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """See `base.Source`; noise has no mirror images."""
    if flips is not None:
      raise ValueError(f'{self.name} cannot be mirrored')
    base.check_indices(self.name, indices, len(self))
    x_NHWC = np.empty((len(indices), *self.shape), np.float32)
    beside = {}
    if self.pixel_shape is not None:
      beside['pixels'] = np.empty((len(indices), *self.pixel_shape), np.uint8)
    for i, index in enumerate(indices):
      # The counter's high words name the example; its low words count within the example.
      generator = np.random.Generator(
        np.random.Philox(key=self.seed, counter=[0, 0, 0, int(index)])
      )
      generator.standard_normal(dtype=np.float32, out=x_NHWC[i])
      for pixels in beside.values():
        pixels[i] = generator.integers(0, 256, self.pixel_shape, np.uint8)
    return {'latents': x_NHWC, 'labels': (indices % self.num_classes).astype(np.int32), **beside}


def synthetic(
  shape: tuple[int, int, int],
  num_classes: int,
  n: int,
  seed: int,
  pixel_shape: tuple[int, int, int] | None = None,
) -> SyntheticSource:
  """A source of Gaussian latents [n, *shape]; see `SyntheticSource`."""
  name = f'synthetic/{"x".join(map(str, shape))}'
  return SyntheticSource(
    name=name, shape=tuple(shape), num_classes=num_classes, n=n, seed=seed, pixel_shape=pixel_shape
  )


def parse(spec: str, split: str, *, pixels: bool = True) -> SyntheticSource:
  """The source of a spec 'synthetic:HxWxC[+HxWxC]:CLASSES[:N]'; see `opening.open_source`.

  Raises:
    UserError: the spec is malformed.
  """
  try:
    shape, *numbers = spec.partition(':')[2].split(':')
    shape, *pixel_shapes = (tuple(int(n) for n in s.split('x')) for s in shape.split('+'))
    (height, width, channels), (pixel_shape,) = shape, pixel_shapes or [None]
    num_classes, n = (int(x) for x in (numbers if len(numbers) > 1 else [*numbers, '0']))
  except ValueError as error:
    raise UserError(
      f"data {spec!r} is malformed; expected 'synthetic:HxWxC:CLASSES' or "
      "'synthetic:HxWxC:CLASSES:N', as in synthetic:32x32x4:1000"
    ) from error
  n = n if len(numbers) > 1 else SIZE[split]
  shape, seed = (height, width, channels), base.SPLITS.index(split)
  return synthetic(shape, num_classes, n, seed, pixel_shape if pixels else None)


def _open(request: base.Request) -> SyntheticSource:
  return parse(request.spec, request.split, pixels=request.pixels)


base.register('synthetic', _open)
