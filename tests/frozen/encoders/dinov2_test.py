"""DINOv2 against the authors' model, from files with the authors' names."""

import functools
import json
import math

from helpers import encoder_files
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import dinov2, preprocess, vit
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
  return config, dinov2.load('tiny', config, str(files[variant]), grid, dtype)


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
  parts = {
    'clstoken': out[:, 0],
    'regtokens': out[:, 1 : 1 + registers],
    'patchtokens': out[:, 1 + registers :],
  }
  for name, found in parts.items():
    if name != 'regtokens' or registers:
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


@pytest.mark.parametrize('dtype', TOLERANCE)
def test_raw_image_to_features(golden, files, dtype):
  arrays = golden('dinov2_tiny')
  request = encoder_files.request_of((256, 256), weights=files['plain'], dtype=dtype)
  encoder = dinov2.make('tiny', config_of(arrays, 'plain'), request)
  x = arrays['in/raw_uint8'].transpose(0, 2, 3, 1).astype(np.float32) / np.float32(127.5) - 1
  with jax.enable_x64(dtype == 'float64'):
    features = jax.jit(encoder.apply)(encoder.load(), jnp.asarray(x))
  assert features.tokens.dtype == features.summary.dtype == np.float32
  assert features.summary.shape == (1, 48)
  expected = arrays['out_e2e/x_norm_patchtokens']
  np.testing.assert_allclose(features.tokens, expected, rtol=0, atol=TOLERANCE[dtype])


def test_registers_are_left_out_of_the_features(golden, files):
  config, params = load(golden, files, 'reg', (2, 3))
  x = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (2, 32, 48, 3)), jnp.float32)
  tokens = vit.encode(params, preprocess.resize(preprocess.normalise(x), 28, 42), config)
  assert tokens.shape == (2, 1 + 4 + 6, 48)
  features = dinov2.make('tiny', config, encoder_files.request_of((32, 48))).apply(params, x)
  np.testing.assert_allclose(features.summary, tokens[:, 0], atol=1e-6)
  np.testing.assert_allclose(features.tokens, tokens[:, 5:], atol=1e-6)


def test_bfloat16_products_stay_near_float32(golden, files):
  arrays = golden('dinov2_tiny')
  x = np.random.default_rng(0).uniform(-1, 1, (2, 48, 32, 3)).astype(np.float32)
  features = {}
  for dtype in ('float32', 'bfloat16'):
    request = encoder_files.request_of((48, 32), weights=files['reg'], dtype=dtype)
    encoder = dinov2.make('tiny', config_of(arrays, 'reg'), request)
    params = encoder.load()
    kinds = {name: leaf.dtype for name, leaf in trees.named_leaves(params).items()}
    assert {kind for name, kind in kinds.items() if name.endswith('kernel')} == {jnp.dtype(dtype)}
    assert {kind for name, kind in kinds.items() if 'kernel' not in name} == {jnp.dtype('float32')}
    features[dtype] = encoder.apply(params, x)
  exact, coarse = (jnp.asarray(features[d].tokens) for d in ('float32', 'bfloat16'))
  assert coarse.dtype == jnp.float32 and exact.shape == (2, 6, 48)
  error = float(jnp.sqrt(jnp.mean((exact - coarse) ** 2) / jnp.mean(exact**2)))
  assert 1e-4 < error < 2e-2, error


@pytest.mark.parametrize('variant', VARIANTS)
def test_loaded_parameters_have_the_planned_shapes(golden, files, variant):
  request = encoder_files.request_of((32, 64), weights=files[variant], dtype='bfloat16')
  encoder = dinov2.make('tiny', config_of(golden('dinov2_tiny'), variant), request)
  as_shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
  assert jax.tree.map(as_shape, encoder.load()) == encoder.params
  shapes = encoder.shapes()
  assert shapes.tokens.shape == (1, 8, 48) and shapes.summary.shape == (1, 48)


def small():
  return vit.ViTConfig(width=8, depth=2, heads=2, hidden=12, patch_size=2, registers=3, table=3)


def random_weights(config):
  weights = encoder_files.random_arrays(dinov2.hub_shapes(config))
  return weights | {'mask_token': np.zeros((1, config.width), np.float32)}


@pytest.mark.parametrize('suffix', dinov2.SUFFIXES)
@pytest.mark.parametrize('by', ['folder', 'file'])
def test_hub_names_in_every_kind_of_file(tmp_path, suffix, by):
  config = small()
  weights = random_weights(config)
  name = 'dinov2reg-vit-b'
  path = tmp_path / f'dinov2_vitb14_reg4_pretrain{suffix}'
  encoder_files.write(path, weights)
  given = tmp_path if by == 'folder' else path
  params = dinov2.load(name, config, str(given), (3, 3), 'float32')
  equal = np.testing.assert_array_equal
  equal(params['positions'], weights['pos_embed'][0])
  equal(params['registers'], weights['register_tokens'][0])
  for i in range(config.depth):
    equal(params['blocks']['qkv']['kernel'][i], weights[f'blocks.{i}.attn.qkv.weight'].T)
    equal(params['blocks']['fc2']['bias'][i], weights[f'blocks.{i}.mlp.fc2.bias'])
  kernel = weights['patch_embed.proj.weight']
  for row, col, channel, out in ((0, 1, 2, 7), (1, 0, 0, 3)):
    assert params['patches']['kernel'][row, col, channel, out] == kernel[out, channel, row, col]


