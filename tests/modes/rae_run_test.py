"""Training on latents that a tiny encoder makes of pictures in the step, from start to scores."""

import dataclasses
import json
import pickle
import types as python_types

from helpers import encoder_files, picture_eval, small_runs, torch_zip
import jax
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import modes, types
from diversedit_jax.data.store import verify
from diversedit_jax.experiment import published
from diversedit_jax.frozen import rae, rae_decoder
from diversedit_jax.frozen.encoders import base, dinov2, preprocess
from diversedit_jax.modes import export
from diversedit_jax.preparation import options, work

tiny_inception = picture_eval.tiny_inception  # Looks at 16 x 16 pixels.
pytestmark = pytest.mark.usefixtures('compilation_cached')

NAME, WIDTH, PIXELS, STEPS = 'tiny-vit', 12, 32, 4
CONFIG = dataclasses.replace(
  dinov2.CONFIGS['dinov2reg-vit-b'], width=WIDTH, depth=2, heads=2, hidden=16, table=3
)
DECODER = rae_decoder.DecoderConfig(
  latent=WIDTH, width=16, depth=2, heads=2, hidden=24, grid=2, patch=8
)


def make_encoder(request):
  """The encoder NAME, which reads the file of the one whose layout it has."""
  return dataclasses.replace(dinov2.FAMILY.make('dinov2reg-vit-b', CONFIG, request), name=NAME)


base.register(NAME, make_encoder)
SMALL = {
  'method': 'flow',
  'data__size': PIXELS,
  'data__flip': True,
  'data__space': 'latents',  # What the encoder makes, not what the source has.
  'rae__encoder': NAME,
  'model__patch_size': 1,
  'model__skip__enabled': False,
  'train__steps': STEPS,
  'train__batch_size': 8,
  'optimizer__warmup_steps': 0,
  'optimizer__schedule': 'constant',
  'log__every': 1,
  'log__telemetry_every': 2,
  'log__tensorboard': False,
  'checkpoint__every': 2,
  'preview__every': STEPS,
  'preview__rows': 3,
  'preview__columns': 2,
  'sampler__kind': 'euler',
  'sampler__steps': 2,
  'sampler__guidance_scale': 1.0,
  'sample__number': 6,
  'sample__batch_size': 6,
  'eval__name': 'fid',
  'eval__number': 6,
  'eval__batch_size': 8,
  'eval__kid_subsets': 2,
}


def write_decoder(folder, seed=0, **sizes):
  """Random weights by the authors' names, with their config.json."""
  config = dataclasses.replace(DECODER, **sizes)
  shapes = rae_decoder.LAYOUT.shapes(rae_decoder.flat_shapes(config))
  arrays = {}
  for name, array in encoder_files.random_arrays(shapes, seed).items():
    if '.qkv.' in name:
      parts = np.split(array, 3)
      arrays |= {name.replace('.qkv.', f'.{p}.'): x for p, x in zip(NAMES, parts, strict=True)}
    else:
      arrays[name] = array
  folder.mkdir()
  (folder / 'config.json').write_text('{"decoder_num_attention_heads": 2}')
  torch_zip.write(folder / 'model.pt', torch_zip.tensors({k: x / 4 for k, x in arrays.items()}))
  return folder


NAMES = ('query', 'key', 'value')


