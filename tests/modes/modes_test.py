"""All modes end to end in one process on the shrunken digits config: files, cards, repeats."""

import errno
import json
import pathlib
import types as python_types

from helpers import small_runs
import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from diversedit_jax import checkpoint, convert, modes, trees, types
from diversedit_jax import experiment as experiment_lib
from diversedit_jax.data import images
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import flat_config, run_dir
from diversedit_jax.methods import diverse, reg, registry
from diversedit_jax.modes import origins
from diversedit_jax.sampling import generate, trajectory
from diversedit_jax.training import average, writers

# Most tests sample with the one sampler of this file.
pytestmark = pytest.mark.usefixtures('compilation_cached')


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """A run in which every mode was used, and what the modes read of the config."""
  workdir, experiment = tmp_path_factory.mktemp('modes') / 'run', small_runs.make()
  call, precisions = generate.Generator.__call__, set()

  def noted(*values, **more):
    precisions.add(jax.config.jax_default_matmul_precision)
    return call(*values, **more)

  with pytest.MonkeyPatch.context() as patch, small_runs.keys_read() as seen:
    patch.setattr(generate.Generator, '__call__', noted)
    modes.train.run(experiment, str(workdir))
    written = {
      'sample': modes.sample.run(experiment, str(workdir), None),
      'eval': modes.evaluate.run(experiment, str(workdir), None),
      'analyze': modes.analyze.run(experiment, str(workdir), None),
    }
    plan = modes.plan.run(experiment)
  return python_types.SimpleNamespace(
    workdir=workdir,
    experiment=experiment,
    written=written,
    plan=plan,
    samples=small_runs.arrays(workdir / 'samples' / 'samples.npz'),
    card=json.loads((workdir / 'samples' / 'samples.json').read_text()),
    seen=seen,
    precisions=precisions,
  )


@pytest.fixture(scope='module')
def ema(run):
  """The averaged weights of the last checkpoint by name."""
  with ocp.StandardCheckpointer() as reader:
    tree = reader.restore(run.workdir / 'checkpoints' / str(small_runs.STEPS) / 'ema')
  return {name: np.asarray(leaf) for name, leaf in trees.named_leaves(tree).items()}


def sample(run, folder, origin='run', **changes):
  """Samples of the run's last checkpoint, or of `origin`, made in another folder; and their card.

  Without `origin=None`, the weights come through --checkpoint.
  """
  origin = (
    str(run.workdir / 'checkpoints' / str(small_runs.STEPS)) if origin == 'run' else str(origin)
  )
  modes.sample.run(small_runs.make(**changes), str(folder), origin)
  return small_runs.arrays(folder / 'samples' / 'samples.npz'), json.loads(
    (folder / 'samples' / 'samples.json').read_text()
  )


def tiles(path, samples, columns):
  """The tiles of a grid and the samples enlarged as they should appear, both [N, 40, 40]."""
  page = np.asarray(Image.open(path))
  rows = len(samples) // columns
  assert page.ndim == 2 and page.dtype == np.uint8  # Grey, as the digits are.
  # 8 px of margin above and below, 28 of title, and 2 between tiles of 5 x 8 px.
  assert page.shape[0] == 8 + 28 + rows * 42 - 2 + 8
  lines = (page[36:76] == 144).all(axis=0)  # Frame edges; the first is left of the first tile.
  left = int(np.argmax(lines)) + 2
  corners = [(36 + 42 * r, left + 42 * c) for r in range(rows) for c in range(columns)]
  found = np.stack([page[y : y + 40, x : x + 40] for y, x in corners])
  levels = images.to_uint8(samples[..., 0], 'round_half')
  bicubic = Image.Resampling.BICUBIC
  return found, np.stack([np.asarray(Image.fromarray(x).resize((40, 40), bicubic)) for x in levels])


