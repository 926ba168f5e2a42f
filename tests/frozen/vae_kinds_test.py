"""Autoencoders beside the SD-VAE: their results, sizes, scales, and what tells them."""

import json
import logging

from helpers import torch_zip
import jax
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.frozen import autoencoders, vae, vae_files, vae_kinds

# As in vae_test: the noise of float32 layers, and the rounding of what is stored.
TOLERANCE = {'float32': {'atol': 2e-5, 'rtol': 1e-5}, 'float64': {'atol': 1e-9, 'rtol': 6.1e-8}}
F8 = {'block_channels': (128, 256, 512, 512)}
F16 = {'block_channels': (128, 128, 256, 256, 512), 'encoder_attention': (4,)}
BARE = {'quant_conv': False, 'post_quant_conv': False}
# Parameters of diffusers' AutoencoderKL with the published sizes. The file of SD3's in half
# precision has 167,666,654 bytes, 27,288 more than its numbers.
PUBLISHED = {
  'SDXL VAE': (vae.VAEConfig(**F8, scale=0.13025), 83_653_863),
  'SD3 VAE': (vae.VAEConfig(**F8, **BARE, latent_channels=16), 83_819_683),
  'VA-VAE': (vae.VAEConfig(**F16, latent_channels=32, decoder_attention=(4,)), 69_836_067),
  'MAR KL-16': (vae.VAEConfig(**F16, latent_channels=16), 66_456_019),
}
SMALL = vae.VAEConfig(
  latent_channels=3,
  block_channels=(4, 4, 8),
  layers_per_block=1,
  norm_groups=2,
  encoder_attention=(2,),
  decoder_attention=(1, 2),
)


def part(golden, name):
  """The arrays of one autoencoder, and its weights."""
  start = f'{name}/'
  arrays = {k.removeprefix(start): x for k, x in golden('vaes_tiny').items() if k.startswith(start)}
  return arrays, {k.removeprefix('sd/'): x for k, x in arrays.items() if k.startswith('sd/')}


def write(folder, file, weights, settings, **beside):
  """A PyTorch file of weights in a new folder, with its settings and other such files."""
  folder.mkdir(parents=True)
  (folder / 'config.json').write_text(json.dumps(settings))
  for name, arrays in {file: weights, **beside}.items():
    torch_zip.write(folder / name, {'state_dict': torch_zip.tensors(arrays)})
  return folder / file


def loaded(golden, tmp_path, name, dtype='float32'):
  """An autoencoder of the reference from files as they are published, and its arrays."""
  arrays, weights = part(golden, name)
  if name == 'flux':
    path = write(tmp_path / name, 'ae.pt', weights, json.loads(str(arrays['config'])))
  else:
    other = np.zeros((2, 2), np.float32)
    more = ('linear_proj.weight', 'foundation_model.model.cls_token', 'loss.discriminator.0.weight')
    weights |= dict.fromkeys(more, other)
    statistics = {key: arrays[f'in/{key}'] for key in ('mean', 'std')}
    path = write(
      tmp_path / name,
      'vavae.pt',
      weights,
      {'norm_num_groups': 2},
      **{'latents_stats.pt': statistics},
    )
  return vae_files.load(path.parent, dtype=dtype), arrays


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('name', ['flux', 'vavae'])
def test_results_agree_with_the_reference(golden, tmp_path, name, dtype):
  """From a folder alone: names, sizes, attention and scale are found."""
  with jax.enable_x64(dtype == 'float64'):
    autoencoder, arrays = loaded(golden, tmp_path, name, dtype)
    params, scaling = autoencoder.params, autoencoder.config.scaling
    nhwc = lambda key: np.moveaxis(arrays[key], 1, -1).astype(dtype)
    moments = jax.jit(autoencoder.encode)(params, nhwc('in/image_uint8') / 127.5 - 1)
    means = scaling.apply(moments[..., : autoencoder.config.latent_channels])
    decoded = jax.jit(autoencoder.decode)(params, scaling.undo(nhwc('in/x')))
  for key, found in (('moments', moments), ('mean_scaled', means), ('decoded', decoded)):
    np.testing.assert_allclose(found, nhwc(f'out/{key}'), **TOLERANCE[dtype], err_msg=key)


def test_names_of_both_programs_give_the_same_digest(golden, tmp_path):
  autoencoder, _ = loaded(golden, tmp_path, 'vavae')
  config = autoencoder.config
  assert (config.factor, config.latent_channels, autoencoder.name) == (
    16,
    32,
    'AutoencoderKL f16d32',
  )
  assert config.encoder_attention == config.decoder_attention == (4,)
  again = vae_files.from_arrays(
    vae_files.to_arrays(autoencoder.params, config),
    settings={
      'norm_num_groups': 2,
      'down_block_types': ['DownEncoderBlock2D'] * 4 + ['AttnDownEncoderBlock2D'],
      'up_block_types': ['AttnUpDecoderBlock2D'] + ['UpDecoderBlock2D'] * 4,
      'latents_mean': config.shift,
      'latents_std': [1 / x for x in config.scale],
      'scaling_factor': 1.0,
    },
  )
  assert again.encoder_sha256 == autoencoder.encoder_sha256
  assert again.decoder_sha256 == autoencoder.decoder_sha256
  assert again.config.shift == config.shift
  np.testing.assert_allclose(again.config.scale, config.scale, rtol=1e-15)


