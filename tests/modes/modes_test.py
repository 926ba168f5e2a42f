"""All modes end to end in one process on the shrunken digits config: files, cards, repeats."""

import json
import types as python_types

from helpers import small_runs
import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image
import pytest
from tensorboard.backend.event_processing import event_accumulator
from tensorboard.util import tensor_util

from diversedit_jax import experiment as experiment_lib
from diversedit_jax import modes, sharding, trees, types
from diversedit_jax.data import images
from diversedit_jax.evaluation import card
from diversedit_jax.experiment import flat_config
from diversedit_jax.methods import diverse, reg, registry
from diversedit_jax.modes import run_context
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
    'analysis/cka.pdf',
    'analysis/sheet.png',
    'analysis/sheet.pdf',
    'analysis/analysis.json',
  }
  found = {p.relative_to(run.workdir).as_posix() for p in run.workdir.rglob('*') if p.is_file()}
  rest = {p for p in found if p.split('/')[0] not in ('checkpoints', 'tensorboard')}
  assert rest == said | {
    'config.json',
    'versions.json',
    'attention.json',
    'data.json',
    'metrics.jsonl',
    'goodput.jsonl',
    'samples/preview-00000015.png',
    'samples/preview-00000030.png',
    'telemetry/blocks-00000015.npz',
    'telemetry/blocks-00000030.npz',
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
    'attention': 'xla',
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
    'warnings': [average.remark(average.Decay(0.9), False, small_runs.STEPS)],  # 4 % of its start.
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
  experiment = small_runs.make(sample__labels='0', sample__number=2, sample__batch_size=2)
  checkpoint = str(run.workdir / 'checkpoints' / str(small_runs.STEPS))
  made = small_runs.arrays(modes.sample.run(experiment, str(tmp_path), checkpoint)[0])
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
  assert average.remark(average.Decay(0.9), False, small_runs.STEPS) in result['warnings']
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
    for kernel in ('linear', 'rbf', 'poly')
    for estimator in ('biased', 'unbiased')
    for t in (0.1, 0.5, 0.9)
  }
  for name, matrix in file.items():
    assert matrix.shape == (small_runs.DEPTH, small_runs.DEPTH)
    np.testing.assert_allclose(np.diag(matrix), 1, atol=1e-9, err_msg=name)
    assert matrix[0, 1] == pytest.approx(matrix[1, 0]) and matrix[0, 1] < 1
  for name in ('cka', 'sheet'):
    picture = Image.open(run.workdir / 'analysis' / f'{name}.png')
    assert len(np.unique(np.asarray(picture))) > 10


def test_plan_counts_the_trained_parameters(run, ema):
  lines = dict(line.split('  ', 1) for line in run.plan.splitlines())
  assert lines['parameters'].split()[0] == f'{sum(x.size for x in ema.values()):,}'
  text = {name: value.strip() for name, value in lines.items()}
  assert text['tokens per image'] == '16'
  assert text['hardware'].startswith('1 devices of 0.1 TFLOP/s')
  assert text['time'].endswith('for 30 steps')
  with pytest.raises(types.UserError, match=r'batch_size=32 .* by 3 devices '):
    modes.plan.run(small_runs.make(plan__devices=3))


def test_a_plan_refuses_what_a_run_refuses_and_nothing_else():
  """Devices that share each product share their examples too."""
  made = small_runs.make(plan__devices=16, mesh__tensor=2, train__batch_size=8)
  assert '16 devices' in modes.plan.run(made)
  run_context.make_trainable(made, sharding.planned_mesh(-1, 1, 2, 16))
  for sizes, of, message in (
    ((-1, 1, 3), 6, r'mesh.tensor=3 does not divide the 2 heads .* use mesh.tensor=1 and'),
    ((2, 1, 1), 2, r'batch_size=7 is not divisible by 2 devices'),
  ):
    names = dict(zip(('mesh__data', 'mesh__fsdp', 'mesh__tensor'), sizes, strict=True))
    batch = {} if sizes[2] == 3 else {'train__batch_size': 7}
    made = small_runs.make(plan__devices=of, **names, **batch)
    with pytest.raises(types.UserError, match=message) as of_plan:
      modes.plan.run(made)
    mesh = sharding.planned_mesh(*sizes, of)
    with pytest.raises(types.UserError) as of_run:
      experiment_lib.check_devices(made, mesh)
      run_context.make_trainable(made, mesh)
    assert str(of_run.value) == str(of_plan.value)


def test_sampling_again_gives_the_same_arrays(run):
  modes.sample.run(small_runs.make(), str(run.workdir), None)
  again = small_runs.arrays(run.workdir / 'samples' / 'samples.npz')
  np.testing.assert_array_equal(again['images'], run.samples['images'])


# Keys that make something else when the config is read.
MADE_INTO_PARTS = {
  'seed',
  'method',
  'init_from',
  'model.size',
  'model.skip.enabled',
  'model.block',
  'data.num_classes',
}
MADE_INTO_PARTS |= {'train.label_dropout'}
MADE_INTO_PARTS |= {f'interpolant.{key}' for key in experiment_lib.defaults().interpolant}
# Keys that matter only under another choice than the run's.
CONDITIONAL = {'diversity.num_layers', 'diversity.encoder_depth', 'sampler.diffusion'}
CONDITIONAL |= {'sampler.last_step', 'sampler.class_token_scale'}
# With a guide, of which `guiding_test` shows that it matters.
GUIDED = {'sampler.autoguidance_weights'}
# Keys of the scores of pictures; tests of evaluation show that each is read.
OF_PICTURES = {'quantiser', 'inception', 'encoder', 'encoder_weights', 'encoder_reference'}
OF_PICTURES |= {'batch_size', 'precision_recall', 'kid_subsets', 'every_number', 'best'}
OF_PICTURES |= {'classifier', 'classifier_epochs', 'cmmd', 'cmmd_reference'}
OF_PICTURES |= {'fdr', 'fdr_weights', 'fdr_reference', 'fdr_real'}
ELSEWHERE = MADE_INTO_PARTS | CONDITIONAL | GUIDED | {f'eval.{key}' for key in OF_PICTURES}
# Keys that matter only with a VAE; `decoding_test` shows that each matters.
ELSEWHERE |= {'vae.scale', 'vae.shift', 'vae.dtype', 'vae.tile'}
# Sections of other methods, and those that have tests of their own.
OTHER_SECTIONS = {*registry.sections(), 'sweep', 'init', 'analysis', 'rae'} - {'diversity'}
# A linear schedule and a context, each shown by `optim_test` and `ddt_golden_test`.
ELSEWHERE |= {'optimizer.decay_start', 'optimizer.decay_end', 'optimizer.decay_to'}
ELSEWHERE |= {'model.context.time', 'model.context.label'}
ELSEWHERE |= {'data.space'}  # States what the data are, and is checked; `experiment_test`.
ELSEWHERE |= {f'optimizer.muon.{key}' for key in experiment_lib.defaults().optimizer.muon}


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
