"""Training in latent space end to end with a tiny VAE: pictures of samples, refusals, resuming."""

import dataclasses
import functools
import json
import shutil
import types as python_types

from helpers import small, small_runs
import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image
import pytest
import safetensors.numpy

from diversedit_jax import modes, trees, types
from diversedit_jax.frozen import vae_files
from diversedit_jax.modes import identity, opening, run_context
from diversedit_jax.preparation import work
from diversedit_jax.training import writers

pytestmark = pytest.mark.usefixtures('compilation_cached')

STEPS, SIZE, SIDE = 4, small.SIZE, small.SIZE // small.CONFIG.factor
SMALL = {
  'method': 'flow',
  'model__skip__enabled': False,
  'train__steps': STEPS,
  'train__batch_size': 8,
  'optimizer__warmup_steps': 0,
  'optimizer__schedule': 'constant',
  'log__every': 1,
  'log__telemetry_every': 0,
  'log__tensorboard': False,
  'checkpoint__every': STEPS,
  'preview__every': STEPS,
  'preview__rows': 3,
  'preview__columns': 2,
  'sampler__kind': 'euler',
  'sampler__steps': 2,
  'sampler__guidance_scale': 1.0,
  'sample__number': 10,
  # As many as in a preview, so that both are made by one program.
  'sample__batch_size': 6,
}
TIMING = ('steps_per_second', 'images_per_second', 'seconds')


def write_vae(folder, config=small.CONFIG, seed=0, decoder_seed=None):
  """A file of random weights with its config.json; the decoder may have another seed."""
  arrays = vae_files.to_arrays(vae_files.random(config, seed).params, config)
  if decoder_seed is not None:
    other = vae_files.to_arrays(vae_files.random(config, decoder_seed).params, config)
    arrays |= {k: v for k, v in other.items() if k.startswith(('decoder.', 'post_quant_conv.'))}
  folder.mkdir()
  safetensors.numpy.save_file(arrays, folder / vae_files.FILE)
  settings = {
    'norm_num_groups': config.norm_groups,
    'scaling_factor': config.scale,
    'shift_factor': config.shift,
  }
  (folder / vae_files.SETTINGS).write_text(json.dumps(settings))
  return folder / vae_files.FILE


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """VAEs, a store of moments with twins, made of 24 pictures of which two are bad, and latents."""
  root = tmp_path_factory.mktemp('files')
  small.write_pictures(root / 'pictures')
  vae = write_vae(root / 'vae')
  asked = small.asked(root / 'store', source=f'folder:{root}/pictures', vae=vae, twins=True)
  assert work.run(asked).manifest.count == 22
  latents = np.random.default_rng(0).normal(size=(20, SIDE, SIDE, 2)).astype(np.float32)
  np.savez(root / 'latents.npz', latents=latents, labels=np.arange(20) % 3)
  wide = dataclasses.replace(small.CONFIG, latent_channels=4)
  asked = dataclasses.replace(asked, output=root / 'scaled', vae_scale=2.0)
  work.run(asked)
  return python_types.SimpleNamespace(
    vae=vae,
    store=f'store:{root}/store',
    scaled=f'store:{root}/scaled',
    arrays=f'arrays:{root}/latents.npz',
    wide=write_vae(root / 'wide', wide),
    other_encoder=write_vae(root / 'other', seed=1),
    other_decoder=write_vae(root / 'decoder', decoder_seed=1),
  )


def make(files, data='store', **changes):
  source = {'data__source': getattr(files, data), 'vae__weights': str(files.vae)}
  if data in ('store', 'scaled'):
    source |= {'data__size': SIZE, 'data__flip': True}
  return small_runs.make(**SMALL | source | changes)