def write_statistics(path, seed):
  rng = np.random.default_rng(seed)
  shape = (WIDTH, PIXELS // 16, PIXELS // 16)
  arrays = {'mean': 0.1 * rng.normal(size=shape), 'var': rng.uniform(0.5, 2, shape)}
  torch_zip.write(path, torch_zip.tensors({k: x.astype(np.float32) for k, x in arrays.items()}))
  return str(path)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Pictures, weights of the encoder and of another, statistics and others, decoders."""
  root = tmp_path_factory.mktemp('files')
  picture_eval.write_pictures(root / 'pictures')
  published_name = dinov2.published('dinov2reg-vit-b').file
  for name, seed in (('encoder', 1), ('other-encoder', 2)):
    (root / name).mkdir()
    arrays = encoder_files.random_arrays(dinov2.FAMILY.shapes(CONFIG), seed)
    encoder_files.write(root / name / published_name, {k: x / 4 for k, x in arrays.items()})
  return python_types.SimpleNamespace(
    root=root,
    encoder=str(root / 'encoder'),
    other_encoder=str(root / 'other-encoder'),
    statistics=write_statistics(root / 'stat.pt', 0),
    other_statistics=write_statistics(root / 'other.pt', 1),
    decoder=str(write_decoder(root / 'decoder')),
    wide=str(write_decoder(root / 'wide', latent=WIDTH + 1)),
  )


def config_of(files, **changes):
  pictures = f'folder:{files.root}/pictures'
  given = {
    'data__source': pictures,
    'eval__reference': pictures,
    'rae__weights': files.encoder,
    'rae__statistics': files.statistics,
    'rae__decoder': files.decoder,
  }
  return small_runs.make_config(**SMALL | given | changes)


def make(files, **changes):
  return experiment_lib.build(config_of(files, **changes))


@pytest.fixture(scope='module')
def run(files, tmp_path_factory):
  """A trained run and its samples."""
  workdir, experiment = tmp_path_factory.mktemp('rae') / 'run', make(files)
  modes.train.run(experiment, str(workdir))
  modes.sample.run(experiment, str(workdir), None)
  return python_types.SimpleNamespace(
    workdir=workdir,
    samples=small_runs.arrays(workdir / 'samples' / 'samples.npz'),
    card=json.loads((workdir / 'samples' / 'samples.json').read_text()),
    checkpoint=str(workdir / 'checkpoints' / str(STEPS)),
  )


def test_the_model_makes_latents_of_the_grid_and_the_step_makes_them_of_pixels(files):
  experiment = make(files)
  assert experiment.architecture.input_size == (2, 2) and experiment.source.space == 'latents'
  assert experiment.architecture.channels == WIDTH and experiment.source.scaling is None
  flips = np.array([True, False, True])
  batch = experiment.source.gather(np.arange(3), flips)
  assert set(batch) == {'pixels', 'labels'}
  sent = pickle.loads(pickle.dumps(experiment.source))  # As worker processes get it.
  np.testing.assert_array_equal(sent.gather(np.arange(3), flips)['pixels'], batch['pixels'])
  found = experiment.objective.encode(experiment.objective.frozen(), batch)['latents']
  # By hand: the encoder of mirrored pictures, without scale and bias, then the statistics.
  raw = small_runs.make(
    **{k: v for k, v in SMALL.items() if not k.startswith('rae')}
    | {
      'data__source': f'folder:{files.root}/pictures',
      'data__space': 'pixels',
      'model__patch_size': 4,
    }
  ).source
  pixels = raw.gather(np.arange(3))['images']
  pixels[flips] = pixels[flips][:, :, ::-1]
  request = encoder_files.request_of((PIXELS, PIXELS), weights=files.encoder)
  encoder = base.open_encoder(NAME, dataclasses.replace(request, plain_norm=True))
  tokens = encoder.apply(encoder.load(), pixels.astype(np.float32) / np.float32(127.5) - 1).tokens
  over = rae.statistics(files.statistics, WIDTH).over((2, 2, WIDTH))
  expected = (np.asarray(tokens).reshape(3, 2, 2, WIDTH) - over['mean']) / over['std']
  np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


def test_samples_are_decoded_and_the_card_names_what_decoded_them(run, files):
  latents, pictures = run.samples['latents'], run.samples['images']
  assert latents.shape == (6, 2, 2, WIDTH) and pictures.shape == (6, 16, 16, 3)
  assert pictures.dtype == np.uint8 and pictures.std() > 10
  decoder = rae_decoder.load(files.decoder)
  over = rae.statistics(files.statistics, WIDTH).over((2, 2, WIDTH))
  made = jax.jit(lambda p, z: rae_decoder.decode(p, z, DECODER))(
    decoder.params, latents * over['std'] + over['mean']
  )
  pixels = np.asarray(made, np.float64) * preprocess.IMAGENET_STD + preprocess.IMAGENET_MEAN
  exact = np.clip(255 * pixels, 0, 255)
  sure = np.abs(exact - np.round(exact)) > 2e-3  # Others may be cut to either side.
  np.testing.assert_array_equal(pictures[sure], np.floor(exact)[sure])
  card = run.card['rae']
  assert card['decoder_sha256'] == decoder.sha256 and card['file'] == 'model.pt'
  assert card['encoder'] == NAME and card['pixels'] == 'imagenet'
  data = json.loads((run.workdir / 'data.json').read_text())
  assert data['space'] == 'latents' and data['latents']['encoder'] == NAME
  assert card['statistics']['sha256'] == data['latents']['statistics_sha256']
  assert len(data['latents']['encoder_sha256']) == len(card['statistics']['sha256']) == 64
  assert Image.open(run.workdir / 'samples' / f'preview-{STEPS:08d}.png').size[0] > 16


def test_a_run_that_was_interrupted_ends_with_the_same_bits(run, files, tmp_path):
  modes.train.run(make(files, train__steps=2, preview__every=0), str(tmp_path / 'run'))
  modes.train.run(make(files), str(tmp_path / 'run'))
  modes.sample.run(make(files), str(tmp_path / 'run'), None)
  found = small_runs.arrays(tmp_path / 'run' / 'samples' / 'samples.npz')
  for name, array in run.samples.items():
    np.testing.assert_array_equal(found[name], array)


def test_decoded_samples_are_scored_against_pictures(run, files, tmp_path):
  experiment = make(files, data__size=PIXELS)
  written = modes.evaluate.run(experiment, str(tmp_path), run.checkpoint)
  result = json.loads(written[0].read_text())
  assert np.isfinite(result['scores']['fid']) and result['protocol']['rae']['encoder'] == NAME


def test_a_run_goes_on_with_its_encoder_and_statistics_alone(run, files):
  for key in ('encoder', 'statistics'):
    name = 'weights' if key == 'encoder' else key
    other = make(files, **{f'rae__{name}': getattr(files, f'other_{key}'), 'train__steps': 6})
    with pytest.raises(types.UserError, match=f'learns from other data.*{key}_sha256'):
      modes.train.run(other, str(run.workdir))


def test_samples_need_no_encoder_but_the_statistics(run, files, tmp_path):
  modes.sample.run(make(files, rae__weights=''), str(tmp_path / 'a'), run.checkpoint)
  found = small_runs.arrays(tmp_path / 'a' / 'samples' / 'samples.npz')
  np.testing.assert_array_equal(found['images'], run.samples['images'])
  other = make(files, rae__statistics=files.other_statistics)
  with pytest.raises(types.UserError, match='statistics_sha256'):
    modes.sample.run(other, str(tmp_path / 'b'), run.checkpoint)
  with pytest.raises(types.UserError, match='needs dinov2_vitb14_reg4'):
    modes.train.run(make(files, rae__weights=''), str(tmp_path / 'c'))


def test_an_exported_folder_is_sampled_without_the_pictures(run, files, tmp_path):
  export.run(make(files), str(tmp_path / 'given'), run.checkpoint)
  config = published.config(tmp_path / 'given')
  config.rae.decoder, config.rae.statistics = files.decoder, files.statistics
  config.sample.batch_size = config.sample.number = 6
  made = experiment_lib.build(config)
  assert made.source.tokenizer is None and made.source.shape == (2, 2, WIDTH)
  modes.sample.run(made, str(tmp_path / 'out'), str(tmp_path / 'given'))
  found = small_runs.arrays(tmp_path / 'out' / 'samples' / 'samples.npz')
  np.testing.assert_array_equal(found['images'], run.samples['images'])
  assert 'rae.decoder' in (tmp_path / 'given' / 'README.md').read_text()
  config.rae.statistics = files.other_statistics
  with pytest.raises(types.UserError, match='rae.statistics=.*are not those of'):
    modes.sample.run(experiment_lib.build(config), str(tmp_path / 'b'), str(tmp_path / 'given'))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'rae__encoder': 'dino'}, "no encoder 'dino'"),
    ({'rae__patch': 8}, 'gives 4 tokens, but the model has 4x4'),
    ({'rae__patch': 5}, 'rae.patch=5 does not divide'),
    ({'rae__encoder': ''}, "data.space='latents'.*are pixels; make a store.* or give rae.encoder"),
    (
      {'rae__encoder': '', 'data__space': None},
      'rae.decoder=.*are pixels: give rae.encoder',
    ),
    ({'data__space': 'pixels'}, f"data.space='pixels', but {NAME} of .* are latents$"),
    ({'vae__weights': 'sd-vae'}, 'vae.weights.*give rae.decoder'),
    ({'data__source': 'synthetic:4x4x4:3', 'data__size': None}, 'looks at pixels'),
  ],
)
def test_what_does_not_go_together_is_refused(files, changes, message):
  with pytest.raises(types.UserError, match=message):
    make(files, **changes)


def test_a_decoder_of_other_tokens_is_refused(files, tmp_path):
  with pytest.raises(types.UserError, match='tokens of 13 channels, but the model makes 12'):
    modes.train.run(make(files, rae__decoder=files.wide), str(tmp_path / 'run'))


def test_statistics_are_measured_over_all_pictures(files, tmp_path):
  experiment = make(files, rae__statistics='', eval__batch_size=7)
  (path,) = modes.stats.run(experiment, str(tmp_path))
  batch = experiment.source.gather(np.arange(30))
  tokens = experiment.objective.encode(experiment.objective.frozen(), batch)['latents']
  found = rae.statistics(path, WIDTH).over((2, 2, WIDTH))
  np.testing.assert_allclose(found['mean'], tokens.mean(axis=0), rtol=0, atol=1e-5)
  np.testing.assert_allclose(found['std'], np.sqrt(tokens.var(axis=0) + 1e-5), rtol=1e-4)


@pytest.fixture(scope='module')
def store(files):
  """The same latents, stored, with pixels beside and those of mirror images."""
  asked = options.Options(
    source=f'folder:{files.root}/pictures',
    output=files.root / 'store',
    rae=NAME,
    rae_weights=files.encoder,
    rae_statistics=files.statistics,
    size=PIXELS,
    store='both',
    twins=True,
    batch_size=8,
    threads=1,
  )
  assert work.run(asked).manifest.plan.columns['latents'].shape == (2, 2, WIDTH)
  return f'store:{asked.output}'


def test_a_store_has_the_latents_that_the_step_makes(run, files, store, tmp_path):
  report = verify.verify(files.root / 'store')
  assert not report.faults and len(report.mean) == WIDTH
  stored, online = make(files, data__source=store), make(files)
  assert stored.source.tokenizer is None and not stored.objective.encoders
  flips = np.arange(8) % 2 == 0
  batch = online.source.gather(np.arange(8), flips)
  expected = online.objective.encode(online.objective.frozen(), batch)['latents']
  given = stored.source.gather(np.arange(8), flips)['latents']
  assert given.dtype == np.float16
  np.testing.assert_allclose(given, expected, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(
    report.mean,
    np.mean(
      [stored.source.gather(np.arange(30), np.full(30, flip))['latents'] for flip in (False, True)],
      axis=(0, 1, 2, 3),
      dtype=np.float64,
    ),
    atol=1e-6,
  )
  draw = stored.objective.draw(stored.source.gather(np.arange(8)), jax.random.key(0))
  assert draw.x_t.dtype == draw.target.dtype == np.float32
  # A run of one is sampled with the other.
  modes.sample.run(stored, str(tmp_path / 'out'), run.checkpoint)
  found = small_runs.arrays(tmp_path / 'out' / 'samples' / 'samples.npz')
  np.testing.assert_array_equal(found['images'], run.samples['images'])


def test_repa_looks_at_the_pixels_beside_with_the_norm_of_its_encoder(files):
  own = {'method': 'repa', 'repa__pairs': f'{NAME}@1', 'repa__weights': files.encoder}
  experiment = make(files, **own)
  names = [e.name for e in experiment.objective.encoders]
  assert names == ['rae', NAME] and experiment.objective.flow_only().encoders[0].name == 'rae'
  batch = experiment.source.gather(np.arange(2))
  found = experiment.objective.encode(experiment.objective.frozen(), batch)
  assert found['latents'].shape == (2, 2, 2, WIDTH) and f'{NAME}/tokens' in found
  plain = np.asarray(found[f'{NAME}/tokens']).mean(axis=-1)
  assert np.abs(plain).max() > 1e-3  # With scale and bias, as REPA's are.