def test_every_mode_says_what_it_wrote_and_leaves_nothing_else(run):
  said = {path.relative_to(run.workdir).as_posix() for p in run.written.values() for path in p}
  assert said == {
    'samples/samples.npz',
    'samples/samples.json',
    'samples/grid.png',
    'eval/digits.json',
    'analysis/cka.npz',
    'analysis/cka.png',
  }
  found = {p.relative_to(run.workdir).as_posix() for p in run.workdir.rglob('*') if p.is_file()}
  rest = {p for p in found if p.split('/')[0] not in ('checkpoints', 'tensorboard')}
  assert rest == said | {
    'config.json',
    'versions.json',
    'data.json',
    'metrics.jsonl',
    'samples/preview-00000015.png',
    'samples/preview-00000030.png',
    'telemetry/similarity-00000015.npz',
    'telemetry/similarity-00000030.npz',
  }
  assert {p.name for p in (run.workdir / 'checkpoints').iterdir()} == {'15', '30'}


def test_run_describes_itself(run):
  stored = json.loads((run.workdir / 'config.json').read_text())
  assert stored.pop('diversedit_jax') == card.versions()['diversedit_jax']
  assert stored == json.loads(json.dumps(small_runs.make_config().to_dict()))
  assert json.loads((run.workdir / 'versions.json').read_text()) == [card.versions()]


def test_samples(run):
  made, labels = run.samples['images'], run.samples['labels']
  assert set(run.samples) == {'images', 'labels'}
  assert made.shape == (20, 8, 8, 1) and made.dtype == np.float32 and np.isfinite(made).all()
  np.testing.assert_array_equal(labels, np.arange(20) % 10)
  assert labels.dtype == np.int32
  assert len(np.unique(made.reshape(20, -1), axis=0)) == 20


def test_card_of_the_samples(run):
  expected = {
    'step': small_runs.STEPS,
    'weights': 'ema',
    'checkpoint': f'checkpoints/{small_runs.STEPS}',
    'seed': 0,
    'num_samples': 20,
    'label_policy': 'balanced',
    'sampler': 'heun',
    'steps': 4,
    'nfe': 2 * (2 * 4 - 1),
    'guidance': {
      'scale': 2.0,
      'interval': [0.0, 1.0],
      'channels': 'all',
      'formula': card.GUIDANCE,
    },
    'quantiser': None,
    'precision': {
      'model': 'float32',
      'residual': 'float32',
      'float32_products': 'highest',
    },
    'versions': card.versions(),
    'batch_size': 8,
    'path': 'linear',
    'start': 1.0,
    'dtype': 'float32',
    'device': {'kind': 'cpu', 'count': 1},
    'warnings': [average.remark(0.9, False, small_runs.STEPS)],  # 4 % of its start.
  }
  found = dict(run.card)
  assert found.pop('seconds') > 0 and len(found.pop('parameters')) == 16
  assert found == expected


def test_grid_shows_each_sample_in_the_row_of_its_class(run):
  order = np.argsort(run.samples['labels'], kind='stable')
  found, expected = tiles(
    run.workdir / 'samples' / 'grid.png', run.samples['images'][order], columns=2
  )
  np.testing.assert_array_equal(found, expected)


def test_previews_are_of_the_average_at_their_step(run, tmp_path):
  """Label r in row r, and sample number n at place n: what `sample` makes with those labels."""
  for name in ('preview-00000015.png', 'preview-00000030.png'):
    page = Image.open(run.workdir / 'samples' / name)
    assert page.size[1] == 8 + 28 + 10 * 42 - 2 + 8
  made, _ = sample(run, tmp_path, sample__labels='0', sample__number=2, sample__batch_size=2)
  found, expected = tiles(
    run.workdir / 'samples' / 'preview-00000030.png', np.repeat(made['images'], 10, axis=0), 2
  )
  assert run.precisions == {'highest'}
  # A level more or less: the preview had another batch size.
  assert np.abs(found[:2].astype(int) - expected[[0, 10]]).max() <= 1


def test_metrics_and_telemetry(run):
  rows = writers.read_jsonl(run.workdir / 'metrics.jsonl')
  assert [row['step'] for row in rows if 'loss' in row] == [10, 20, 30]
  similar = {row['step']: row for row in rows if 'similarity/token' in row}
  assert list(similar) == [15, 30]
  for step, row in similar.items():
    file = small_runs.arrays(run.workdir / 'telemetry' / f'similarity-{step:08d}.npz')
    assert set(file) == {'step', 'token', 'mean'} and file['step'] == step
    for name in ('token', 'mean'):
      assert file[name].shape == (small_runs.DEPTH, small_runs.DEPTH)
      # Cosines: 1 to themselves within rounding of float32 sums.
      np.testing.assert_allclose(np.diag(file[name]), 1, atol=1e-5)
      assert row[f'similarity/{name}'] == pytest.approx(file[name][0, 1], abs=1e-6)


