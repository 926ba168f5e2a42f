"""MAE, MoCo v3, CLIP and I-JEPA against the authors' models, from files with the authors' names."""

import dataclasses
import json

from helpers import encoder_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.frozen.encoders import clip, files, ijepa, mae, mocov3, preprocess, vit

FAMILIES = {'mae': mae, 'mocov3': mocov3, 'clip': clip, 'ijepa': ijepa}
# Values reach 12. The reference's own float32 pass is up to 2e-5 from its float64 pass, which is
# stored as float32; softmax stays in float32 here even where all else is float64.
TOLERANCE = {'float32': 5e-5, 'float64': 5e-6}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tiny:
  """A tiny model of a family, with its weights as a part of a checkpoint would hold them."""

  family: str
  name: str
  config: vit.ViTConfig
  weights: dict[str, np.ndarray]
  arrays: dict[str, np.ndarray]

  @property
  def module(self):
    return FAMILIES[self.family]

  def write(self, path):
    layout = self.module.FAMILY.layout(self.config)
    encoder_files.write(path, self.weights, key=layout.parts[0])
    return path


def tiny(golden, family, *, from_pixels=False):
  arrays = golden(f'{family}_tiny')
  meta = json.loads(str(arrays['meta']))
  # What the authors' files hold, prefixes and all.
  weights = encoder_files.part(arrays, {'mocov3': 'ckpt/', 'ijepa': 'encoder/'}.get(family, 'sd/'))
  if from_pixels:
    weights |= encoder_files.part(arrays, 'e2e_encoder/') | encoder_files.part(arrays, 'e2e_sd/')
  table = meta.get('source_grid', meta['grid_e2e' if from_pixels else 'grid_x'])
  name, published = next(iter(FAMILIES[family].CONFIGS.items()))
  config = dataclasses.replace(
    published,
    width=meta['width'],
    depth=meta['depth'],
    heads=meta['heads'],
    hidden=4 * meta['width'],
    patch_size=meta['patch'],
    table=table,
  )
  assert config.epsilon == meta['ln_eps']
  return Tiny(family=family, name=name, config=config, weights=weights, arrays=arrays)


def encode(model, path, dtype='float32', **changes):
  """Tokens of the stored input, with changes to the config that the parameters were read for."""
  params = model.module.FAMILY.load(model.name, model.config, str(path), (4, 4), dtype)
  x = jnp.asarray(model.arrays['in/x'].transpose(0, 2, 3, 1), dtype)
  config = dataclasses.replace(model.config, **changes)
  return np.asarray(jax.jit(vit.encode, static_argnums=2)(params, x, config))


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('family', FAMILIES)
def test_tokens_agree_with_the_authors_models(golden, tmp_path, family, dtype):
  model = tiny(golden, family)
  with jax.enable_x64(True):
    out = encode(model, model.write(tmp_path / 'weights.pth'), dtype)
  assert out.dtype == dtype and out.shape[1] == 16 + (family != 'ijepa')
  close = lambda found, name: np.testing.assert_allclose(
    found, model.arrays[name], rtol=0, atol=TOLERANCE[dtype]
  )
  close(out[:, model.config.prefix :], 'out/features')
  if family == 'mocov3':
    close(out[:, 0], 'out/cls')


@pytest.mark.parametrize(
  ('family', 'changes'),
  [
    ('clip', {'mlp': 'gelu'}),
    ('clip', {'first_norm': False}),
    ('clip', {'heads': 4}),
    ('mae', {'mlp': 'quick_gelu'}),
    ('mocov3', {'last_norm': False}),
    ('ijepa', {'last_norm': False}),
    ('ijepa', {'mlp': 'quick_gelu'}),
    ('mocov3', {'epsilon': 1e-2}),
  ],
)
def test_a_mistake_would_show(golden, tmp_path, family, changes):
  model = tiny(golden, family)
  path = model.write(tmp_path / 'weights.pth')
  wrong = encode(model, path, **changes)[:, model.config.prefix :]
  assert np.abs(wrong - model.arrays['out/features']).max() > 20 * TOLERANCE['float32']


