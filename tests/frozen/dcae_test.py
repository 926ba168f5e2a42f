"""DC-AE against diffusers' `AutoencoderDC`: values, files, sizes; a store and its pictures."""

import json

from helpers import jaxprs, small, small_runs
import jax
import numpy as np
import pytest
import safetensors.numpy

from diversedit_jax import trees, types
from diversedit_jax.data import sources
from diversedit_jax.data.store import layout, verify
from diversedit_jax.frozen import autoencoders, dcae, dcae_files, vae_files
from diversedit_jax.methods import contrastive
from diversedit_jax.modes import opening, run_context
from diversedit_jax.preparation import making, work

RELATIVE = 2e-5  # Tolerance, as a share of the largest value.
WIDTHS = [128, 256, 512, 512, 1024, 1024, 2048, 2048]
SANA = {'layers': ((2, 2, 2, 3, 3, 3), (3,) * 6), 'scales': (5,), 'steps': ('Conv', 'interpolate')}
# Parameters of diffusers' AutoencoderDC with the published configs: latent channels, changes, how
# many are learned, and how many statistics of batch norms lie beside them.
PUBLISHED = {
  'f32d32': (32, {}, 323_356_460, 12_800),
  'f64d128': (128, {}, 676_896_140, 12_800),
  'f128d512': (512, {}, 1_120_682_252, 12_800),
  'f32d32 of Sana': (32, SANA, 312_250_275, 0),
}


def published(name):
  """The config.json of a published autoencoder, but for the scale."""
  channels, changes, *_ = PUBLISHED[name]
  levels = {32: 6, 128: 7, 512: 8}[channels]
  inner = levels - 3
  down, up = changes.get('steps', ('pixel_unshuffle', 'pixel_shuffle'))
  depths = changes.get('layers', ((0, 4, 8, *[2] * inner), (0, 5, 10, *[2] * inner)))
  settings = {
    'latent_channels': channels,
    'downsample_block_type': down,
    'upsample_block_type': up,
    'decoder_norm_types': 'rms_norm' if changes else ['batch_norm'] * 3 + ['rms_norm'] * inner,
    'decoder_act_fns': 'silu' if changes else ['relu'] * 3 + ['silu'] * inner,
  }
  for half, depth in zip(('encoder', 'decoder'), depths, strict=True):
    settings |= {
      f'{half}_block_types': ['ResBlock'] * 3 + ['EfficientViTBlock'] * inner,
      f'{half}_block_out_channels': WIDTHS[:levels],
      f'{half}_layers_per_block': list(depth),
      f'{half}_qkv_multiscales': [[]] * 3 + [list(changes.get('scales', ()))] * inner,
    }
  return settings


def part(golden, name):
  """The arrays of one autoencoder, its weights and its config.json."""
  start = f'{name}/'
  arrays = {k.removeprefix(start): x for k, x in golden('dcae_tiny').items() if k.startswith(start)}
  weights = {k.removeprefix('sd/'): x for k, x in arrays.items() if k.startswith('sd/')}
  return arrays, weights, json.loads(str(arrays['config']))


def write(folder, weights, settings):
  """A folder as diffusers leaves it."""
  folder.mkdir()
  safetensors.numpy.save_file(weights, folder / vae_files.FILE)
  (folder / vae_files.SETTINGS).write_text(json.dumps(settings))
  return folder


@pytest.mark.parametrize(
  ('name', 'which'),
  # As f32c32 is; with fewer positions than diffusers takes for linear attention; as Sana's is; as
  # dc-ae-lite is, only the decoder without a first level, but neither half with its shortcut.
  [('in', 'image'), ('in', 'small'), ('sana', 'image'), ('lite', 'image')],
)
def test_results_agree_with_diffusers(golden, tmp_path, name, which):
  arrays, weights, settings = part(golden, name)
  found = vae_files.load(write(tmp_path / name, weights, settings))
  nhwc = lambda key: np.moveaxis(arrays[key], 1, -1).astype(np.float32)
  both = jax.jit(lambda params, x, z: (found.encode(params, x), found.decode(params, z)))
  latent, decoded = nhwc(f'out/{which}_latent'), nhwc(f'out/{which}_decoded')
  results = both(found.params, nhwc(f'in/{which}_uint8') / 127.5 - 1, latent)
  for result, expected in zip(results, (latent, decoded), strict=True):
    atol = RELATIVE * np.abs(expected).max()
    np.testing.assert_allclose(result, expected, rtol=0, atol=atol)
  assert (found.name, found.config.scaling.scale) == ('DC-AE f4d4', 0.41407)


