"""Impossible values outside the methods, of data, network and run, are refused by name."""

from helpers import config_changes
import pytest

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.data import latents, sources

compiler_out_of_reach = config_changes.compiler_out_of_reach

LATENTS = {'data.source': 'synthetic:8x8x4:10'}

# changes -> what the message must hold: the name, what was found, what was expected
REFUSED = [
  ({'seed': -1}, ['config.seed', 'at least 0', '-1']),
  (
    {'sampler.kind': 'average_velocity', 'sampler.guidance_scale': 1.0},
    ["kind='average_velocity'", 'predicts averages', 'method=meanflow'],
  ),
  ({'interpolant.prediction': 'speed'}, ["'speed'", 'noise, score, velocity']),
  ({'interpolant.prediction': 'noise'}, ["'noise' gives no velocity at t = 1", 'start=0.999']),
  ({'interpolant.weighting': 'likelihood'}, ["weighting='likelihood'", 'a velocity has weight 1']),
  (
    {'interpolant.prediction': 'noise', 'interpolant.weighting': 'min-snr'},
    ['interpolant.weighting', "'min-snr'", 'likelihood'],
  ),
  ({'model.time_input': 'ddpm'}, ["time_input='ddpm'", 'path=vp', "'linear'"]),
  ({'model.time_input': 'steps'}, ['model.time_input', "'steps'", 'ddpm']),
  ({'sampler.start': 0.3}, ['sampler.start=0.3', '(0.5, 1]']),
  ({'sampler.times': (1.0, 0.5, 0.7, 0.0)}, ['sampler.times', 'falling times from start=1.0']),
  ({'sampler.times': (1.0, 0.5, 0.0)}, ['has 2 steps', 'sampler.steps=20']),
  (
    {'sampler.kind': 'euler_maruyama', 'sampler.steps': 2, 'sampler.times': (1.0, 0.5, 0.0)},
    ['sampler.times', 'the SDE has its own grid'],
  ),
  ({'sampler.class_token_scale': -1.0}, ['class_token_scale=-1.0', '>= 0']),
  ({'train.accumulate': 3}, ['train.batch_size=64', 'not divisible by train.accumulate=3']),
  ({'sampler.class_token_scale': 2.0}, ['class_token_scale=2.0', 'method=reg', "'flow+diverse'"]),
  ({'data.source': 'digit'}, ["'digit'", "did you mean 'digits'"]),
  ({'data.source': 'arrays:absent.npz'}, ['absent.npz', 'no such file', 'expected an .npz']),
  ({'data.prefetch': 0}, ['data.prefetch', 'at least 1', 'got 0']),
  ({'data.threads': 0}, ['data.threads', 'at least 1', 'got 0']),
  ({'data.workers': -1}, ['data.workers', 'at least 0', 'got -1']),
  ({'data.crop': 'amd'}, ['data.crop', "'amd'", "did you mean 'adm'"]),
  ({'data.orientation': 'exfi'}, ['data.orientation', "'exfi'", "did you mean 'exif'"]),
  ({'data.resident': 'hots'}, ['data.resident', "'hots'", "did you mean 'host'"]),
  (
    {'data.workers': 2, 'data.resident': 'host'},
    ['data.workers=2', "data.resident='host'", 'needs no worker processes'],
  ),
  ({'data.size': 32}, ['data.size=32', 'digits/train', '8x8']),
  (
    {'data.source': 'synthetic:4x4x4+32x16x3:10', 'data.size': 32, 'method': 'repa'},
    ['data.size=32', 'synthetic/4x4x4', '32x16'],
  ),
  ({'data.num_classes': 9}, ["'digits' has 10 classes", 'expected 9']),
  ({'data.flip': True, **LATENTS}, ['data.flip=True', 'synthetic/8x8x4', 'store with --twins']),
  ({'data.source': 'folder:absent'}, ["'folder:absent'", 'set data.size']),
  ({'data.source': 'folder:absent', 'data.size': 8}, ['absent', 'no such folder']),
  ({'data.source': 'store:absent'}, ['absent', 'is no store']),
  ({'vae.dtype': 'bfloat'}, ['vae.dtype', "'bfloat'", "did you mean 'bfloat16'"]),
  ({'vae.tile': -1}, ['vae.tile', 'at least 0', 'got -1']),
  ({'vae.tile': 1}, ['vae.tile', '1']),  # Tiles overlap, by less than their side.
  ({'vae.scale': 0.0}, ['vae.scale', 'positive', 'got 0.0']),
  ({'vae.scale': -0.5}, ['vae.scale', 'positive', 'got -0.5']),
  ({'vae.weights': 'vae.npz'}, ["vae.weights='vae.npz'", 'digits/train are pixels']),
  ({'model.size': 'S/3'}, ["model size 'S/3'", "did you mean 'S/8'"]),
  (
    {'model.size': 'S/2'},
    ["size='S/2'", "{'depth': 6, 'width': 96, 'heads': 4}", 'contradict', 'set size to ""'],
  ),
  ({'model.depth': 0}, ['model.depth', 'at least 1', 'got 0']),
  ({'model.depth': 5}, ['long skips', 'even depth', 'got 5']),
  ({'model.heads': 7}, ['7 heads', 'width 96']),
  ({'model.width': 6, 'model.heads': 1}, ['divisible by 4', 'got 6']),
  ({'model.patch_size': 3}, ['input size 8x8', 'patch size 3']),
  ({'model.mlp_ratio': 0.0}, ['model.mlp_ratio', 'positive', '0.0']),
  ({'model.unroll': -1}, ['model.unroll', 'not be negative', 'got -1']),
  ({'model.dtype': 'bfloat'}, ['model.dtype', "'bfloat'", "did you mean 'bfloat16'"]),
  ({'model.residual_dtype': 'float'}, ['model.residual_dtype', "'float'", "'float32'"]),
  ({'model.attention': 'xlaa'}, ['attention', "'xlaa'", "did you mean 'xla'"]),
  ({'model.remat': 'ful'}, ['model.remat', "'ful'", "did you mean 'full'"]),
  ({'model.skip.placement': 'aftr'}, ['model.skip.placement', "'aftr'", "did you mean 'after'"]),
  ({'interpolant.path': 'liner'}, ['interpolant.path', "'liner'", "did you mean 'linear'"]),
  ({'interpolant.time_law': 'unifrom'}, ['time_law', "'unifrom'", "did you mean 'uniform'"]),
  ({'interpolant.time_mean': -0.4}, ["time_law='uniform'", 'no mean', '-0.4', 'time_mean=0.0']),
  ({'interpolant.time_std': 2.0}, ["time_law='uniform'", 'deviation', '2.0', 'time_std=1.0']),
  (
    {'interpolant.time_law': 'stratified', 'interpolant.time_mean': 1.0},
    ["time_law='stratified'", 'no mean'],
  ),
  (
    {'interpolant.time_law': 'lognormal', 'interpolant.time_std': 0.0},
    ['std', '0.0', 'positive standard deviation'],
  ),
  (
    {'interpolant.path': 'vp', 'interpolant.epsilon': 1e-7},
    ['interpolant.epsilon=1e-07', 'too small', "'vp' needs 1e-05"],
  ),
  ({'interpolant.epsilon': 0.5}, ['epsilon=0.5', '< 0.5']),
  ({'model.depth': 1, 'model.skip.enabled': False}, ['depth of at least 2', 'got 1']),
  ({'train.steps': 0}, ['train.steps', 'at least 1', 'got 0']),
  ({'train.batch_size': 1443}, ['train.batch_size=1443', 'digits/train', '1442']),
  ({'train.accumulate': 0}, ['train.accumulate', 'at least 1', 'got 0']),
  ({'train.label_dropout': 1.0}, ['train.label_dropout', '[0, 1)', '1.0']),
  ({'train.ema_decay': 1.0}, ['train.ema_decay', '[0, 1)', '1.0']),
  ({'optimizer.learning_rate': -1.0}, ['optimizer.learning_rate', 'negative', '-1.0']),
  ({'optimizer.b2': 1.0}, ['optimizer.b2', '[0, 1)', '1.0']),
  ({'optimizer.schedule': 'cosin'}, ['optimizer.schedule', "'cosin'", "did you mean 'cosine'"]),
  ({'optimizer.warmup_steps': 1200}, ['warmup_steps=1200', 'train.steps=1200']),
  ({'mesh.fsdp': 0}, ['mesh.fsdp', 'positive or -1', 'got 0']),
  ({'log.every': 0}, ['log.every', 'at least 1', 'got 0']),
  ({'log.telemetry_every': -1}, ['log.telemetry_every', 'at least 0', '-1']),
  ({'log.telemetry_examples': 0}, ['log.telemetry_examples', 'at least 1', 'got 0']),
  ({'checkpoint.every': 0}, ['checkpoint.every', 'at least 1', 'got 0']),
  ({'checkpoint.keep': 0}, ['checkpoint.keep', 'at least 1', 'got 0']),
  ({'checkpoint.keep_every': -1}, ['checkpoint.keep_every', 'at least 0', '-1']),
  ({'preview.every': -1}, ['preview.every', 'at least 0', '-1']),
  ({'preview.rows': 0}, ['preview.rows', 'at least 1', 'got 0']),
  ({'preview.columns': 0}, ['preview.columns', 'at least 1', 'got 0']),
  ({'sampler.kind': 'hein'}, ['sampler.kind', "'hein'", "did you mean 'heun'"]),
  ({'sampler.steps': 0}, ['heun', 'steps=0', 'at least 1']),
  ({'sampler.diffusion': 'sigm'}, ['diffusion', "'sigm'", "did you mean 'sigma'"]),
  ({'sampler.last_step': 1.0}, ['last_step=1.0', 'between 0 and 1']),
  ({'sampler.guidance_scale': -1.0}, ['guidance scale', '-1.0', '>= 0']),
  ({'sampler.guidance_low': 0.8, 'sampler.guidance_high': 0.7}, ['[0.8, 0.7]', 'low <= high']),
  ({'sampler.guidance_channels': 3}, ['guidance_channels=3', 'digits/train', '1 channels']),
  ({'sample.seed': -1}, ['sample.seed', 'at least 0', '-1']),
  ({'sample.seed': 2**32}, ['sample.seed', 'below 2**32', '4294967296']),
  ({'sample.batch_size': 0}, ['sample.batch_size', 'at least 1', 'got 0']),
  ({'sample.weights': 'em'}, ['sample.weights', "'em'", "did you mean 'ema'"]),
  ({'sample.number': 0}, ['sample.number', 'at least 1', 'got 0']),
  ({'sample.labels': 'balance'}, ["sample.labels='balance'", "'balanced', 'random'"]),
  ({'sample.labels': '10'}, ["sample.labels='10'", 'class below 10']),
  (
    {'sample.matmul_precision': 'hihgest'},
    ['sample.matmul_precision', "'hihgest'", "did you mean 'highest'"],
  ),
  ({'eval.name': 'a/b'}, ["eval.name='a/b'", 'names a file']),
  ({'eval.name': ''}, ["eval.name=''", 'names a file']),
  ({'eval.name': '{steps}'}, ["eval.name='{steps}'", 'names a file']),
  ({'eval.number': 1}, ['eval.number', 'at least 2', 'got 1']),
  ({'eval.number': 3, 'eval.reference': 'x.npz'}, ['eval.number', 'at least 4', 'got 3']),
  ({'eval.every_number': 3, 'eval.reference': 'x.npz'}, ['eval.every_number', 'at least 4']),
  ({'sweep.number': 3, 'eval.reference': 'x.npz'}, ['sweep.number', 'at least 4', 'got 3']),
  (
    {'eval.number': 1, 'eval.reference': 'x.npz', 'eval.precision_recall': 'none'},
    ['eval.number', 'at least 2', 'got 1'],
  ),
  ({'eval.labels': 'balance'}, ["eval.labels='balance'", "'balanced', 'random'"]),
  ({'eval.labels': '10'}, ["eval.labels='10'", 'class below 10']),
  ({'eval.quantiser': 'round'}, ['eval.quantiser', "'round'", "did you mean 'round_half'"]),
  ({'eval.best': 'fdi'}, ['eval.best', "'fdi'", "did you mean 'fid'"]),
  ({'eval.batch_size': 0}, ['batch_size must be at least 1', 'got 0']),
  ({'eval.kid_subsets': -1}, ['kid_subsets must be at least 0', 'got -1']),
  ({'eval.precision_recall': 'float61'}, ['precision_recall', "'float61'", "'float16'"]),
  ({'eval.every': -1}, ['eval.every', 'at least 0', 'got -1']),
  ({'eval.every_number': 1}, ['eval.every_number', 'at least 2', 'got 1']),
  ({'eval.every': 5, 'eval.reference': ''}, ['eval.every=5', 'needs eval.reference']),
  ({'eval.encoder': 'pca'}, ["eval.encoder='pca'", 'needs eval.encoder_weights']),
  ({'eval.encoder_weights': 'x'}, ["eval.encoder_weights='x'", 'is for eval.encoder']),
  ({'eval.encoder_reference': 'x'}, ["eval.encoder_reference='x'", 'is for eval.encoder']),
  ({'sweep.number': 1}, ['sweep.number', 'at least 2', 'got 1']),
  ({'sweep.score': 'fdi'}, ['sweep.score', "'fdi'", "did you mean 'fid'"]),
  ({'sweep.guidance_scales': ()}, ['sweep.guidance_scales', 'different numbers', 'got ()']),
  ({'sweep.guidance_highs': (0.5, 0.5)}, ['sweep.guidance_highs', 'different', '(0.5, 0.5)']),
  ({'sweep.guidance_lows': (1.5,)}, ['sweep.guidance_lows=(1.5,)', 'all above', '(0.7, 1.0)']),
  ({'analysis.view': 'men'}, ['view', "'men'", "did you mean 'mean'"]),
  ({'analysis.examples': 3}, ['at least 4 examples', 'examples=3']),
  ({'analysis.times': (0.5, 1.5)}, ['times in [0, 1]', '(0.5, 1.5)']),
  ({'analysis.bandwidth': 0.0}, ['bandwidth', '> 0', '0.0']),
  ({'plan.devices': 0}, ['devices >= 1', 'devices=0']),
  ({'plan.mfu': 1.5}, ['mfu <= 1', 'mfu=1.5']),
  ({'plan.compile_for': 'h300'}, ["'h300'", 'h200']),
]


@pytest.mark.parametrize(('changes', 'fragments'), REFUSED, ids=lambda x: str(x)[:60])
def test_impossible_value_is_refused(changes, fragments):
  config_changes.assert_refused(changes, fragments)


def test_the_table_of_refusals_starts_from_a_config_that_builds():
  """So that each refusal is of what was changed."""
  experiment_lib.build(digits.get_config())


@pytest.mark.parametrize(
  ('changes', 'fragments'),
  [
    ({'vae.scale': 0.18215}, ['vae.scale=0.18215', 'store/small', '0.5']),
    ({'vae.shift': 0.0}, ['vae.shift=0.0', 'store/small', '0.25']),
  ],
)
def test_another_scale_than_that_of_the_data_is_refused(monkeypatch, changes, fragments):
  source = config_changes.moments(latents.Scaling(scale=0.5, shift=0.25))
  monkeypatch.setattr(sources, 'open_source', lambda *_, **__: source)
  config_changes.assert_refused(changes, fragments)
