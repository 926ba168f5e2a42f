"""DINOv2 against the authors' model, from files with the authors' names."""

import functools
import json

from helpers import encoder_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import trees
from diversedit_jax.frozen.encoders import dinov2, family, vit
from diversedit_jax.weights import array_files

VARIANTS = ('plain', 'reg', 'swiglu')
# The reference's own float32 pass is up to 4e-6 from its float64 pass, which is stored as float32;
# softmax stays in float32 here even where all else is float64.
TOLERANCE = {'float32': 2e-5, 'float64': 2e-6}


def state_dict(arrays, variant):
  part = functools.partial(encoder_files.part, arrays)
  weights = part('sd/')
  if variant == 'swiglu':
    weights = {name: array for name, array in weights.items() if '.mlp.' not in name}
  return weights | (part(f'{variant}_sd/') if variant != 'plain' else {})


def config_of(arrays, variant):
  meta = json.loads(str(arrays['meta']))
  hidden = meta['mlp_ratio'] * meta['width']
  return vit.ViTConfig(
    width=meta['width'],
    depth=meta['depth'],
    heads=meta['heads'],
    patch_size=meta['patch'],
    hidden=hidden * 2 // 3 if variant == 'swiglu' else hidden,
    mlp='swiglu' if variant == 'swiglu' else 'gelu',
    registers=meta['num_registers'] if variant == 'reg' else 0,
    table=meta['source_grid'],
  )


@pytest.fixture(scope='module')
def files(golden, tmp_path_factory):
  """The three variants as the weight files of a folder, by variant."""
  folder = tmp_path_factory.mktemp('weights')
  paths = {variant: folder / f'{variant}.safetensors' for variant in VARIANTS}
  for variant, path in paths.items():
    array_files.save(path, state_dict(golden('dinov2_tiny'), variant))
  return paths


def load(golden, files, variant, grid, dtype='float32'):
  config = config_of(golden('dinov2_tiny'), variant)
  return config, dinov2.FAMILY.load('tiny', config, str(files[variant]), grid, dtype)


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('variant', VARIANTS)
def test_tokens_agree_with_the_hub_models(golden, files, variant, dtype):
  arrays = golden('dinov2_tiny')
  config, params = load(golden, files, variant, (4, 4), dtype)
  with jax.enable_x64(True):
    x = jnp.asarray(arrays['in/x'].transpose(0, 2, 3, 1), dtype)
    out = jax.jit(vit.encode, static_argnums=2)(params, x, config)
    assert out.dtype == dtype
    out = np.asarray(out)
  registers = config.registers
  parts = {'clstoken': out[:, 0], 'patchtokens': out[:, 1 + registers :]}
  parts |= {'regtokens': out[:, 1 : 1 + registers]} if registers else {}
  for name, found in parts.items():
    expected = arrays[f'out_{variant}/x_norm_{name}']
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE[dtype])


def test_values_on_the_way_agree(golden, files):
  arrays = golden('dinov2_tiny')
  config, params = load(golden, files, 'plain', (4, 4))
  close = lambda found, name: np.testing.assert_allclose(
    found, arrays[f'out_plain/{name}'], rtol=0, atol=4e-5
  )
  close(params['positions'][None], 'pos_embed_resampled')
  x = vit.embed_tokens(params, jnp.asarray(arrays['in/x'].transpose(0, 2, 3, 1)), config)
  close(x, 'tokens_in')
  one = jax.jit(vit.block, static_argnums=2)
  for i in range(config.depth):
    x = one(jax.tree.map(lambda leaf, i=i: leaf[i], params['blocks']), x, config)
    if i == 0:
      close(x, 'block0_out')
  close(x, 'x_prenorm')


@pytest.mark.parametrize('variant', ['plain', 'reg'])
def test_queries_and_keys_are_those_of_the_patches_in_the_blocks_asked_for(golden, files, variant):
  arrays = golden('dinov2_tiny')
  config, params = load(golden, files, variant, (4, 4))
  x_NHWC = jnp.asarray(arrays['in/x'].transpose(0, 2, 3, 1))
  found = jax.jit(lambda: family.features(params, x_NHWC, config, (2, 1)))()
  np.testing.assert_allclose(
    found.tokens, arrays[f'out_{variant}/x_norm_patchtokens'], rtol=0, atol=TOLERANCE['float32']
  )
  x, head = vit.embed_tokens(params, x_NHWC, config), config.width // config.heads
  for i in (0, 1):
    p = jax.tree.map(lambda leaf, i=i: np.asarray(leaf[i], np.float64), params['blocks'])
    centred = np.asarray(x, np.float64)
    centred -= centred.mean(axis=-1, keepdims=True)
    normed = centred / np.sqrt(np.mean(np.square(centred), axis=-1, keepdims=True) + 1e-6)
    normed = normed * p['norm1']['scale'] + p['norm1']['bias']
    qkv = (normed @ p['qkv']['kernel'] + p['qkv']['bias'])[:, config.prefix :]
    q, k, _ = np.split(qkv, 3, axis=-1)
    for name, wanted in (('queries', q), ('keys', k)):
      shown = getattr(found, name)[i + 1]
      assert shown.shape == (len(x), 16, config.heads, head)
      np.testing.assert_allclose(shown, wanted.reshape(shown.shape), atol=2e-5)
    x = vit.block(jax.tree.map(lambda leaf, i=i: leaf[i], params['blocks']), x, config)


def test_raw_image_to_features(golden, files):
  arrays = golden('dinov2_tiny')
  request = encoder_files.request_of((256, 256), weights=files['plain'])
  encoder = dinov2.FAMILY.make('tiny', config_of(arrays, 'plain'), request)
  x = arrays['in/raw_uint8'].transpose(0, 2, 3, 1).astype(np.float32) / np.float32(127.5) - 1
  features = jax.jit(encoder.apply)(encoder.load(), jnp.asarray(x))
  assert features.tokens.dtype == features.summary.dtype == np.float32
  assert features.summary.shape == (1, 48)
  expected = arrays['out_e2e/x_norm_patchtokens']
  np.testing.assert_allclose(features.tokens, expected, rtol=0, atol=TOLERANCE['float32'])


def test_bfloat16_products_stay_near_float32(golden, files):
  arrays = golden('dinov2_tiny')
  x = np.random.default_rng(0).uniform(-1, 1, (2, 48, 32, 3)).astype(np.float32)
  features = {}
  for dtype in ('float32', 'bfloat16'):
    request = encoder_files.request_of((48, 32), weights=files['reg'], dtype=dtype)
    encoder = dinov2.FAMILY.make('tiny', config_of(arrays, 'reg'), request)
    params = encoder.load()
    assert jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params) == encoder.params
    kinds = {name: leaf.dtype for name, leaf in trees.named_leaves(params).items()}
    assert {kind for name, kind in kinds.items() if name.endswith('kernel')} == {jnp.dtype(dtype)}
    assert {kind for name, kind in kinds.items() if 'kernel' not in name} == {jnp.dtype('float32')}
    features[dtype] = encoder.apply(params, x)
  exact, coarse = (jnp.asarray(features[d].tokens) for d in ('float32', 'bfloat16'))
  assert coarse.dtype == jnp.float32 and exact.shape == (2, 6, 48)
  error = float(jnp.sqrt(jnp.mean((exact - coarse) ** 2) / jnp.mean(exact**2)))
  assert 1e-4 < error < 2e-2, error