def test_tensorboard_has_the_losses_and_the_pictures(run):
  events = event_accumulator.EventAccumulator(str(run.workdir / 'tensorboard')).Reload()
  rows = writers.read_jsonl(run.workdir / 'metrics.jsonl')
  for tag, steps in {
    'loss': [10, 20, 30],
    'velocity': [10, 20, 30],
    'similarity/token': [15, 30],
  }.items():
    found = {e.step: tensor_util.make_ndarray(e.tensor_proto) for e in events.Tensors(tag)}
    assert list(found) == steps
    for step, value in found.items():
      expected = [row[tag] for row in rows if row['step'] == step and tag in row]
      np.testing.assert_array_equal(value, np.float32(expected[0]))
  # An image is its width, its height and PNG files.
  for tag, size in {
    'preview': (8, 8),
    'similarity_matrix/token': (small_runs.DEPTH, small_runs.DEPTH),
  }.items():
    for event in events.Tensors(tag):
      width, height, *pngs = tensor_util.make_ndarray(event.tensor_proto)
      assert (int(width), int(height)) == size and pngs[0].startswith(b'\x89PNG')
    assert [event.step for event in events.Tensors(tag)] == [15, 30]


def test_scores(run):
  result = json.loads((run.workdir / 'eval' / 'digits.json').read_text())
  assert average.remark(0.9, False, small_runs.STEPS) in result['warnings']
  assert 0 <= result['class_consistency'] <= 1
  assert result['classifier_test_accuracy'] > 0.95
  # Thirty steps make nothing like a digit.
  assert result['frechet_distance'] > result['frechet_floor'] > 0
  assert result['counts']['samples'] == 40
  protocol = result['protocol']
  assert {k: protocol[k] for k in ('num_samples', 'label_policy', 'step', 'nfe', 'weights')} == {
    'num_samples': 40,
    'label_policy': 'balanced',
    'step': small_runs.STEPS,
    'nfe': 14,
    'weights': 'ema',
  }


def test_similarity_of_the_blocks(run):
  file = small_runs.arrays(run.workdir / 'analysis' / 'cka.npz')
  origin = f'checkpoints/{small_runs.STEPS}'
  assert (file.pop('weights'), file.pop('view'), file.pop('examples')) == (origin, 'mean', 33)
  assert set(file) == {
    f'{kernel}/{estimator}/t={t}'
    for kernel in ('linear', 'rbf')
    for estimator in ('biased', 'unbiased')
    for t in (0.1, 0.5, 0.9)
  }
  for name, matrix in file.items():
    assert matrix.shape == (small_runs.DEPTH, small_runs.DEPTH)
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-9, err_msg=name)
    assert matrix[0, 1] == pytest.approx(matrix[1, 0]) and matrix[0, 1] < 1
  picture = Image.open(run.workdir / 'analysis' / 'cka.png')
  assert min(picture.size) > 200 and len(np.unique(np.asarray(picture))) > 10


def test_plan_counts_the_trained_parameters(run, ema):
  lines = dict(line.split('  ', 1) for line in run.plan.splitlines())
  assert lines['parameters'].split()[0] == f'{sum(x.size for x in ema.values()):,}'
  text = {name: value.strip() for name, value in lines.items()}
  assert text['tokens per image'] == '16'
  assert text['hardware'].startswith('1 devices of 0.1 TFLOP/s')
  assert text['time'].endswith('for 30 steps')
  with pytest.raises(types.UserError, match=r'batch_size=32 .* plan\.devices=3'):
    modes.plan.run(small_runs.make(plan__devices=3))


def test_sampling_again_gives_the_same_arrays(run):
  modes.sample.run(small_runs.make(), str(run.workdir), None)
  again = small_runs.arrays(run.workdir / 'samples' / 'samples.npz')
  np.testing.assert_array_equal(again['images'], run.samples['images'])