def test_each_channel_may_have_a_scale_of_its_own(golden):
  arrays, weights, settings = part(golden, 'in')
  own = {'scale': (0.5, 1.0, 2.0, 4.0), 'shift': (0.0, -1.0, 0.25, 3.0)}
  made = making.encoded(vae_files.from_arrays(weights, settings=settings, **own), size=4)
  x = np.moveaxis(arrays['in/small_uint8'], 1, -1).astype(np.float32) / 127.5 - 1
  z = np.moveaxis(arrays['out/small_latent'], 1, -1)
  expected = (z - np.float32(own['shift'])) * np.float32(own['scale'])
  atol = RELATIVE * np.abs(expected).max()
  np.testing.assert_allclose(jax.jit(made.apply)(made.params, x), expected, rtol=0, atol=atol)
  assert made.shape == (1, 1, 4) and made.facts['scale'] == list(own['scale'])


def test_names_and_layouts_are_those_of_diffusers(golden):
  _, weights, settings = part(golden, 'in')
  found = vae_files.from_arrays(weights, settings=settings)
  back = vae_files.to_arrays(found.params, found.config)
  counters = {name for name in weights if name.endswith(dcae_files.COUNTER)}
  assert counters and set(back) == set(weights) - counters
  for name, array in back.items():
    np.testing.assert_array_equal(array, weights[name].astype(np.float32), err_msg=name)
  # Statistics are part of the weights.
  name = next(name for name in back if name.endswith('running_var'))
  other = vae_files.from_arrays(back | {name: back[name] * 2}, settings=settings)
  assert other.encoder_sha256 == found.encoder_sha256
  assert other.decoder_sha256 != found.decoder_sha256


@pytest.mark.parametrize('name', PUBLISHED)
def test_published_sizes(name):
  *_, learned, statistics = PUBLISHED[name]
  config = dcae.DCAEConfig(**dcae_files.fields(published(name)), scale=1.0)
  assert name.startswith(f'f{config.factor}d{config.latent_channels}')
  leaves = trees.named_leaves(autoencoders.shapes(config))
  beside = {k: x for k, x in leaves.items() if 'running_' in k}
  assert trees.count(beside) == statistics and trees.count(leaves) == learned + statistics


def test_products_are_of_full_precision_or_in_bfloat16(golden):
  _, _, settings = part(golden, 'sana')
  config = dcae.DCAEConfig(**dcae_files.fields(settings), scale=1.0)
  image = jax.ShapeDtypeStruct((1, 16, 16, 3), 'float32')
  for dtype in ('float32', 'bfloat16'):
    products = jaxprs.products(
      vae_files.random(config, 0, dtype=dtype).encode, autoencoders.shapes(config), image
    )
    kinds = [{str(v.aval.dtype) for v in eqn.invars} for eqn in products]
    if dtype == 'float32':
      highest = (jax.lax.Precision.HIGHEST,) * 2
      assert all(eqn.params['precision'] == highest for eqn in products)
    else:  # All but those at both ends, and the three sums of one attention.
      assert kinds.count({'float32'}) == 2 + 3 and kinds.count({'bfloat16'}) == len(kinds) - 5


def refuse(message, weights, settings, **options):
  with pytest.raises(types.UserError, match=message):
    vae_files.from_arrays(weights, settings=settings, **options)


def test_what_is_not_read_is_refused(golden):
  _, weights, settings = part(golden, 'in')
  less = lambda key: {k: x for k, x in settings.items() if k != key}
  refuse(r'with its config.json.*latent_channels.*and \d+ more are missing', weights, {})
  refuse('upsample_block_type is missing', weights, less('upsample_block_type'))
  refuse(
    'the scale of 4 latent channels is not known.*--vae_scale.* into the folder of the file$',
    weights,
    less('scaling_factor'),
  )
  both = settings | {'latents_mean': [0.0] * 4, 'latents_std': [1.0] * 4}
  refuse('latents_mean and latents_std, which programs apply in different ways', weights, both)
  asked = vae_files.from_arrays(weights, settings=less('scaling_factor'), scale=2.0)
  assert (asked.config.scale, asked.name) == (2, 'DC-AE f4d4')
  for changes, message in (
    ({'_class_name': 'AutoencoderKL'}, "'AutoencoderKL', but the arrays are .* AutoencoderDC"),
    ({'decoder_norm_types': 'layer_norm'}, "decoder_norm_types='layer_norm'; only 'rms_norm' and"),
    ({'encoder_layers_per_block': [1, 1]}, 'encoder_layers_per_block has 2 entries, expected 3'),
    (
      {'decoder_layers_per_block': [0, 1, 0]},
      'decoder_layers_per_block has 0 for level 2; only level 0 may',
    ),
    (
      {'encoder_block_out_channels': [4, 8, 24]},
      'encoder_block_out_channels has 24 for level 2, which does not divide 4 x 8, .* of level 1',
    ),
    (
      {'encoder_block_out_channels': [4, 2, 8]},
      'encoder_block_out_channels has 2 for level 1; expected a multiple of 4',
    ),
    ({'latent_channels': [8]}, r'latent_channels=\[8\]; expected whole numbers from 1'),
    ({'latent_channels': True}, 'latent_channels=True; expected whole numbers from 1'),
    ({'in_channels': 0}, 'in_channels=0; expected whole numbers from 1'),
    ({'attention_head_dim': 4.0}, 'attention_head_dim=4.0; expected whole numbers from 1'),
    ({'decoder_layers_per_block': [0, True, 1]}, 'decoder_layers_per_block=True; expected whole'),
    ({'encoder_qkv_multiscales': [[], [], [4]]}, 'encoder_qkv_multiscales=4; expected odd'),
    ({'encoder_out_shortcut': None}, 'encoder_out_shortcut=None; expected true or false'),
    ({'decoder_in_shortcut': 1}, 'decoder_in_shortcut=1; expected true or false'),
    ({'downsample_block_type': None}, "downsample_block_type=None; only 'Conv' and 'pixel_un"),
    ({'encoder_block_out_channels': 8}, 'encoder_block_out_channels=8; expected a list'),
    ({'decoder_qkv_multiscales': 5}, 'decoder_qkv_multiscales=5; expected a list'),
    ({'latent_channels': 3}, 'latent_channels=3 does not divide 8, the last of encoder_block_'),
    (
      {'attention_head_dim': 16},
      'attention_head_dim=16 is more than the 8 channels of level 2 in enc',
    ),
    ({'upsample_block_type': 'interpolate'}, 'an AutoencoderDC: .*conv.weight has shape'),
  ):
    refuse(message, weights, settings | changes)
  theirs = {'encoder.stages.1.op_list.0.main.conv1.conv.weight': np.zeros((2, 2, 3, 3))}
  refuse('DC-AE by its authors. names.*-diffusers', theirs, {})
  config = vae_files.from_arrays(weights, settings=settings)
  with pytest.raises(types.UserError, match='divisible by 4; found 6x8'):
    jax.eval_shape(config.encode, config.params, jax.ShapeDtypeStruct((1, 6, 8, 3), 'float32'))