@pytest.fixture(scope='module')
def runs(files, tmp_path_factory):
  """Runs by their data, trained and sampled."""

  @functools.cache
  def of(data):
    workdir, experiment = tmp_path_factory.mktemp(data) / 'run', make(files, data)
    modes.train.run(experiment, str(workdir))
    return python_types.SimpleNamespace(
      workdir=workdir,
      data=data,
      experiment=experiment,
      written=modes.sample.run(experiment, str(workdir), None),
      samples=small_runs.arrays(workdir / 'samples' / 'samples.npz'),
      card=json.loads((workdir / 'samples' / 'samples.json').read_text()),
    )

  return of


@pytest.fixture(params=['arrays', 'store'])
def run(request, runs):
  return runs(request.param)


def exact_levels(path, x_NHWC):
  """Levels of decoded latents before they are cut to whole numbers, in numpy."""
  autoencoder = vae_files.load(path)
  z_NHWC = x_NHWC / small.CONFIG.scale + small.CONFIG.shift
  pixels = np.asarray(jax.jit(autoencoder.decode)(autoencoder.params, z_NHWC), np.float64)
  return np.clip(255 * (pixels + 1) / 2, 0, 255)


def first_tile(path):
  """The first tile of a grid, [SIZE, SIZE, 3]; tiles of 32 px are shown twice as large."""
  page = np.asarray(Image.open(path))
  assert page.dtype == np.uint8 and page.shape[2] == 3
  line = (page[36 : 36 + 2 * SIZE] == 144).all(axis=(0, 2))  # The frame, left of the tile.
  left = int(np.argmax(line)) + 2
  return page[36 : 36 + 2 * SIZE : 2, left : left + 2 * SIZE : 2]


def test_samples_are_latents_and_their_pictures(run, files):
  assert set(run.samples) == {'latents', 'images', 'labels'}
  latents, pictures = run.samples['latents'], run.samples['images']
  assert latents.shape == (10, SIDE, SIDE, 2) and latents.dtype == np.float32
  assert pictures.shape == (10, SIZE, SIZE, 3) and pictures.dtype == np.uint8
  assert pictures.std() > 10  # Not all black or white, where any decoder would be right.
  exact = exact_levels(files.vae, latents)
  # Another program rounds otherwise, by 3e-4 of a level between the compiled decoder and the same
  # one uncompiled; so near to a whole number it may be cut to either side.
  sure = np.abs(exact - np.round(exact)) > 2e-3
  np.testing.assert_array_equal(pictures[sure], np.floor(exact)[sure])
  assert sure.mean() > 0.5  # The others are black or white, which is a whole number.
  assert np.abs(pictures - exact).max() <= 1 + 2e-3


def test_the_card_tells_the_vae_and_the_quantiser(run, files):
  autoencoder = vae_files.load(files.vae)
  assert run.card['vae'] == {
    'autoencoder': 'AutoencoderKL f4d2',
    'file': vae_files.FILE,
    'decoder_sha256': autoencoder.decoder_sha256,
    'scale': small.CONFIG.scale,
    'shift': small.CONFIG.shift,
    'dtype': 'float32',
    'tile': 64,
  }
  assert run.card['quantiser'] == 'truncate' and run.card['num_samples'] == 10


def test_a_card_from_before_the_autoencoder_had_a_name_is_of_the_same_samples(run, tmp_path):
  older = json.loads(json.dumps(run.card))
  del older['vae']['autoencoder']
  (tmp_path / 'samples.json').write_text(json.dumps(older))
  identity.check_card(tmp_path / 'samples.json', run.card, '')


def test_previews_and_grids_show_the_pictures(run):
  folder = run.workdir / 'samples'
  assert [path.name for path in run.written] == ['samples.npz', 'samples.json', 'grid.png']
  assert sorted(path.name for path in folder.iterdir()) == [
    'grid.png',
    'preview-00000004.png',
    'samples.json',
    'samples.npz',
  ]
  # Sample 0 has label 0 in both, and a sample is a function of its index and label.
  for name in ('grid.png', 'preview-00000004.png'):
    np.testing.assert_array_equal(first_tile(folder / name), run.samples['images'][0])


