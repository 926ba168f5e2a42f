"""Principal components: whitened, repeatable, in place, and refused where there are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data import sources
from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import pca


def source_of(data, name='made'):
  labels = np.zeros(len(data), np.int32)
  return sources.ArraySource(name=name, space='pixels', num_classes=1, data=data, labels=labels)


def noise(n, shape=(4, 6, 2), seed=0):
  return np.random.default_rng(seed).uniform(-1, 1, (n, *shape)).astype(np.float32)


def open_pca(source, grid, shape=None):
  shape = shape or source.shape
  return encoders.open_encoder(
    'pca', encoders.Request(source=source, grid=grid, image_shape=tuple(shape))
  )


@pytest.fixture(scope='module')
def digits():
  source = sources.digits('train')
  encoder = open_pca(source, (4, 4))
  return source.gather(np.arange(len(source)))['images'], encoder, encoder.load()


def test_features_of_the_training_images_are_white(digits):
  images, encoder, params = digits
  features = jax.jit(encoder.apply)(params, images)
  assert features.tokens.dtype == features.summary.dtype == jnp.float32
  for f_NK in (features.tokens.reshape(-1, 16), features.summary):
    f_NK = np.asarray(f_NK, np.float64)
    np.testing.assert_allclose(f_NK.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(f_NK.T, bias=True), np.eye(16), atol=1e-4)


def test_components_explain_the_most_variance(digits):
  images, _, params = digits
  flat = images.reshape(len(images), -1).astype(np.float64)
  singular = np.linalg.svd(flat - flat.mean(axis=0), compute_uv=False)
  variances = singular**2 / len(flat)
  # The basis is a direction of length one, divided by the standard deviation along it.
  found = 1 / np.sum(np.square(params['summary']['basis'].astype(np.float64)), axis=0)
  np.testing.assert_allclose(found, variances[:16], rtol=1e-5)
  assert found.sum() / variances.sum() > 0.8


def test_shapes_and_cost_are_those_of_the_fit(digits):
  _, encoder, params = digits
  assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params) == encoder.params
  # 36 values in the window of 6 x 6 pixels of each token, 64 in the image.
  assert encoder.flops == 2 * 16 * 36 * 16 + 2 * 64 * 16


def test_signs_are_fixed(digits):
  for part in digits[2].values():
    basis = part['basis']
    assert np.all(basis[np.abs(basis).argmax(axis=0), np.arange(basis.shape[1])] > 0)


def test_a_token_sees_its_cell_and_the_cells_around_it(digits):
  _, encoder, params = digits
  blank = np.full((1, 8, 8, 1), -1, np.float32)
  before = encoder.apply(params, blank).tokens
  for row, col in ((0, 0), (1, 2), (3, 1)):
    x = blank.copy()
    x[:, 2 * row : 2 * row + 2, 2 * col : 2 * col + 2] = 1
    changed = np.abs(encoder.apply(params, x).tokens - before)[0].max(axis=1) > 1e-4
    near = np.maximum(
      np.abs(np.arange(4)[:, None] - row) * np.ones((1, 4)),
      np.abs(np.arange(4)[None] - col) * np.ones((4, 1)),
    )
    np.testing.assert_array_equal(changed.reshape(4, 4), near <= 1)


def test_at_most_4096_images_from_all_over_the_source(monkeypatch):
  monkeypatch.setattr(pca, 'MAX_IMAGES', 30)
  data, seen = noise(100), []

  class Watched(sources.ArraySource):
    def gather(self, indices):
      seen.extend(indices.tolist())
      return super().gather(indices)

  source = Watched(
    name='w', space='pixels', num_classes=1, data=data, labels=np.zeros(100, np.int32)
  )
  params = open_pca(source, (2, 3)).load()
  assert len(set(seen)) == 30 and min(seen) == 0 and max(seen) >= 96
  np.testing.assert_allclose(
    params['summary']['mean'], data[sorted(seen)].reshape(30, -1).mean(axis=0), atol=1e-6
  )


def test_pieces_add_up(monkeypatch, digits):
  monkeypatch.setattr(pca, '_CHUNK', 100)
  _, encoder, params = digits
  for found, expected in zip(jax.tree.leaves(encoder.load()), jax.tree.leaves(params), strict=True):
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


class Latents:
  """Latents with the uint8 pixels that they were made of."""

  name, space, shape, num_classes = 'cached', 'latents', (2, 2, 4), 1

  def __init__(self, pixels):
    self.pixels = pixels

  def __len__(self):
    return len(self.pixels)

  def gather(self, indices):
    latents = np.zeros((len(indices), *self.shape), np.float32)
    return {'latents': latents, 'pixels': self.pixels[indices]}


def test_pixels_beside_latents_are_used():
  raw = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), np.uint8)
  found = open_pca(Latents(raw), (2, 2), (4, 4, 3)).load()
  expected = open_pca(source_of(raw), (2, 2)).load()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize(
  ('data', 'grid', 'message'),
  [
    (noise(40), (3, 3), r'divides the image; found 3x3 patches on 4x6 pixels'),
    (noise(16), (2, 3), 'more than 16 examples; made has 16'),
    (np.zeros((20, 40, 40, 3), np.float32), (20, 20), 'found 4800 and 108'),
  ],
)
def test_impossible_requests_are_refused_when_opened(data, grid, message):
  with pytest.raises(types.UserError, match=message):
    open_pca(source_of(data), grid)


def test_images_that_do_not_fit_are_refused_when_loaded():
  latents = sources.synthetic((4, 4, 4), 10, 100, seed=0)
  constant = source_of(np.full((40, 4, 6, 2), 0.3, np.float32))
  for source, shape, message in (
    (latents, None, 'needs pixels, and synthetic/4x4x4 has only latents'),
    (source_of(noise(40)), (8, 8, 2), r'asked for pixels of shape \(8, 8, 2\), and made has'),
    (constant, None, 'needs 16 components that vary; the .* of made have 0'),
  ):
    with pytest.raises(types.UserError, match=message):
      open_pca(source, (2, 2), shape).load()
