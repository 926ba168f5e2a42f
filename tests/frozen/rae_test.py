"""Latents of representation autoencoders: statistics as the authors use them, the plain norm."""

import dataclasses

from helpers import encoder_files, torch_zip
import jax
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.frozen import encoders, rae
from diversedit_jax.frozen.encoders import dinov2, mae
from diversedit_jax.models import norms


def on_grid(tokens):
  return tokens.reshape(2, 4, 4, 10)


@pytest.mark.parametrize(('dtype', 'atol'), [('float32', 2e-5), ('float64', 1e-10)])
def test_tokens_are_normalised_and_back_as_the_authors_do(golden, tmp_path, dtype, atol):
  arrays = golden('rae')
  kept = {name: arrays[f'latent/{name}'] for name in ('mean', 'var')}
  torch_zip.write(tmp_path / 'stat.pt', torch_zip.tensors(kept))
  read = rae.statistics(tmp_path, 10)
  assert read.file == 'stat.pt' and read.sha256 == rae.Statistics.of(kept, 10).sha256
  suffix = '_f64' if dtype == 'float64' else ''
  with jax.enable_x64(dtype == 'float64'):
    # As the authors' code in float64: the root, too.
    std = np.sqrt(kept['var'].astype(dtype) + np.asarray(rae.EPSILON, dtype))
    p = {name: np.asarray(x, dtype) for name, x in read.over((4, 4, 10)).items()}
    if dtype == 'float64':
      np.testing.assert_allclose(p['std'], np.moveaxis(std, 0, -1), rtol=1e-7)
      p['std'] = np.moveaxis(std, 0, -1)
    tokens = on_grid(arrays['latent/encoder_tokens']).astype(dtype)
    z = rae.normalise(p, tokens)
    expected = np.moveaxis(arrays[f'latent/encoded{suffix}'], 1, -1)
    np.testing.assert_allclose(z, expected, rtol=0, atol=atol)
    np.testing.assert_allclose(rae.denormalise(p, z), tokens, rtol=0, atol=atol)
    given = np.moveaxis(arrays['latent/z_normalised'], 1, -1).astype(dtype)
    expected = on_grid(arrays['decoder/decoder_input_f64'])
    np.testing.assert_allclose(rae.denormalise(p, given), expected, rtol=0, atol=atol)


def test_statistics_may_be_of_channels_alone_and_without_one_of_the_two():
  var = np.linspace(1, 2, 10, dtype=np.float32)[:, None, None]
  found = rae.Statistics.of({'var': var}, 10).over((4, 6, 10))
  assert found['mean'].shape == found['std'].shape == (4, 6, 10) and not found['mean'].any()
  np.testing.assert_allclose(found['std'][3, 5], np.sqrt(var[:, 0, 0] + 1e-5), rtol=1e-6)
  nothing = rae.statistics('', 10).over((4, 4, 10))
  assert not nothing['mean'].any() and (nothing['std'] == 1).all() and not rae.NONE.sha256


@pytest.mark.parametrize(
  ('arrays', 'message'),
  [
    ({'mean': np.zeros((9, 1, 1))}, r'shape \(10, H, W\).*\(9, 1, 1\)'),
    ({'var': np.full((10, 1, 1), -1.0)}, 'not negative'),
    ({'std': np.ones((10, 1, 1))}, 'mean` and `var'),
    ({'mean': np.zeros((10, 4, 4))}, r'for \(4, 4, 10\) latents.*\(8, 8, 10\)'),
  ],
)
def test_what_are_no_such_statistics_is_refused(arrays, message):
  with pytest.raises(types.UserError, match=message):
    rae.Statistics.of(arrays, 10).over((8, 8, 10))


@pytest.mark.parametrize('module', [dinov2, mae])
def test_tokens_of_the_plain_norm_have_no_scale_and_bias(tmp_path, module):
  name = next(iter(module.CONFIGS))
  config = dataclasses.replace(module.CONFIGS[name], width=24, depth=1, heads=2, hidden=32, table=3)
  arrays = encoder_files.random_arrays(module.FAMILY.shapes(config))
  path = tmp_path / module.published(name).file
  encoder_files.write(path, arrays)
  request = encoder_files.request_of((48, 48), weights=tmp_path)
  plain = dataclasses.replace(request, plain_norm=True)
  own, ours = (module.FAMILY.make(name, config, r) for r in (request, plain))
  params, x = own.load(), np.random.default_rng(0).uniform(-1, 1, (2, 48, 48, 3)).astype(np.float32)
  tokens = ours.apply(params, x).tokens
  np.testing.assert_allclose(tokens.mean(axis=-1), 0, atol=1e-5)
  expected = own.apply(params, x).tokens
  if config.last_norm:
    tokens = tokens * params['norm']['scale'][None, None] + params['norm']['bias'][None, None]
  else:
    expected = norms.normalise(expected, config.epsilon)
  np.testing.assert_allclose(tokens, expected, rtol=0, atol=2e-5)


def test_latents_are_the_normalised_tokens_of_the_encoder():
  request = encoder_files.request_of((32, 32))
  base = encoders.Encoder(
    name='means',
    params={},
    apply=lambda params, x: encoders.Features(
      tokens=x.reshape(-1, 2, 16, 2, 16, 3).mean(axis=(2, 4)).reshape(-1, 4, 3), summary=None
    ),
    load=dict,
    image_shape=(32, 32, 3),
    flops=1.0,
    request=request,
  )
  latents = rae.Latents(encoder=base, grid=(2, 2), file='')
  assert latents.shape == (2, 2, 3)
  assert latents.facts(True) == {'encoder': 'means', 'statistics_sha256': ''}
  tokenizer = latents.tokenizer()
  params = tokenizer.load()
  shapes = jax.tree.map(lambda x: x.shape, params)
  assert shapes == jax.tree.map(lambda x: x.shape, tokenizer.params)
  params['statistics']['mean'] += 1
  x = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
  found = tokenizer.apply(params, x)
  np.testing.assert_allclose(found.tokens, base.apply({}, x).tokens - 1, rtol=1e-6)
  assert found.summary is None
