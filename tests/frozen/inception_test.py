"""Inception against the reference's values; precision, cost, refusals."""

import json
import pathlib

from helpers import jaxprs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.frozen import inception, inception_files

# The reference asks for 1e-4; its own float32 pass is 2.6e-7 (pool) and 2.1e-6 (spatial) from its
# float64 pass, and this is five times that.
POOL, SPATIAL = 2e-6, 1e-5

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def difference(found, expected):
  """Relative L2 over all images."""
  return np.linalg.norm(np.asarray(found, np.float64) - expected) / np.linalg.norm(expected)


def normalise(x_NHWC):
  return (x_NHWC - 128) / 128


@pytest.fixture(scope='module')
def arrays():
  return inception_files.random_arrays(0)


@pytest.fixture(scope='module')
def network(arrays):
  return inception_files.from_arrays(arrays)


@pytest.fixture(scope='module')
def results(golden, network):
  """Outputs of one program by name, for the reference's images: 64 x 64, then 256 x 256."""

  @jax.jit
  def run(params, images):
    resized = inception.resize(images)
    maps = inception.stages(params, normalise(resized))
    means = {name: jnp.mean(maps[name], axis=(1, 2)) for name in ('pool_1', 'pool_2', 'Mixed_6e')}
    # The compiler finds the network twice in this program and computes it once.
    out = inception.features(params, images)._asdict() | means
    return out | {'resized': resized, 'Mixed_6e map': maps['Mixed_6e']}

  parts = [run(network.params, golden('inception')[f'in/images_{part}']) for part in 'ab']
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_weights_are_those_of_the_reference(arrays):
  recipe = json.loads((GOLDEN / 'inception_params.json').read_text())
  assert recipe['seed'] == 0 and recipe['bn_eps'] == inception.NORM_EPSILON
  parameters = {x['name']: x for x in recipe['parameters'] if x['name'] != 'fc.bias'}
  assert set(parameters) == set(arrays)
  for name, expected in parameters.items():
    x = arrays[name].astype(np.float64)
    assert list(x.shape) == expected['shape'], name
    np.testing.assert_array_equal(x.ravel()[:2], expected['first'], err_msg=name)
    np.testing.assert_allclose(x.sum(), expected['sum'], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(np.square(x).sum(), expected['sumsq'], rtol=1e-9)


def test_the_resize_is_tensorflows_bit_for_bit(golden, results):
  stored = golden('inception')
  rows = stored['idx_resized']
  found = results['resized']
  np.testing.assert_array_equal(found[:, rows][:, :, rows], stored['out/resized_sub'])
  statistics = found.astype(np.float64)
  for name, value in (('mean', statistics.mean((1, 2))), ('std', statistics.std((1, 2)))):
    np.testing.assert_allclose(value, stored[f'out/resized_{name}'], rtol=1e-12)


def test_features_agree(golden, results):
  stored = golden('inception')
  assert difference(results['pool'], stored['out/pool_3']) < POOL
  assert difference(results['spatial'], stored['out/spatial']) < SPATIAL
  assert difference(results['logits'], stored['out/logits_nobias']) < POOL
  found = jax.nn.softmax(results['logits'])
  np.testing.assert_allclose(found, stored['out/softmax_nobias'], rtol=0, atol=2e-6)
  assert {results[name].dtype for name in inception.Features._fields} == {np.dtype('float32')}


def test_values_on_the_way_agree(golden, results):
  stored = golden('inception')
  for i, name in enumerate(('pool_1', 'pool_2', 'Mixed_6e')):
    assert difference(results[name], stored[f'mid/block{i}_mean_hw']) < SPATIAL, name
  first = np.moveaxis(results['Mixed_6e map'][0, ..., :32], -1, 0)
  assert difference(first, stored['mid/block2_first_image_ch0_31']) < SPATIAL


def test_an_image_does_not_depend_on_its_batch(golden, network, results):
  image = golden('inception')['in/images_a'][:1]
  found = jax.jit(inception.features)(network.params, image)
  # Sums of another program run in another order; 2.1e-6 is the reference's own noise.
  assert difference(found.pool, results['pool'][:1]) < 1e-6
  assert difference(found.spatial, results['spatial'][:1]) < 2e-6


def bilinear(image_HWC, rows, cols):
  """Pixels at real positions, as TensorFlow's kernel: columns first, float32, edges clamped."""
  x_HWC = image_HWC.astype(np.float32)

  def split(positions, size):
    low = np.floor(positions).astype(int)
    return low, np.minimum(low + 1, size - 1), np.float32(positions) - np.float32(low)

  top, down, dy = split(rows, len(x_HWC))
  left, right, dx = split(cols, x_HWC.shape[1])
  at = lambda i, j: x_HWC[i][:, j]
  upper = at(top, left) + (at(top, right) - at(top, left)) * dx[None, :, None]
  lower = at(down, left) + (at(down, right) - at(down, left)) * dx[None, :, None]
  return upper + (lower - upper) * dy[:, None, None]


@pytest.mark.parametrize('size', [(1, 1), (17, 31), (299, 299), (512, 300)])
def test_the_resize_of_any_size(size):
  image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  found = jax.jit(inception.resize)(image[None])[0]
  positions = [np.arange(299, dtype=np.float32) * (np.float32(n) / np.float32(299)) for n in size]
  np.testing.assert_array_equal(found, bilinear(image, *positions))
  if size == (299, 299):
    np.testing.assert_array_equal(found, image)


def shapes_of(n, *size):
  return inception.shapes(), jax.ShapeDtypeStruct((n, *size, 3), 'uint8')


def test_products_are_of_full_precision_whatever_the_default():
  with jax.default_matmul_precision('bfloat16'):
    found = jaxprs.products(inception.features, *shapes_of(1, 64, 64))
  assert len(found) == len(inception.layers()) + 1 == 95
  assert {eqn.params['precision'] for eqn in found} == {(jax.lax.Precision.HIGHEST,) * 2}


def test_sizes_and_flops():
  """23,832,736 numbers once batch norms are folded in; 11.4 GFLOP, whatever the image's size."""
  for size in ((32, 32), (512, 256)):
    assert jaxprs.flops(jaxprs.products(inception.features, *shapes_of(1, *size))) == (
      inception.flops()
    )
  assert trees.count(inception.shapes()) == 23_832_736
  assert inception.flops() == pytest.approx(11.43e9, rel=1e-3)
  made = jax.eval_shape(inception.features, *shapes_of(5, 32, 48))
  assert [x.shape for x in made] == [(5, 2048), (5, 2023), (5, 1008)]
  assert {x.dtype for x in made} == {jnp.dtype('float32')}


def test_other_images_are_refused():
  images = jax.ShapeDtypeStruct((1, 8, 8, 3), 'float32')
  with pytest.raises(types.UserError, match='uint8 .N, H, W, 3. with .* found float32'):
    jax.eval_shape(inception.features, inception.shapes(), images)
