"""Files of the VAE: names, layouts, sizes read off the arrays, digests, refusals."""

import json
import re

from helpers import torch_zip
import jax
import ml_dtypes
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.frozen import vae, vae_files
from diversedit_jax.weights import array_files

CONFIG = vae.VAEConfig(block_channels=(4, 8), layers_per_block=1, norm_groups=2)
SETTINGS = {'norm_num_groups': 2}
ATTENTION = 'encoder.mid_block.attentions.0.'
OTHER = vae.VAEConfig(
  latent_channels=16,
  block_channels=(4, 8, 8),
  layers_per_block=2,
  norm_groups=2,
  scale=0.3611,
  shift=0.1159,
  quant_conv=False,
  post_quant_conv=False,
)


@pytest.fixture(scope='module')
def source():
  return vae_files.random(CONFIG, 0)


@pytest.fixture
def arrays(source):
  return vae_files.to_arrays(source.params, CONFIG)


def equal(found, expected):
  found, expected = trees.named_leaves(found), trees.named_leaves(expected)
  assert list(found) == list(expected)
  for name, array in found.items():
    assert isinstance(array, np.ndarray) and array.dtype == np.float32
    np.testing.assert_array_equal(array, expected[name], err_msg=name)


def digests(autoencoder):
  return autoencoder.encoder_sha256, autoencoder.decoder_sha256


def write(folder, arrays, settings=None, name=vae_files.FILE):
  folder.mkdir(parents=True, exist_ok=True)
  array_files.save(folder / name, arrays)
  if settings is not None:
    (folder / vae_files.SETTINGS).write_text(json.dumps(settings))
  return folder / name


def older(arrays):
  """The same weights as files of 2022 have them."""
  names = {'to_q': 'query', 'to_k': 'key', 'to_v': 'value', 'to_out.0': 'proj_attn'}
  out = {}
  for name, array in arrays.items():
    for current, legacy in names.items():
      if f'.{current}.' in name:
        name = name.replace(f'.{current}.', f'.{legacy}.')
        array = array[:, :, None, None] if array.ndim == 2 else array
    out[name] = array
  return out


def compvis(arrays):
  """The same weights by the names of CompVis' program, the attention as 1x1 convolutions."""
  attention = {'group_norm': 'norm', 'to_q': 'q', 'to_k': 'k', 'to_v': 'v', 'to_out.0': 'proj_out'}
  out = {}
  for name, array in arrays.items():
    half, *parts, leaf = name.split('.')
    name = '.'.join(parts)
    if m := re.fullmatch(r'(down|up)_blocks\.(\d)\.(resnets|downsamplers|upsamplers)\.(.+)', name):
      level = int(m[2]) if m[1] == 'down' else len(CONFIG.block_channels) - 1 - int(m[2])
      last = f'block.{m[4]}' if m[3] == 'resnets' else f'{m[1]}sample.conv'
      name = f'{m[1]}.{level}.{last}'.replace('conv_shortcut', 'nin_shortcut')
    elif m := re.fullmatch(r'mid_block\.resnets\.(\d)\.(.+)', name):
      name = f'mid.block_{int(m[1]) + 1}.{m[2]}'
    elif m := re.fullmatch(r'mid_block\.attentions\.0\.(.+)', name):
      name = f'mid.attn_1.{attention[m[1]]}'
      array = array[:, :, None, None] if array.ndim == 2 else array
    elif name == 'conv_norm_out':
      name = 'norm_out'
    out[f'{half}.{name}.{leaf}' if name else f'{half}.{leaf}'] = array
  return out


def test_names_and_layouts_are_those_of_diffusers(golden):
  stored = golden('vae_tiny')
  meta = json.loads(str(stored['meta']))
  weights = {name[3:]: array for name, array in stored.items() if name.startswith('sd/')}
  autoencoder = vae_files.from_arrays(weights, settings=meta)
  assert autoencoder.config == vae.VAEConfig(block_channels=(16, 32, 32, 32), norm_groups=8)
  assert trees.count(autoencoder.params) == meta['param_count']
  back = vae_files.to_arrays(autoencoder.params, autoencoder.config)
  assert set(back) == set(weights)
  for name, array in weights.items():
    np.testing.assert_array_equal(back[name], array, err_msg=name)
  pairs = dict(meta['legacy_name_pairs'])
  legacy = {pairs.get(name, name): array for name, array in weights.items()}
  assert set(legacy) == set(older(weights)) and len(pairs) == 16
  twin = vae_files.from_arrays(legacy, settings=meta)
  equal(twin.params, autoencoder.params)
  assert digests(twin) == digests(autoencoder)


def test_older_names_give_the_same_parameters(source, arrays):
  legacy = older(arrays)
  found = vae_files.from_arrays(legacy, settings=SETTINGS)
  equal(found.params, source.params)
  assert digests(found) == digests(source)


