"""Preprocessing of pixels for encoders, as in REPA: normalisation and two kinds of bicubic resize.

REPA (arXiv 2410.06940, `preprocess_raw_image`) resizes pixels as PyTorch's `interpolate` does
without antialiasing: Keys' cubic with a = -0.75, four taps also when shrinking, half-pixel centres,
indices clamped at the border, values not clipped. Position tables are resized as timm does, with
antialiasing: a = -0.5, the cubic stretched when shrinking, weights renormalised at the border. Both
are separable, hence two small matrix products. Networks of scores have pixels with antialiasing, of
real numbers (PyTorch) or of bytes (Pillow).
"""

import jax
import jax.numpy as jnp
import numpy as np

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def imagenet(x_NHWC: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Pixels in [-1, 1], normalised, then resized to (height, width); for all encoders but CLIP."""
  return resize(normalise(x_NHWC), *size)


def clip(x_NHWC: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Pixels in [-1, 1], resized, then normalised with CLIP's own constants; for CLIP.

  Resizing [-1, 1] instead of [0, 1] makes no difference, as the weights of a pixel sum to one.
  """
  return normalise(resize(x_NHWC, *size), CLIP_MEAN, CLIP_STD)


def normalise(
  x_NHWC: jax.Array, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
) -> jax.Array:
  """Maps pixels from [-1, 1] to [0, 1] and then to (x - mean) / std per channel."""
  mean_C, std_C = (np.asarray(v, x_NHWC.dtype)[None, None, None] for v in (mean, std))
  return ((x_NHWC + 1) / 2 - mean_C) / std_C


def resize(x_NHWC: jax.Array, height: int, width: int) -> jax.Array:
  """Resizes to [N, height, width, C], bicubic, without antialiasing; equal sizes stay unchanged.

  Products have full float32 precision whatever the default is: rounding would show in the pixels.
  """
  return _resized(x_NHWC, height, width, clamped_weights)


def antialiased(x_NHWC: jax.Array, height: int, width: int) -> jax.Array:
  """Resizes as `resize`, but with antialiasing: PyTorch's `interpolate(..., antialias=True)`."""
  return _resized(x_NHWC, height, width, antialiased_weights)


def as_pillow(x_NHWC: jax.Array, side: int) -> jax.Array:
  """Resizes uint8 to [N, side, side, C] by Pillow's BICUBIC, to the same bytes.

  Pillow rounds weights to 22 bits after the point, sums whole numbers, and rounds to bytes after
  the width and after the height. Here a weight is two halves of 11 bits, so that float32 sums are
  exact for up to 32 taps: pictures up to 8 times as large.
  """
  for axis in (2, 1):
    n = x_NHWC.shape[axis]
    if n == side:
      continue
    exact = antialiased_weights(n, side) * 2**22
    weights = np.trunc(exact + np.copysign(0.5, exact)).astype(np.int64)
    upper, lower = weights >> 11, weights & 2047
    x = jnp.moveaxis(x_NHWC, axis, -1).astype(jnp.float32)
    sums = (
      jnp.matmul(x, half.T.astype(np.float32), precision='highest').astype(jnp.int32)
      for half in (upper, lower)
    )
    total = (next(sums) << 11) + next(sums) + (1 << 21)
    x_NHWC = jnp.moveaxis(jnp.clip(total >> 22, 0, 255), -1, axis).astype(jnp.uint8)
  return x_NHWC


def _resized(x_NHWC, height, width, weights) -> jax.Array:
  if x_NHWC.shape[1:3] == (height, width):
    return x_NHWC
  rows, cols = (
    weights(n, size).astype(x_NHWC.dtype)
    for n, size in zip(x_NHWC.shape[1:3], (height, width), strict=True)
  )
  x = jnp.einsum('ih,nhwc->niwc', rows, x_NHWC, precision='highest')
  return jnp.einsum('jw,niwc->nijc', cols, x, precision='highest')


def resize_flops(height: int, width: int, to_height: int, to_width: int, channels: int) -> float:
  """FLOPs of `resize` for one image."""
  if (height, width) == (to_height, to_width):
    return 0.0
  return 2.0 * channels * to_height * width * (height + to_width)


def resample_table(
  table_TD: np.ndarray, source: tuple[int, int], grid: tuple[int, int]
) -> np.ndarray:
  """Resamples a position table from one grid (rows, cols) to another, in float64, on the host.

  Rows before those of the `source` grid belong to a class token and are kept as they are.
  """
  if source == grid:
    return table_TD
  prefix = len(table_TD) - source[0] * source[1]
  cells = table_TD[prefix:].astype(np.float64).reshape(*source, -1)
  rows, cols = (antialiased_weights(n, size) for n, size in zip(source, grid, strict=True))
  cells = np.einsum('ih,jw,hwd->ijd', rows, cols, cells, optimize=True)
  cells = cells.reshape(grid[0] * grid[1], -1).astype(table_TD.dtype)
  return np.concatenate([table_TD[:prefix], cells])


def clamped_weights(n: int, size: int) -> np.ndarray:
  """Weights [size, n] float64, four taps with a = -0.75; taps past the border take its value."""
  centres = (np.arange(size) + 0.5) * n / size - 0.5
  weights = np.zeros((size, n))
  for tap in range(-1, 3):
    index = np.floor(centres) + tap
    at = np.clip(index, 0, n - 1).astype(int)
    # add.at, because at the border several taps meet in one place.
    np.add.at(weights, (np.arange(size), at), _keys(centres - index, -0.75))
  return weights


def antialiased_weights(n: int, size: int) -> np.ndarray:
  """Weights [size, n] float64, a = -0.5, as wide as the reduction; none past the border."""
  stretch = max(n / size, 1.0)
  centres = (np.arange(size) + 0.5) * n / size - 0.5
  weights = _keys((centres[:, None] - np.arange(n)) / stretch, -0.5)
  return weights / weights.sum(axis=1, keepdims=True)


def _keys(x: np.ndarray, a: float) -> np.ndarray:
  """The cubic convolution kernel (Keys 1981), zero from distance 2 on."""
  x = np.abs(x)
  near = (a + 2) * x**3 - (a + 3) * x**2 + 1
  far = a * (x**3 - 5 * x**2 + 8 * x - 4)
  return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
