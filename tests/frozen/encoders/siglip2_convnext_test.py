"""SigLIP 2 and ConvNeXt V2 against timm and transformers, from files with their names."""

import dataclasses
import math

from helpers import encoder_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import convnext, siglip2, vit

# Values reach 3; timm's own float32 pass is up to 2e-6 from its float64 pass.
ATOL = 2e-5
AUTHORS = {
  'stem.0.': 'downsample_layers.0.0.',
  'stem.1.': 'downsample_layers.0.1.',
  'head.norm.': 'norm.',
  '.blocks.': '.',
  '.conv_dw.': '.dwconv.',
  '.mlp.fc1.': '.pwconv1.',
  '.mlp.fc2.': '.pwconv2.',
  '.mlp.grn.weight': '.grn.gamma',
  '.mlp.grn.bias': '.grn.beta',
}


def tiny_siglip(table=16, hidden=89):
  config = siglip2.CONFIGS['siglip2-vit-so400m']
  return dataclasses.replace(config, width=24, depth=2, heads=2, hidden=hidden, table=table)


TINY_CONVNEXT = convnext.ConvNeXtConfig(depths=(1, 2, 3, 1), widths=(6, 12, 24, 48))
MAKE = {
  'siglip': lambda request: siglip2.FAMILY.make('siglip2-vit-so400m', tiny_siglip(), request),
  'convnext': lambda request: convnext.make('convnextv2-b', TINY_CONVNEXT, request),
}


def weights_of(arrays, kind):
  return encoder_files.part(arrays, f'{kind}/sd/')


def by_the_authors(weights):
  """ConvNeXt's weights by the names and shapes of its authors' files."""
  found = {'head.weight': np.zeros((5, 48), np.float32), 'head.bias': np.zeros(5, np.float32)}
  for name, array in weights.items():
    if '.downsample.' in name:
      stage, _, rest = name.partition('.downsample.')
      name = f'downsample_layers.{stage[-1]}.{rest}'
    for timm, theirs in AUTHORS.items():
      name = name.replace(timm, theirs)
    found[name] = array[None, None, None] if '.grn.' in name else array
  return found


@pytest.mark.parametrize('kind', MAKE)
def test_an_image_gives_the_features_of_timm(golden, tmp_path, kind):
  arrays = golden('summaries_tiny')
  encoder_files.write(tmp_path / 'model.safetensors', weights_of(arrays, kind))
  request = encoder_files.request_of((256, 256), weights=tmp_path)
  encoder = MAKE[kind](request)
  assert encoder.file() == 'model.safetensors'
  x = arrays['in/raw_uint8_32'][:1].repeat(8, 1).repeat(8, 2) / np.float32(127.5) - np.float32(1)
  features = jax.jit(encoder.apply)(encoder.load(), jnp.asarray(x))
  for name in ('tokens', 'summary'):
    found, expected = getattr(features, name), arrays[f'{kind}/out/{name}_256']
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)


def test_siglip_is_read_by_the_names_of_transformers(golden, tmp_path):
  arrays, config = golden('summaries_tiny'), tiny_siglip(table=4, hidden=40)
  weights = weights_of(arrays, 'siglip_hf') | {'text_model.x': np.zeros(2, np.float32)}
  encoder_files.write(tmp_path / 'model.safetensors', weights)
  params = siglip2.FAMILY.load('siglip2-vit-b', config, str(tmp_path), (4, 4), 'float32')
  tokens = vit.encode(params, jnp.asarray(arrays['siglip_hf/in/x'].transpose(0, 2, 3, 1)), config)
  for found, name in ((tokens, 'tokens'), (vit.summarise(params, tokens, config), 'summary')):
    np.testing.assert_allclose(found, arrays[f'siglip_hf/out/{name}'], rtol=0, atol=ATOL)


def test_convnext_is_read_by_the_names_of_its_authors(golden, tmp_path):
  weights = weights_of(golden('summaries_tiny'), 'convnext')
  theirs = by_the_authors(weights)
  assert theirs['stages.2.1.grn.gamma'].shape == (1, 1, 1, 96) and 'stages.0.0.norm.bias' in theirs
  path = tmp_path / 'convnextv2_base_22k_224_ema.pt'
  encoder_files.write(path, theirs, key='model')
  encoder_files.write(tmp_path / 'timm.npz', weights)
  one, other = (
    convnext.load('convnextv2-b', TINY_CONVNEXT, str(given), 'float32')
    for given in (tmp_path, tmp_path / 'timm.npz')
  )
  jax.tree.map(np.testing.assert_array_equal, one, other)
  del theirs['stages.2.1.grn.gamma']
  encoder_files.write(tmp_path / 'less.npz', theirs)
  with pytest.raises(types.UserError, match=r'missing: stages\.2\.blocks\.1\.mlp\.grn\.weight$'):
    convnext.load('convnextv2-b', TINY_CONVNEXT, str(tmp_path / 'less.npz'), 'float32')


@pytest.mark.parametrize(
  ('name', 'width', 'millions'),
  [('convnextv2-t', 768, 28.6), ('convnextv2-b', 1024, 88.7), ('convnextv2-l', 1536, 198.0)],
)
def test_convnext_has_its_published_size(name, width, millions):
  """The paper's numbers of parameters have the last norm and 1000 classes."""
  shapes = convnext.flat_shapes(convnext.CONFIGS[name]).values()
  count = sum(map(math.prod, shapes)) + 2 * width + 1001 * width - width + 1000
  assert round(count / 1e6, 1) == millions
  request = dataclasses.replace(encoder_files.request_of((256, 256)), grid=(8, 8))
  found = encoders.open_encoder(name, request).shapes()
  assert (found.tokens.shape, found.summary.shape) == ((1, 64, width), (1, width))


def test_convnext_says_what_it_cannot_take():
  with pytest.raises(types.UserError, match='gives 64 tokens, but the model has 16x16 patches'):
    encoders.open_encoder('convnextv2-b', encoder_files.request_of((256, 256)))
  with pytest.raises(types.UserError, match='sides divisible by 32; found 48x48x3'):
    encoders.open_encoder('convnextv2-b', encoder_files.request_of((48, 48)))
  request = dataclasses.replace(encoder_files.request_of((64, 64)), grid=(2, 2))
  with pytest.raises(types.UserError, match=r'convnextv2_base_22k_224_ema.pt \(about 335 MB; .*'):
    encoders.open_encoder('convnextv2-b', request).load()


def test_flops_of_convnext_are_those_that_its_paper_gives():
  """15.4 GMACs of the base model at 224 pixels, in the paper's Table 9."""
  assert round(convnext.flops(convnext.CONFIGS['convnextv2-b'], (224, 224)) / 2e9, 1) == 15.4