def test_files_of_compvis_give_the_same_parameters(tmp_path, source, arrays):
  """Files of the VAE alone, of its training and of a whole Stable Diffusion."""
  theirs = compvis(arrays)
  assert 'encoder.mid.attn_1.proj_out.weight' in theirs and len(theirs) == len(arrays)
  assert (
    theirs['decoder.up.1.block.0.conv1.weight']
    is arrays['decoder.up_blocks.0.resnets.0.conv1.weight']
  )
  beside = np.zeros((2, 2), np.float32)
  whole = {f'first_stage_model.{name}': x for name, x in theirs.items()}
  whole |= {'model.diffusion_model.input_blocks.0.0.weight': beside, 'betas': beside[0]}
  contents = {
    'vae.pt': theirs,
    'sd.ckpt': {'state_dict': torch_zip.tensors(whole), 'global_step': 9},
    'kl-f8.ckpt': {'state_dict': torch_zip.tensors(theirs | {'loss.logvar': beside})},
  }
  array_files.save(tmp_path / 'vae.safetensors', theirs)
  for name, saved in contents.items():
    torch_zip.write(tmp_path / name, torch_zip.tensors(saved) if saved is theirs else saved)
  (tmp_path / vae_files.SETTINGS).write_text(json.dumps(SETTINGS))
  for name in ('vae.safetensors', *contents):
    found = vae_files.load(tmp_path / name)
    equal(found.params, source.params)
    assert digests(found) == digests(source)


def test_a_file_or_its_folder_gives_back_what_was_written(tmp_path, source, arrays):
  path = write(tmp_path / 'sd-vae', arrays, SETTINGS)
  write(tmp_path / 'pipeline' / 'vae', arrays, SETTINGS)
  for given in (path, path.parent, tmp_path / 'pipeline'):
    found = vae_files.load(given, dtype='bfloat16')
    equal(found.params, source.params)
    assert found.config == CONFIG and found.file == vae_files.FILE and found.dtype == 'bfloat16'
    assert digests(found) == digests(source)


@pytest.mark.parametrize('dtype', [ml_dtypes.bfloat16, np.float64])
def test_arrays_of_other_dtypes_become_float32(source, arrays, dtype):
  arrays = {name: x.astype(dtype) for name, x in arrays.items()}
  found = vae_files.from_arrays(arrays, settings=SETTINGS)
  equal(found.params, jax.tree.map(lambda x: x.astype(dtype).astype(np.float32), source.params))
  # Half of the digits make other weights.
  assert (digests(found) == digests(source)) == (dtype == np.float64)


def test_another_autoencoder_is_recognised(tmp_path):
  source = vae_files.random(OTHER, 3)
  settings = {
    '_class_name': 'AutoencoderKL',
    'act_fn': 'silu',
    'block_out_channels': [4, 8, 8],
    'down_block_types': ['DownEncoderBlock2D'] * 3,
    'up_block_types': ['UpDecoderBlock2D'] * 3,
    'in_channels': 3,
    'out_channels': 3,
    'latent_channels': 16,
    'latents_mean': None,
    'latents_std': None,
    'layers_per_block': 2,
    'mid_block_add_attention': True,
    'norm_num_groups': 2,
    'scaling_factor': 0.3611,
    'shift_factor': 0.1159,
    'use_quant_conv': False,
    'use_post_quant_conv': False,
  }
  path = write(tmp_path, vae_files.to_arrays(source.params, OTHER), settings)
  found = vae_files.load(path)
  assert found.config == OTHER
  equal(found.params, source.params)
  override = vae_files.load(path, scale=0.5, shift=0.0).config
  assert (override.scale, override.shift) == (0.5, 0.0)
  each = vae_files.load(path, scale=[0.5] * 16, shift=tuple(range(16))).config
  assert each.scaling.scale == (0.5,) * 16 and each.scaling.shift == tuple(range(16))


def test_digests_follow_the_half_that_changes(source, arrays):
  def changed(name):
    array = arrays[name].copy()
    array.flat[-1] = np.nextafter(array.flat[-1], np.float32(9))
    return digests(vae_files.from_arrays(arrays | {name: array}, settings=SETTINGS))

  swapped = (f'{ATTENTION}to_q.weight', f'{ATTENTION}to_k.weight')
  other = arrays | {name: arrays[twin] for name, twin in zip(swapped, swapped[::-1], strict=True)}
  assert digests(vae_files.from_arrays(other, settings=SETTINGS))[0] != digests(source)[0]
  encoder, decoder = digests(source)
  assert len(encoder) == len(decoder) == 64 and encoder != decoder
  for name in ('encoder.conv_in.weight', f'{ATTENTION}to_k.bias', 'quant_conv.bias'):
    found = changed(name)
    assert found[0] != encoder and found[1] == decoder, name
  for name in ('decoder.conv_norm_out.weight', 'post_quant_conv.weight'):
    found = changed(name)
    assert found[0] == encoder and found[1] != decoder, name