def test_checkpoint_from_elsewhere_gives_the_same_arrays(run, tmp_path):
  made, facts = sample(run, tmp_path)
  np.testing.assert_array_equal(made['images'], run.samples['images'])
  assert (
    facts['checkpoint'] == f'checkpoints/{small_runs.STEPS}' and facts['step'] == small_runs.STEPS
  )
  assert {p.name for p in tmp_path.iterdir()} == {'samples'}


def differing(made, run):
  """Which samples are other pictures than the run's; noise of float32 sums is far below 1e-4."""
  return np.abs(made['images'] - run.samples['images']).max(axis=(1, 2, 3)) > 1e-4


@pytest.mark.parametrize(('key', 'value'), [('weights', 'params'), ('seed', 1)])
def test_weights_and_seed_are_those_asked_for(run, tmp_path, key, value):
  made, facts = sample(run, tmp_path, **{f'sample__{key}': value})
  assert differing(made, run).all() and facts[key] == value


def test_card_tells_the_guidance_and_counts_it(run, tmp_path):
  made, facts = sample(
    run,
    tmp_path,
    sampler__guidance_low=0.2,
    sampler__guidance_high=0.6,
    sample__number=8,
    sampler__guidance_channels=1,
  )
  expected = {'scale': 2.0, 'interval': [0.2, 0.6], 'channels': 1, 'formula': card.GUIDANCE}
  assert facts['guidance'] == expected
  # Steps from 1 and 3/4: 2 evaluations each; from 1/2, guided: 4; the last, from 1/4: 2.
  assert facts['nfe'] == 2 + 2 + 4 + 2
  assert np.abs(made['images'] - run.samples['images'][:8]).max() > 1e-4


def test_weights_from_a_file_give_the_same_arrays(run, ema, tmp_path):
  file = tmp_path / 'weights.safetensors'
  convert.save(file, ema)
  made, facts = sample(run, tmp_path / 'out', origin=file)
  np.testing.assert_array_equal(made['images'], run.samples['images'])
  assert facts['checkpoint'] == file.name
  # A method's heads only train the model: a file without them will do.
  sra = {'method': 'sra+diverse', 'sra__student_block': 1, 'sra__teacher_block': 2}
  made, _ = sample(run, tmp_path / 'sra', origin=file, **sra)
  np.testing.assert_array_equal(made['images'], run.samples['images'])


def test_a_folder_of_weights_is_its_file(ema, tmp_path):
  """As libraries write it, here in shards."""
  names, index = list(ema), tmp_path / 'diffusion_pytorch_model.safetensors.index.json'
  for i, part in enumerate((names[:5], names[5:])):
    convert.save(tmp_path / f'{i}.safetensors', {name: ema[name] for name in part})
  table = {name: f'{int(i > 4)}.safetensors' for i, name in enumerate(names)}
  index.write_text(json.dumps({'weight_map': table}))
  origin = origins.find(str(tmp_path))
  assert origin.path == index and origin.step is None
  assert set(origin.arrays('ema')) == set(ema)


def test_file_that_does_not_fit_is_refused_with_what_differs(run, ema, tmp_path):
  kernel, missing = 'model/patch_embed/kernel', 'model/patch_embed/bias'
  wrong = {**ema, kernel: ema[kernel].T}
  del wrong[missing]
  convert.save(tmp_path / 'wrong.safetensors', wrong)
  with pytest.raises(types.UserError) as error:
    sample(run, tmp_path, origin=tmp_path / 'wrong.safetensors')
  message = str(error.value)
  assert f'missing: {missing}' in message and 'not expected' not in message
  assert f'{kernel} has shape (16, 4) instead of (4, 16)' in message
  theirs = {'ema.x_embedder.proj.weight': ema[kernel], 'ema.blocks.0.mlp.fc1.bias': ema[missing]}
  convert.save(tmp_path / 'theirs.safetensors', theirs)
  with pytest.raises(types.UserError, match='names of SiT and DiT; convert it: python -m'):
    sample(run, tmp_path, origin=tmp_path / 'theirs.safetensors')
  # A null label that was never learned has a row of zeros.
  table = ema['model/label_embed/embedding'].copy()
  table[-1] = 0
  convert.save(tmp_path / 'labels.safetensors', {**ema, 'model/label_embed/embedding': table})
  with pytest.raises(types.UserError, match=r'with train\.label_dropout=0 the model never learns'):
    sample(run, tmp_path, origin=tmp_path / 'labels.safetensors')