def test_features_of_mae_and_clip_are_those_before_the_last_norm(golden, tmp_path):
  for family, name in (('mae', 'norm'), ('clip', 'visual.ln_post')):
    model = tiny(golden, family)
    out = encode(model, model.write(tmp_path / f'{family}.pth'))[:, 1:]
    scale, bias = (model.weights[f'{name}.{leaf}'] for leaf in ('weight', 'bias'))
    centred = out - out.mean(axis=-1, keepdims=True)
    normed = centred / centred.std(axis=-1, keepdims=True) * scale + bias
    assert np.abs(normed - model.arrays['out/features']).max() > 0.1


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('family', FAMILIES)
def test_raw_image_to_features(golden, tmp_path, family, dtype):
  model = tiny(golden, family, from_pixels=True)
  path = model.write(tmp_path / 'weights.pth')
  encoder = model.module.FAMILY.make(
    model.name, model.config, encoder_files.request_of((256, 256), weights=path, dtype=dtype)
  )
  x = model.arrays['in/raw_uint8'].transpose(0, 2, 3, 1).astype(np.float32) / np.float32(127.5) - 1
  with jax.enable_x64(dtype == 'float64'):
    features = jax.jit(encoder.apply)(encoder.load(), jnp.asarray(x))
  assert features.tokens.dtype == np.float32
  if family == 'ijepa':
    assert features.summary is None
  else:
    assert features.summary.shape == (1, model.config.width)
    assert features.summary.dtype == np.float32
  expected = model.arrays['out_e2e/features']
  np.testing.assert_allclose(features.tokens, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.parametrize(('family', 'other'), [('clip', 'imagenet'), ('ijepa', 'clip')])
def test_the_other_pixels_would_show(golden, tmp_path, family, other):
  model = tiny(golden, family, from_pixels=True)
  path = model.write(tmp_path / 'weights.pth')
  wrong = dataclasses.replace(model.module.FAMILY, pixels=getattr(preprocess, other))
  encoder = wrong.make(model.name, model.config, encoder_files.request_of((256, 256), weights=path))
  x = model.arrays['in/raw_uint8'].transpose(0, 2, 3, 1).astype(np.float32) / np.float32(127.5) - 1
  found = encoder.apply(encoder.load(), jnp.asarray(x)).tokens
  assert np.abs(found - model.arrays['out_e2e/features']).max() > 0.1


@pytest.mark.parametrize('family', FAMILIES)
def test_bfloat16_products_stay_near_float32(golden, tmp_path, family):
  model = tiny(golden, family)
  path = model.write(tmp_path / 'weights.pth')
  x = np.random.default_rng(0).uniform(-1, 1, (2, 64, 64, 3)).astype(np.float32)
  features = {}
  for dtype in ('float32', 'bfloat16'):
    request = encoder_files.request_of((64, 64), weights=path, dtype=dtype)
    encoder = model.module.FAMILY.make(model.name, model.config, request)
    params = encoder.load()
    as_shape = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    assert jax.tree.map(as_shape, params) == encoder.params
    features[dtype] = np.asarray(jax.jit(encoder.apply)(params, x).tokens)
  exact, coarse = features['float32'], features['bfloat16']
  assert coarse.dtype == np.float32
  error = np.sqrt(np.mean((exact - coarse) ** 2) / np.mean(exact**2))
  assert 1e-4 < error < 3e-2, error


def test_the_misnamed_layers_of_the_large_moco_are_read_as_what_they_are(golden):
  pairs = json.loads(str(golden('mocov3_tiny')['meta']))['key_repair_pairs']
  layout = mocov3.FAMILY.layout(mocov3.CONFIGS['mocov3-vit-l'])
  arrays = {theirs.removeprefix('module.'): np.zeros(0) for theirs, _ in pairs}
  repaired = files.proper_names(arrays, layout)
  assert list(repaired) == [ours for _, ours in pairs]
  assert set(repaired) <= set(mocov3.FAMILY.shapes(mocov3.CONFIGS['mocov3-vit-l']))


@pytest.mark.parametrize('family', ['mae', 'mocov3'])
def test_positions_of_14x14_tokens_are_resampled(golden, tmp_path, family):
  model = tiny(golden, family)
  path = model.write(tmp_path / 'weights.pth')
  load = lambda grid: model.module.FAMILY.load(model.name, model.config, str(path), grid, 'float32')
  (table,) = (v[0] for k, v in model.weights.items() if k.endswith('pos_embed'))
  np.testing.assert_array_equal(load((14, 14))['positions'], table)
  for grid in ((16, 16), (32, 32), (8, 16)):
    expected = preprocess.resample_table(table, (14, 14), grid)
    np.testing.assert_array_equal(load(grid)['positions'], expected)
    assert len(expected) == 1 + grid[0] * grid[1]