def decoded(experiment, latents):
  decoder = opening.open_decoder(experiment, run_context.make_mesh(experiment))
  return decoder(latents).astype(int)


@pytest.mark.parametrize(
  ('key', 'value'), [('scale', 0.4), ('shift', 0.5), ('dtype', 'bfloat16'), ('tile', 4)]
)
def test_every_key_of_the_vae_matters(files, key, value):
  latents = np.random.default_rng(1).normal(size=(3, SIDE, SIDE, 2)).astype(np.float32)
  usual = decoded(make(files, 'arrays'), latents)
  other = decoded(make(files, 'arrays', **{f'vae__{key}': value}), latents)
  assert (other != usual).mean() > 0.02  # Rounding alone changes a level in a thousand.


def test_without_weights_samples_stay_latents(run, files, tmp_path):
  checkpoint = str(run.workdir / 'checkpoints' / str(STEPS))
  written = modes.sample.run(make(files, run.data, vae__weights=''), str(tmp_path), checkpoint)
  assert [path.name for path in written] == ['samples.npz', 'samples.json']
  np.testing.assert_array_equal(small_runs.arrays(written[0])['latents'], run.samples['latents'])


def test_a_run_is_neither_continued_nor_sampled_with_latents_of_another_scale(runs, files):
  """A store of the same pictures and moments may have taken the place of the other."""
  run, other = runs('store'), make(files, 'scaled')
  message = r'latents.scale: stored \[0.5, 0.5\], given \[2.0, 2.0\]'
  with pytest.raises(types.UserError, match=f'was trained on latents of another space.*{message}'):
    modes.sample.run(other, str(run.workdir), None)
  checkpoint = str(run.workdir / 'checkpoints' / str(STEPS))
  with pytest.raises(types.UserError, match=message):
    modes.sample.run(other, str(run.workdir.parent / 'elsewhere'), checkpoint)
  swapped = dataclasses.replace(make(files), source=other.source)
  with pytest.raises(types.UserError, match='learns from other data'):
    modes.train.run(swapped, str(run.workdir))


def test_a_run_is_sampled_with_its_data_elsewhere(runs, files, tmp_path):
  run, folder = runs('store'), files.store.removeprefix('store:')
  shutil.copytree(folder, tmp_path / 'moved')
  for source in (f'store:{tmp_path}/moved', f'synthetic:{SIDE}x{SIDE}x2:3:64'):
    experiment = make(files, 'arrays', data__source=source)
    modes.sample.run(experiment, str(tmp_path / 'out'), str(run.workdir / f'checkpoints/{STEPS}'))
    made = small_runs.arrays(tmp_path / 'out' / 'samples' / 'samples.npz')
    np.testing.assert_array_equal(made['latents'], run.samples['latents'])


def test_another_decoder_of_the_same_encoder_is_accepted(run, files, tmp_path):
  checkpoint = str(run.workdir / 'checkpoints' / str(STEPS))
  experiment = make(files, run.data, vae__weights=str(files.other_decoder))
  modes.sample.run(experiment, str(tmp_path), checkpoint)
  made = small_runs.arrays(tmp_path / 'samples' / 'samples.npz')
  np.testing.assert_array_equal(made['latents'], run.samples['latents'])
  assert (made['images'] != run.samples['images']).mean() > 0.5
  card = json.loads((tmp_path / 'samples' / 'samples.json').read_text())
  expected = vae_files.load(files.other_decoder)
  assert card['vae']['decoder_sha256'] == expected.decoder_sha256
  assert card['vae']['decoder_sha256'] != run.card['vae']['decoder_sha256']


def test_latents_that_the_decoder_cannot_take_are_named(run, files):
  experiment = make(files, run.data)
  latents = run.samples['latents'].copy()
  latents[9, 0, 0, 0] = np.inf
  message = f'{vae_files.FILE} makes values that are not finite of samples 8 to 9'
  with pytest.raises(types.UserError, match=message):
    decoded(experiment, latents)