def test_checkpoint_that_is_none_is_refused(run, tmp_path):
  (tmp_path / 'empty' / '5').mkdir(parents=True)
  for origin, message in {
    tmp_path / 'absent': 'no weights at .*: there is no such file or folder',
    run.workdir: r'holds checkpoints of steps \[15, 30\]; name one, as .*/run/checkpoints/30',
    run.workdir / 'checkpoints': 'name one, as .*/run/checkpoints/30',
    run.workdir / 'samples': 'neither a file of weights nor a folder checkpoints/STEP',
    run.workdir / 'checkpoints' / '7': 'no weights at',
    run.workdir / 'config.json': 'not an index of shards: it has no "weight_map"',
    tmp_path / 'empty' / '5': 'no readable checkpoint in .*/empty: 5: ',
  }.items():
    with pytest.raises(types.UserError, match=message):
      sample(run, tmp_path / 'out', origin=origin)


def test_checkpoint_of_another_model_is_refused(run, tmp_path):
  with pytest.raises(types.UserError, match=r'model\.width: stored 16, given 32'):
    modes.sample.run(small_runs.make(model__width=32), str(run.workdir), None)
  with pytest.raises(types.UserError, match=r'model\.width: stored 16, given 32'):
    sample(run, tmp_path, model__width=32)
  with pytest.raises(types.UserError, match="interpolant.path: stored 'linear', given 'cosine'"):
    modes.sample.run(small_runs.make(interpolant__path='cosine'), str(run.workdir), None)


@pytest.mark.parametrize('mode', [modes.sample, modes.evaluate, modes.sweep, modes.analyze])
def test_a_run_that_one_may_only_read_is_refused_at_once_and_read_elsewhere(
  run, mode, tmp_path, monkeypatch
):
  """The tests may run as root, whom no mode of a file keeps from writing."""
  folders, touch = [run.workdir, run.workdir / 'samples'], pathlib.Path.touch

  def refuse(path, *values, **more):
    if folders[0] == path.parent:
      raise PermissionError(errno.EACCES, 'Permission denied')
    touch(path, *values, **more)

  monkeypatch.setattr(pathlib.Path, 'touch', refuse)
  monkeypatch.setattr(checkpoint.Checkpoints, 'restore', None)
  origin = f'{run.workdir}/checkpoints/{small_runs.STEPS}'
  for _ in range(2):
    with pytest.raises(types.UserError) as refused:
      mode.run(run.experiment, str(run.workdir), None)
    assert str(refused.value) == (
      f'workdir {run.workdir} cannot be written: Permission denied; --output=DIR writes results '
      f'elsewhere, and --checkpoint={origin} --workdir=DIR does too'
    )
    folders.reverse()
  assert run_dir.newest_checkpoint(str(run.workdir)) == origin
  with pytest.raises(types.UserError, match='no checkpoint in .*; train first'):
    run_dir.newest_checkpoint(str(tmp_path))


@pytest.mark.parametrize('mode', [modes.sample.run, modes.evaluate.run, modes.analyze.run])
def test_workdir_without_a_run_or_a_checkpoint_is_refused(mode, tmp_path):
  with pytest.raises(types.UserError, match=r'holds no run \(no config.json\); train first'):
    mode(small_runs.make(), str(tmp_path), None)
  (tmp_path / 'config.json').write_text(json.dumps(small_runs.make_config().to_dict()))
  with pytest.raises(types.UserError, match='no checkpoint in .*; train first'):
    mode(small_runs.make(), str(tmp_path), None)
  assert [p.name for p in tmp_path.iterdir()] == ['config.json']