def test_attention_only_where_the_arrays_have_it():
  source = vae_files.random(SMALL, 0)
  arrays = vae_files.to_arrays(source.params, SMALL)
  found = vae_files.from_arrays(arrays, settings={'norm_num_groups': 2}, scale=0.18215, shift=0)
  assert found.config == SMALL
  assert {n.split('.attentions')[0] for n in arrays if '.attentions.' in n} == {
    'encoder.mid_block',
    'encoder.down_blocks.2',
    'decoder.mid_block',
    'decoder.up_blocks.0',
    'decoder.up_blocks.1',
  }
  # The plan of a store has them, and that of one without is as it was.
  assert SMALL.facts()['decoder_attention'] == (1, 2)
  assert not {'encoder_attention', 'decoder_attention'} & set(vae.VAEConfig().facts())


@pytest.mark.parametrize('name', ['SD3 VAE', 'VA-VAE', 'MAR KL-16'])
def test_published_sizes(name):
  config, parameters = PUBLISHED[name]
  assert trees.count(autoencoders.shapes(config)) == parameters
  sizes = config.facts() | {'encoder_attention': (), 'decoder_attention': ()} | config.facts()
  assert any(kind.name == name and kind.has(sizes) for kind in vae_kinds.KINDS)


def known(name, place='vae/x.safetensors', scale=None, shift=None, settings=None, statistics=None):
  """What is found for a file with the sizes of a published autoencoder."""
  config = PUBLISHED[name][0]
  none = {'encoder_attention': (), 'decoder_attention': ()}
  return vae_kinds.scales(
    none | config.facts(),
    scale=scale,
    shift=shift,
    settings=settings or {},
    statistics=statistics,
    place=place,
  )


def test_published_scales_by_sizes_names_and_settings():
  asked = lambda *args, **options: known(*args, **options)[:3]
  assert asked('SDXL VAE') == ('SD-VAE', 0.18215, 0.0)
  assert asked('SDXL VAE', place='vae/sdxl_vae.safetensors') == ('SDXL VAE', 0.13025, 0.0)
  assert asked('SDXL VAE', settings={'scaling_factor': 0.13025}) == ('SDXL VAE', 0.13025, 0.0)
  assert asked('SD3 VAE', scale=1.5305) == ('SD3 VAE', 1.5305, 0.0609)
  assert asked('SD3 VAE', place='FLUX.1-schnell/ae.safetensors') == ('FLUX VAE', 0.3611, 0.1159)
  assert asked('MAR KL-16') == ('MAR KL-16', 0.2325, 0.0)
  # What is asked for goes before what is told, each for itself.
  told = {'scaling_factor': 0.3611, 'shift_factor': 0.1159}
  assert asked('SD3 VAE', scale=0.5, settings=told) == ('AutoencoderKL', 0.5, 0.1159)
  numbers = {'latents_scale': np.full((1, 32, 1, 1), 0.5), 'latents_bias': np.arange(32.0)}
  found = known('VA-VAE', place='e2e-vavae/e2e-vavae-400k.pt', statistics=numbers)
  assert found.kind == 'E2E-VAE' and found.scale == (0.5,) * 32 and found.shift == tuple(range(32))
  published = {'latents_mean': [1.0] * 32, 'latents_std': [4.0] * 32, 'scaling_factor': 0.18215}
  found = known('VA-VAE', place='hf://REPA-E/e2e-invae-hf@0/x', settings=published)
  assert (found.kind, found.scale[0], found.source) == ('E2E-VAE', 0.25, 'config.json')


@pytest.mark.parametrize(
  'name, options, message',
  [
    ('SD3 VAE', {}, r'scale of 16 .* SD3 VAE \(1.5305, 0.0609\), FLUX VAE \(0.3611, 0.1159\)'),
    ('VA-VAE', {'place': 'vavae/vavae.pt'}, 'scale of 32 .*latents_stats.pt.* IN-VAE, VA-VAE'),
    ('SDXL VAE', {'place': 'e2e-sdvae/e2e-sdvae-400k.pt'}, 'scale of 4 .*NAME-latents-stats.pt'),
    ('VA-VAE', {'statistics': {'mean': [0.0], 'std': [1.0]}}, 'std has 1 numbers, expected 32'),
    ('VA-VAE', {'statistics': {'mean': [0.0] * 32, 'std': [0.0] * 32}}, 'std must be positive'),
    ('VA-VAE', {'statistics': {'mean': [0.0]}}, 'mean and std, or latents_scale .* found mean'),
    (
      'VA-VAE',
      {'settings': {'latents_mean': [0.0] * 32, 'latents_std': [1.0] * 32}},
      'programs apply in different ways',
    ),
  ],
)
def test_a_scale_that_nothing_tells_is_asked_for(name, options, message):
  with pytest.raises(types.UserError, match=message):
    known(name, **options)


def test_files_of_statistics_are_found_and_the_scale_is_logged(tmp_path, caplog):
  config = vae.VAEConfig(
    latent_channels=2, block_channels=(4, 8), layers_per_block=1, norm_groups=2
  )
  weights = vae_files.to_arrays(vae_files.random(config, 0).params, config)
  scale, bias = np.float32([2, 4]), np.float32([1, -1])
  path = write(
    tmp_path / 'e2e',
    'e2e-400k.pt',
    weights,
    {'norm_num_groups': 2},
    **{'e2e-400k-latents-stats.pt': {'latents_scale': scale, 'latents_bias': bias}},
  )
  caplog.set_level(logging.INFO)
  found = vae_files.load(path)
  assert (found.config.scale, found.config.shift) == ((2.0, 4.0), (1.0, -1.0))
  assert 'scale 2 to 4, one per channel, shift -1 to 1' in caplog.text
  # Statistics that are not wanted are not read.
  path.with_name('e2e-400k-latents-stats.pt').write_bytes(b'damaged')
  assert vae_files.load(path.parent, scale=0.5, shift=0.0).config.scale == 0.5
  with pytest.raises(types.UserError, match='latents-stats.pt'):
    vae_files.load(path)
