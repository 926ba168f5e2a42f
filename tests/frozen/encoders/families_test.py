"""MAE, MoCo v3, CLIP and I-JEPA against the authors' models, from files with the authors' names."""

import dataclasses
import json

from helpers import encoder_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax.frozen.encoders import clip, files, ijepa, mae, mocov3, vit

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


def encode(model, path, dtype):
  """Tokens of the stored input."""
  params = model.module.FAMILY.load(model.name, model.config, str(path), (4, 4), dtype)
  x = jnp.asarray(model.arrays['in/x'].transpose(0, 2, 3, 1), dtype)
  return np.asarray(jax.jit(vit.encode, static_argnums=2)(params, x, model.config))


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


@pytest.mark.parametrize('family', FAMILIES)
def test_raw_image_to_features(golden, tmp_path, family):
  model = tiny(golden, family, from_pixels=True)
  path = model.write(tmp_path / 'weights.pth')
  encoder = model.module.FAMILY.make(
    model.name, model.config, encoder_files.request_of((256, 256), weights=path)
  )
  x = model.arrays['in/raw_uint8'].transpose(0, 2, 3, 1).astype(np.float32) / np.float32(127.5) - 1
  features = jax.jit(encoder.apply)(encoder.load(), jnp.asarray(x))
  assert features.tokens.dtype == np.float32
  if family == 'ijepa':
    assert features.summary is None
  else:
    assert features.summary.shape == (1, model.config.width)
    assert features.summary.dtype == np.float32
  expected = model.arrays['out_e2e/features']
  np.testing.assert_allclose(features.tokens, expected, rtol=0, atol=TOLERANCE['float32'])


def test_the_misnamed_layers_of_the_large_moco_are_read_as_what_they_are(golden):
  pairs = json.loads(str(golden('mocov3_tiny')['meta']))['key_repair_pairs']
  layout = mocov3.FAMILY.layout(mocov3.CONFIGS['mocov3-vit-l'])
  arrays = {theirs.removeprefix('module.'): np.zeros(0) for theirs, _ in pairs}
  repaired = files.proper_names(arrays, layout)
  assert list(repaired) == [ours for _, ours in pairs]
  assert set(repaired) <= set(mocov3.FAMILY.shapes(mocov3.CONFIGS['mocov3-vit-l']))