def test_bfloat16_files_are_read(tmp_path):
  config, path = small(), tmp_path / 'a.safetensors'
  weights = {k: v.astype(ml_dtypes.bfloat16) for k, v in random_weights(config).items()}
  array_files.save(path, weights)
  params = dinov2.load('tiny', config, str(path), (3, 3), 'float32')
  assert params['norm']['scale'].dtype == np.float32
  np.testing.assert_array_equal(params['norm']['scale'], weights['norm.weight'].astype('float32'))


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    ({'norm.bias': None}, 'norm.bias is missing'),
    ({'head.weight': (1,)}, 'head.weight is not expected'),
    ({'blocks.1.ls1.gamma': (9,)}, r'blocks.1.ls1.gamma has shape \(9,\), expected \(8,\)'),
    ({'register_tokens': None, 'cls_token': (1, 8)}, 'register_tokens is missing; cls_token has'),
    ({'pos_embed': (1, 17, 8)}, r'pos_embed has shape \(1, 17, 8\), expected \(1, 10, 8\)'),
  ],
)
def test_foreign_weights_are_refused_by_name(tmp_path, change, message):
  weights = random_weights(small())
  for name, shape in change.items():
    weights.pop(name, None)
    if shape is not None:
      weights[name] = np.zeros(shape, np.float32)
  encoder_files.write(tmp_path / 'w.npz', weights)
  with pytest.raises(types.UserError, match=message):
    dinov2.load('tiny', small(), str(tmp_path / 'w.npz'), (3, 3), 'float32')


def test_many_faults_are_counted(tmp_path):
  encoder_files.write(tmp_path / 'w.npz', {'x': np.zeros(1, np.float32)})
  expected = len(dinov2.hub_shapes(small()))
  with pytest.raises(types.UserError, match=f'and {expected + 1 - 8} more'):
    dinov2.load('tiny', small(), str(tmp_path / 'w.npz'), (3, 3), 'float32')


@pytest.mark.parametrize(
  ('name', 'file', 'megabytes'),
  [
    # Sizes of the published files.
    ('dinov2-vit-s', 'dinov2_vits14/dinov2_vits14_pretrain.pth', 84),
    ('dinov2-vit-b', 'dinov2_vitb14/dinov2_vitb14_pretrain.pth', 330),
    ('dinov2-vit-l', 'dinov2_vitl14/dinov2_vitl14_pretrain.pth', 1161),
    ('dinov2-vit-g', 'dinov2_vitg14/dinov2_vitg14_pretrain.pth', 4335),
    ('dinov2reg-vit-b', 'dinov2_vitb14/dinov2_vitb14_reg4_pretrain.pth', 330),
  ],
)
def test_a_missing_file_is_explained(tmp_path, name, file, megabytes):
  for weights, found in (
    ('', 'no folder is given'),
    (tmp_path, f'{tmp_path} does not hold it'),
    (tmp_path / 'x', f'there is no {tmp_path / "x"}'),
  ):
    encoder = encoders.open_encoder(name, encoder_files.request_of((256, 256), weights=weights))
    with pytest.raises(types.UserError) as caught:
      encoder.load()
    for part in (
      file.partition('/')[2],
      f'about {megabytes} MB',
      found,
      'and give that folder',
      f'https://dl.fbaipublicfiles.com/dinov2/{file}',
    ):
      assert part in str(caught.value)


@pytest.mark.parametrize('shape', [(8, 8, 1), (256, 256, 4), (250, 256, 3), (256, 40, 3)])
def test_pixels_that_do_not_fit_are_refused(shape):
  with pytest.raises(types.UserError, match='3 channels and sides divisible by 16; found'):
    encoders.open_encoder('dinov2-vit-s', encoder_files.request_of(shape[:2], channels=shape[2]))


def test_512_pixels_give_32x32_tokens():
  encoder = encoders.open_encoder('dinov2-vit-s', encoder_files.request_of((512, 512)))
  assert encoder.params['positions'].shape == (1 + 32 * 32, 384)
  assert encoder.shapes().tokens.shape == (1, 1024, 384)


@pytest.mark.parametrize(('name', 'millions'), [('s', 22.1), ('b', 86.6), ('l', 304.4)])
def test_published_numbers_of_parameters(name, millions):
  config = dinov2.CONFIGS[f'dinov2-vit-{name}']
  count = sum(math.prod(shape) for shape in dinov2.hub_shapes(config).values())
  assert round(count / 1e6, 1) == millions


@pytest.mark.parametrize('variant', VARIANTS)
def test_flops_are_the_products_of_the_traced_encoder(golden, variant):
  request = encoder_files.request_of((32, 64))
  encoder = dinov2.make('tiny', config_of(golden('dinov2_tiny'), variant), request)
  x = jax.ShapeDtypeStruct((3, 32, 64, 3), 'float32')
  assert (
    encoder_files.dot_flops(jax.make_jaxpr(encoder.apply)(encoder.params, x).jaxpr)
    == 3 * encoder.flops
  )