def test_digests_are_the_same_in_every_version(source):
  """They stand in stores of latents, which must be recognised later."""
  count = lambda x: (np.arange(x.size, dtype=np.float32) % 7).reshape(x.shape)
  arrays = vae_files.to_arrays(source.params, CONFIG)
  found = vae_files.from_arrays(jax.tree.map(count, arrays), settings=SETTINGS)
  assert found.encoder_sha256[:16] == '717ea2c402a9af24'
  assert found.decoder_sha256[:16] == '60af07ba4b974548'


def test_a_missing_file_is_described(tmp_path):
  for path, found in ((tmp_path / 'vae.safetensors', 'there is no'), (tmp_path, 'not hold it')):
    with pytest.raises(types.UserError) as caught:
      vae_files.load(path)
    for part in (str(path), found, vae_files.FILE, '335 MB', 'stabilityai/sd-vae-ft-mse', '-ema'):
      assert part in str(caught.value)


def refuse(message, arrays, **options):
  options = {'settings': SETTINGS} | options
  with pytest.raises(types.UserError, match=message):
    vae_files.from_arrays(arrays, **options)


def test_wrong_arrays_are_refused(arrays):
  name = 'decoder.conv_out.bias'
  refuse(f'missing: {name}$', {k: v for k, v in arrays.items() if k != name})
  refuse(f'{name} holds values that are not finite', arrays | {name: np.array([0, 1, np.nan])})
  matrix, wide = f'{ATTENTION}to_q.weight', np.zeros((8, 8, 3, 3), np.float32)
  refuse(rf'{matrix} has shape \(8, 8, 3, 3\) instead of \(8, 8\)', arrays | {matrix: wide})
  refuse(f'{matrix} is there twice', arrays | {f'{ATTENTION}query.weight': arrays[matrix]})


def test_foreign_files_are_refused(tmp_path, arrays):
  theirs = {'down_blocks.0.resnets.0.conv1.weight': arrays['decoder.conv_out.bias']}
  path = write(tmp_path / 'unet', theirs)
  message = "not the weights of an AutoencoderKL .*these look like diffusers' names of a U-Net"
  with pytest.raises(types.UserError, match=message) as caught:
    vae_files.load(path)
  assert str(path) in str(caught.value)
  quantised = compvis(arrays) | {'quantize.embedding.weight': arrays['decoder.conv_out.weight']}
  refuse('not expected: quantize.embedding.weight', quantised)


@pytest.mark.parametrize(
  'key, value, message',
  [
    ('block_out_channels', [4, 16], r'but the arrays have \(4, 8\)'),
    ('use_quant_conv', False, 'but the arrays have True'),
    ('act_fn', 'relu', "only 'silu' is supported"),
    ('down_block_types', ['DownEncoderBlock2D', 'AttnDownEncoderBlock2D'], 'but the arrays have'),
  ],
)
def test_settings_that_do_not_fit_are_refused(arrays, key, value, message):
  refuse(f'config.json says {key}=.*{message}', arrays, settings=SETTINGS | {key: value})


def test_what_arrays_cannot_tell_is_asked_for(arrays):
  refuse(r'norm_groups=32 does not divide every width of \(4, 8\)', arrays, settings={})
  wide = vae_files.to_arrays(vae_files.random(OTHER, 0).params, OTHER)
  refuse('scale of 16 latent channels is not known: give it', wide)
  assert vae_files.from_arrays(wide, settings=SETTINGS, scale=0.5).config.scale == 0.5
  each = SETTINGS | {'latents_mean': [0.1] * 4, 'latents_std': [2.0] * 4}
  refuse('give a scale and a shift instead', arrays, settings=each, scale=1.0)
  assert vae_files.from_arrays(arrays, settings=each, scale=1.0, shift=0.0).config.scale == 1.0
  refuse('unknown dtype of the autoencoder', arrays, dtype='float61')


def test_unreadable_settings_are_refused(tmp_path, arrays):
  path = write(tmp_path, arrays)
  for text, message in (('{', 'is damaged'), ('[1]', 'a list, expected a dict')):
    (tmp_path / vae_files.SETTINGS).write_text(text)
    with pytest.raises(types.UserError, match=message):
      vae_files.load(path)


def test_parameters_of_another_config_are_refused(source):
  with pytest.raises(ValueError, match='disagree on decoder/conv_in/kernel, '):
    vae_files.to_arrays(source.params, OTHER)
