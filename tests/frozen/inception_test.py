"""Inception against the reference's values, and what each plausible mistake would do to them."""

import json
import pathlib
import zlib

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
  """By name, what one program makes of the reference's images: 64 x 64, then 256 x 256."""

  @jax.jit
  def run(params, images):
    resized = inception.resize(images)
    maps = inception.stages(params, normalise(resized))
    means = {name: jnp.mean(maps[name], axis=(1, 2)) for name in ('pool_1', 'pool_2', 'Mixed_6e')}
    # The compiler finds the network twice in this program, and computes it once.
    out = inception.features(params, images)._asdict() | means
    return out | {'resized': resized, 'Mixed_6e map': maps['Mixed_6e']}

  parts = [run(network.params, golden('inception')[f'in/images_{part}']) for part in 'ab']
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.fixture(scope='module')
def one(golden, network):
  """An image of the reference, a program (params, normalised) -> maps, and the right maps."""
  image, stages = golden('inception')['in/images_a'][:1], jax.jit(inception.stages)
  return image, stages, stages(network.params, normalise(inception.resize(image)))


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


def test_the_next_block_and_the_bias_are_mistakes(golden, results):
  """Both controls are reproduced, so they are what they say, and both are far from ours."""
  stored = golden('inception')
  later = results['Mixed_6e map'][..., : inception.SPATIAL_CHANNELS].reshape(6, -1)
  assert difference(later, stored['control/spatial_from_Mixed_6e']) < SPATIAL
  assert difference(results['spatial'], stored['control/spatial_from_Mixed_6e']) > 0.1
  generator = np.random.Generator(np.random.PCG64(zlib.crc32(b'fc.bias')))
  bias_K = (0.1 * generator.standard_normal(inception.CLASSES)).astype(np.float32)
  biased = stored['control/softmax_with_bias']
  found = jax.nn.softmax(results['logits'] + bias_K[None])
  np.testing.assert_allclose(found, biased, rtol=0, atol=2e-6)
  assert np.abs(jax.nn.softmax(results['logits']) - biased).max() > 1e-3


def pool(maps):
  return np.asarray(jnp.mean(maps['Mixed_7c'], axis=(1, 2)))


def test_an_image_does_not_depend_on_its_batch(one, results):
  _, _, maps = one
  assert difference(pool(maps), results['pool'][:1]) < 1e-6
  spatial = maps['Mixed_6d'][..., :7].reshape(1, -1)
  # Sums of another program run in another order; 2.1e-6 is the reference's own noise.
  assert difference(spatial, results['spatial'][:1]) < 2e-6


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


COUNT = np.arange(299, dtype=np.float32)
RULES = {
  'right': lambda n: COUNT * (np.float32(n) / np.float32(299)),
  'half-pixel centres': lambda n: np.clip((COUNT + 0.5) * (n / 299) - 0.5, 0, n - 1),
  'corners aligned': lambda n: COUNT * ((n - 1) / 298),
}


@pytest.mark.parametrize('size', [(1, 1), (17, 31), (299, 299), (512, 300)])
def test_the_resize_of_any_size(size):
  image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
  found = jax.jit(inception.resize)(image[None])[0]
  np.testing.assert_array_equal(found, bilinear(image, *map(RULES['right'], size)))
  if size == (299, 299):
    np.testing.assert_array_equal(found, image)


def other_rule(rule):
  return lambda x: normalise(bilinear(x[0], *map(RULES[rule], x.shape[1:3]))[None])


MISTAKES = {
  'half-pixel centres': other_rule('half-pixel centres'),
  'corners aligned': other_rule('corners aligned'),
  'normalised by 127.5': lambda x: inception.resize(x) / 127.5 - 1,
  'blue first': lambda x: normalise(inception.resize(x[..., ::-1])),
}


@pytest.mark.parametrize('mistake', MISTAKES)
def test_a_mistake_before_the_network_would_show(network, one, mistake):
  image, stages, right = one
  found = stages(network.params, jnp.asarray(MISTAKES[mistake](image)))
  assert difference(pool(found), pool(right)) > 1e-3


def test_another_epsilon_would_show(arrays, one, monkeypatch):
  image, stages, right = one
  monkeypatch.setattr(inception, 'NORM_EPSILON', 1e-5)
  params = inception_files.from_arrays(arrays).params
  found = stages(params, normalise(inception.resize(image)))
  assert difference(pool(found), pool(right)) > 1e-3


def test_averages_that_count_the_padding_would_show(network, one, monkeypatch):
  def padded(x):
    return jax.lax.reduce_window(x, 0.0, jax.lax.add, (1, 3, 3, 1), (1,) * 4, 'SAME') / 9

  monkeypatch.setattr(inception, '_average', padded)
  image, _, right = one
  # Another function, so that the program of the right one is not found again.
  stages = jax.jit(lambda *args: inception.stages(*args))
  found = stages(network.params, normalise(inception.resize(image)))
  assert difference(pool(found), pool(right)) > 1e-2


def test_an_average_in_the_last_block_would_show(network, one):
  _, _, right = one

  def last(kind):
    block = inception._block_8('Mixed_7c', kind)
    return {'Mixed_7c': inception._run((block,), network.params, right['Mixed_7b'])}

  assert difference(pool(last('max')), pool(right)) < 1e-6
  assert difference(pool(last('average')), pool(right)) > 1e-2


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


@pytest.mark.parametrize(
  'shape, dtype', [((1, 8, 8, 3), 'float32'), ((1, 8, 8, 1), 'uint8'), ((8, 8, 3), 'uint8')]
)
def test_other_images_are_refused(shape, dtype):
  with pytest.raises(types.UserError, match=f'uint8 .N, H, W, 3. with .* found {dtype}'):
    jax.eval_shape(inception.features, inception.shapes(), jax.ShapeDtypeStruct(shape, dtype))