def test_a_store_of_latents_and_their_pictures(golden, tmp_path):
  """Nothing is drawn: the store has latents as the model sees them, not means and deviations."""
  _, weights, settings = part(golden, 'in')
  path = write(tmp_path / 'dcae', weights, settings)
  small.write_pictures(tmp_path / 'pictures')
  of = {'source': f'folder:{tmp_path}/pictures', 'vae': path}
  with pytest.raises(types.UserError, match='--size=30 is not divisible by 4, the factor of'):
    work.run(small.asked(tmp_path / 'odd', **of, size=30))
  work.run(small.asked(tmp_path / 'store', **of, store='both', twins=True, dtype='float32'))
  plan, report = layout.read_plan(tmp_path / 'store'), verify.verify(tmp_path / 'store')
  assert set(plan.columns) == {'latents', 'pixels'} and plan.columns['latents'].shape == (8, 8, 4)
  source = sources.StoreSource(tmp_path / 'store')
  found = vae_files.load(path)
  some = source.gather(np.arange(2), np.array([False, True]))
  x = some['pixels'].astype(np.float32) / 127.5 - 1
  z = jax.jit(found.encode)(found.params, x)
  np.testing.assert_allclose(some['latents'], z * np.float32(0.41407), rtol=0, atol=1e-4)
  latents = source.gather(np.arange(len(source)))['latents']
  twins = source.mirrored_latents(np.arange(len(source)))['latents']
  assert not report.faults
  np.testing.assert_allclose(report.std, np.stack([latents, twins]).std((0, 1, 2, 3)), rtol=1e-4)
  # Which methods must not scale again.
  mean = np.concatenate([latents, twins]).mean(0)
  np.testing.assert_allclose(contrastive.mean_of(source, mirrored=True), mean, atol=1e-6)
  assert source.latent_facts() == {
    'encoder_sha256': found.encoder_sha256,
    'scale': [0.41407] * 4,
    'shift': [0.0] * 4,
  }

  def make(weights, **changes):
    data = {'data__source': f'store:{tmp_path}/store', 'data__size': small.SIZE}
    return small_runs.make(
      **data, method='flow', train__batch_size=8, vae__weights=str(weights), **changes
    )

  experiment = make(path)
  mesh = run_context.make_mesh(experiment)
  pictures = opening.open_decoder(experiment, mesh)(some['latents'])
  exact = 255 * (np.asarray(jax.jit(found.decode)(found.params, z)) + 1) / 2
  assert pictures.shape == (2, small.SIZE, small.SIZE, 3) and pictures.std() > 10
  assert np.abs(pictures - np.clip(exact, 0, 255)).max() <= 1.01  # They are cut, not rounded.
  tiled = opening.open_decoder(make(path, vae__tile=4), mesh)(some['latents'])
  assert tiled.shape == pictures.shape and (tiled != pictures).any()
  with pytest.raises(types.UserError, match=r'vae.scale=0.5, but store/store was made for 0.41407'):
    make(path, vae__scale=0.5)
  other = vae_files.to_arrays(vae_files.random(found.config, 1).params, found.config)
  other = make(write(tmp_path / 'other', other, settings))
  with pytest.raises(
    types.UserError, match='made with another autoencoder than vae.weights=.*other'
  ):
    opening.open_decoder(other, mesh)