# Keys that make something else when the config is read.
MADE_INTO_PARTS = {
  'seed',
  'method',
  'init_from',
  'model.size',
  'model.skip.enabled',
  'data.num_classes',
}
MADE_INTO_PARTS |= {'train.label_dropout'}
MADE_INTO_PARTS |= {f'interpolant.{key}' for key in experiment_lib.defaults().interpolant}
# Keys that matter only under another choice than the run's.
CONDITIONAL = {'diversity.num_layers', 'diversity.encoder_depth', 'sampler.diffusion'}
CONDITIONAL |= {'sampler.last_step', 'sampler.class_token_scale'}
# Keys of the scores of pictures; tests of evaluation show that each is read.
OF_PICTURES = {'quantiser', 'inception', 'encoder', 'encoder_weights', 'encoder_reference'}
OF_PICTURES |= {'batch_size', 'precision_recall', 'kid_subsets', 'every_number', 'best'}
ELSEWHERE = MADE_INTO_PARTS | CONDITIONAL | {f'eval.{key}' for key in OF_PICTURES}
# Keys that matter only with a VAE; `decoding_test` shows that each matters.
ELSEWHERE |= {'vae.scale', 'vae.shift', 'vae.dtype', 'vae.tile'}
# Sections of other methods, and those that have tests of their own.
OTHER_SECTIONS = {*registry.sections(), 'sweep', 'init'} - {'diversity'}


def test_every_key_is_read_after_it_was_checked(run):
  keys = set(flat_config.flatten(experiment_lib.defaults().to_dict())) - ELSEWHERE
  unread = {key for key in keys - run.seen if key.split('.')[0] not in OTHER_SECTIONS}
  assert not unread


def test_conditional_keys_are_read_under_their_condition():
  with small_runs.keys_read() as seen:
    trajectory.stretches(trajectory.SamplerConfig(kind='euler_maruyama', steps=4))
    reg.Reg.combine(trajectory.SamplerConfig(class_token_scale=1.5))
    for options in ({'layers': 'random', 'num_layers': 2}, {'layers': 'authors'}):
      diverse.Diverse(**options).select(12, jax.random.key(0))
  assert seen >= CONDITIONAL


def test_latents_of_a_file_end_to_end(tmp_path):
  """Data in a latent space: no pictures, but the same files as arrays."""
  rng = np.random.default_rng(0)
  np.savez(
    tmp_path / 'data.npz',
    latents=rng.normal(size=(64, 8, 8, 4)).astype(np.float32),
    labels=np.arange(64) % 5,
  )
  experiment = small_runs.make(
    method='flow',
    data__source=f'arrays:{tmp_path}/data.npz',
    train__steps=4,
    train__batch_size=16,
    optimizer__warmup_steps=0,
    log__every=2,
    log__telemetry_every=0,
    log__tensorboard=False,
    checkpoint__every=4,
    preview__every=4,
    sampler__kind='euler_maruyama',
    sampler__steps=3,
    sampler__guidance_scale=1.0,
    sample__number=7,
  )
  workdir = tmp_path / 'run'
  modes.train.run(experiment, str(workdir))
  assert not (workdir / 'tensorboard').exists() and not (workdir / 'telemetry').exists()
  preview = small_runs.arrays(workdir / 'samples' / 'preview-00000004.npz')
  assert set(preview) == {'latents', 'labels'}
  assert preview['latents'].shape == (10, 8, 8, 4)  # As many rows as there are classes.
  np.testing.assert_array_equal(preview['labels'], [0, 0, 1, 1, 2, 2, 3, 3, 4, 4])

  written = modes.sample.run(experiment, str(workdir), None)
  assert [path.name for path in written] == ['samples.npz', 'samples.json']
  made = small_runs.arrays(written[0])
  assert set(made) == {'latents', 'labels'} and made['latents'].shape == (7, 8, 8, 4)
  np.testing.assert_array_equal(made['labels'], [0, 1, 2, 3, 4, 0, 1])
  facts = json.loads(written[1].read_text())
  assert (facts['nfe'], facts['guidance']['scale']) == (3, 1.0)
  assert sorted(p.name for p in (workdir / 'samples').iterdir()) == [
    'preview-00000004.npz',
    'samples.json',
    'samples.npz',
  ]
  with pytest.raises(types.UserError, match='scores samples of data.source=digits, got arrays:'):
    modes.evaluate.run(experiment, str(workdir), None)
  with pytest.raises(types.UserError, match="write '{split}' in the path"):
    modes.analyze.run(experiment, str(workdir), None)
