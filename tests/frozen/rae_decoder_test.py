"""The decoder of representation autoencoders against the authors', from files with its names."""

import json

from helpers import encoder_files
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.frozen import rae_decoder
from diversedit_jax.frozen.encoders import preprocess
from diversedit_jax.modes import inspect
from diversedit_jax.weights import likely

HEADS = {'decoder_num_attention_heads': 4, 'layer_norm_eps': 1e-12}


def weights_of(golden):
  return encoder_files.part(golden('rae'), 'decoder/params/')


def decoder_of(golden, **settings):
  return rae_decoder.from_arrays(weights_of(golden), settings=HEADS | settings, file='tiny')


def nhwc(x):
  return np.moveaxis(x, 1, -1)


def decoded(decoder, z_NHWC, dtype):
  """What the decoder puts out, in a dtype, as numpy."""
  with jax.enable_x64(dtype == 'float64'):
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), decoder.params)
    run = jax.jit(lambda p, z: rae_decoder.decode(p, z, decoder.config))
    return np.asarray(run(params, jnp.asarray(z_NHWC, dtype)))


# Values reach 4; the tolerance of the arrays' description.
@pytest.mark.parametrize(('dtype', 'atol'), [('float32', 2e-5), ('float64', 1e-10)])
def test_tokens_become_the_pictures_of_the_authors(golden, dtype, atol):
  arrays, decoder = golden('rae'), decoder_of(golden)
  tokens_NTC = arrays['decoder/decoder_input_f64']
  made = decoded(decoder, tokens_NTC.reshape(2, 4, 4, 10), dtype)
  # The constants are float32 there, whatever the network is in.
  mean, std = (np.float32(x) for x in (preprocess.IMAGENET_MEAN, preprocess.IMAGENET_STD))
  made = made * std.astype(dtype) + mean.astype(dtype)
  suffix = '_f64' if dtype == 'float64' else ''
  np.testing.assert_allclose(made, nhwc(arrays[f'decoder/image{suffix}']), rtol=0, atol=atol)
  other = decoded(decoder, arrays['decoder/other_grid_input'].reshape(2, 6, 6, 10), dtype)
  expected = nhwc(arrays['decoder/other_grid_image_f64'])
  np.testing.assert_allclose(other, expected, rtol=0, atol=atol)


@pytest.mark.parametrize('name', ['model.pt', 'decoder.safetensors'])
def test_a_published_file_and_a_checkpoint_of_training_are_read(golden, tmp_path, name):
  weights = weights_of(golden)
  (tmp_path / 'config.json').write_text(json.dumps(HEADS))
  encoder_files.write(tmp_path / name, weights)
  whole = tmp_path / 'ep-0001.pt'
  trained = {f'decoder.{k}': v for k, v in weights.items()} | {'encoder.x': np.zeros(2, np.float32)}
  encoder_files.write(whole, trained, key='ema')
  read = rae_decoder.load(tmp_path if name == 'model.pt' else tmp_path / name)
  assert read.config == decoder_of(golden).config and read.config.side == 16
  assert read.file == name
  assert read.sha256 == rae_decoder.load(whole).sha256 == decoder_of(golden).sha256
  jax.tree.map(np.testing.assert_array_equal, read.params, decoder_of(golden).params)


@pytest.mark.parametrize(
  ('change', 'settings', 'message'),
  [
    ({}, {'decoder_num_attention_heads': None}, 'decoder_num_attention_heads'),
    ({}, {'decoder_num_hidden_layers': 4}, 'decoder_num_hidden_layers=4, but the arrays have 3'),
    ({}, {'hidden_act': 'relu'}, "hidden_act='relu'"),
    ({'decoder_norm.bias': None}, {}, 'missing: decoder_norm.bias'),
    ({'decoder_embed.weight': None}, {}, 'decoder_embed.weight is missing'),
    ({'mask_token': np.zeros(3, np.float32)}, {}, 'not expected: mask_token'),
    ({'decoder_pos_embed': np.zeros((1, 13, 32), np.float32)}, {}, '12 positions'),
  ],
)
def test_what_is_no_such_decoder_is_refused(golden, change, settings, message):
  weights = {k: v for k, v in (weights_of(golden) | change).items() if v is not None}
  with pytest.raises(types.UserError, match=message):
    rae_decoder.from_arrays(weights, settings=HEADS | settings)


def test_its_file_is_recognised(golden):
  words = inspect.recognise(weights_of(golden))
  assert words == ['decoder of an RAE, 10 channels to 16 pixels']
  some = {'decoder_layers.0.layernorm_before.weight': np.zeros(3)}
  assert 'rae.decoder' in likely.kind(some)


def test_flops_are_those_of_the_products(golden):
  decoder = decoder_of(golden)
  run = jax.make_jaxpr(lambda p, z: rae_decoder.decode(p, z, decoder.config))
  jaxpr = run(decoder.params, np.zeros((1, 4, 4, 10), np.float32))
  # The class token is dropped before the last product.
  assert encoder_files.dot_flops(jaxpr.jaxpr) == rae_decoder.flops(decoder.config)