# data, changes, what the message holds
REFUSED = {
  'no file': ('store', lambda _: {'vae__weights': 'absent'}, ['autoencoder', 'there is no absent']),
  'not a VAE': (
    'arrays',
    lambda files: {'vae__weights': files.arrays.removeprefix('arrays:')},
    ['latents.npz', 'not the weights of'],
  ),
  'other channels': (
    'arrays',
    lambda files: {'vae__weights': str(files.wide)},
    ['vae.weights=', 'wide', '4 latent channels', 'the model makes 2'],
  ),
  'other encoder': (
    'store',
    lambda files: {'vae__weights': str(files.other_encoder)},
    ['store/store was made with another autoencoder', 'vae.weights=', 'other', vae_files.FILE],
  ),
}


@pytest.mark.parametrize('case', REFUSED)
@pytest.mark.parametrize('mode', ['train', 'sample'])
def test_impossible_is_refused_before_the_workdir_is_touched(files, tmp_path, mode, case):
  data, changes, fragments = REFUSED[case]
  workdir = tmp_path / 'run'
  with pytest.raises(types.UserError) as error:
    experiment = make(files, data, **changes(files))
    if mode == 'train':
      modes.train.run(experiment, str(workdir))
    else:
      modes.sample.run(experiment, str(workdir), None)
  missing = [text for text in fragments if text not in str(error.value)]
  assert not missing, str(error.value)
  assert not workdir.exists()


# Where the examples of a run are held.
PLACES = {
  'none': {},
  'host': {'data__resident': 'host'},
  'device': {'data__resident': 'device'},
  'worker': {'data__workers': 1},
}


@pytest.fixture
def straight(runs):
  """Four steps on the store at once; 22 examples, 8 to a batch: the third crosses two epochs."""
  return runs('store').workdir


@pytest.fixture(scope='module')
def halves(files, tmp_path_factory):
  """Runs of two steps by the place of their examples."""

  @functools.cache
  def of(place):
    workdir = tmp_path_factory.mktemp(place) / 'run'
    options = {'train__steps': 2, 'preview__every': 0, **PLACES[place]}
    modes.train.run(make(files, **options), str(workdir))
    return workdir

  return of


def losses(workdir):
  rows = writers.read_jsonl(workdir / 'metrics.jsonl')
  return [{k: v for k, v in row.items() if k not in TIMING} for row in rows]


def state(workdir):
  """Every array of the last checkpoint by name."""
  folder = workdir / 'checkpoints' / str(STEPS)
  with ocp.StandardCheckpointer() as reader:
    parts = {name: reader.restore(folder / name) for name in ('params', 'ema', 'opt')}
  return {name: np.asarray(leaf) for name, leaf in trees.named_leaves(parts).items()}


@pytest.mark.parametrize(
  ('first', 'then'),
  [
    ('none', 'host'),
    ('none', 'device'),
    ('host', 'none'),
    ('device', 'worker'),
  ],
)
def test_a_run_continues_bit_for_bit_wherever_its_examples_are(
  files, straight, halves, tmp_path, first, then
):
  workdir = tmp_path / 'run'
  shutil.copytree(halves(first), workdir)
  modes.train.run(make(files, preview__every=0, **PLACES[then]), str(workdir))
  found, expected = losses(workdir), losses(straight)
  assert [row['step'] for row in expected] == [1, 2, 3, 4] and found == expected
  found, expected = state(workdir), state(straight)
  assert set(found) == set(expected) and len(expected) > 50
  for name, array in expected.items():
    np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_mirror_images_are_learnt_from(files, straight, tmp_path):
  """So that the comparisons above would see a lost one."""
  modes.train.run(make(files, preview__every=0, data__flip=False), str(tmp_path / 'run'))
  assert losses(tmp_path / 'run')[0] != losses(straight)[0]
