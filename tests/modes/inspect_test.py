"""`--mode=inspect` on a run, its checkpoints and files of every kind that is read."""

import json
import math

from helpers import family_weights, small_runs, torch_zip
import numpy as np
import pytest

from diversedit_jax import convert, trees, types
from diversedit_jax.frozen import encoders, inception_files, vae, vae_files
from diversedit_jax.modes import inspect


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return small_runs.untrained(tmp_path_factory.mktemp('inspect') / 'run')


def norm(arrays):
  return math.sqrt(sum(float(np.sum(np.square(x, dtype=np.float64))) for x in arrays.values()))


def test_a_run_is_described_with_its_weights_and_scores(run):
  page = inspect.run(str(run.workdir), None, small_runs.make_config(train__steps=99))
  lines = page.splitlines()
  told = {line[:13].strip(): line[13:] for line in lines[: lines.index('')]}
  assert told['method'] == 'flow+diverse'
  assert told['model'] == 'depth 2, width 16, heads 2, patch_size 2, skip.enabled True'
  assert told['data'].startswith('digits/train, 1,442 examples, pixels, SHA-256 ')
  assert told['checkpoints'] == '30'
  assert told['scores'] == (
    'eval/digits.json: class_consistency 0.5, frechet_distance 12 '
    '(20 samples of ema at checkpoints/30, heun 4 steps, guidance 2)'
  )
  assert told['--config'] == 'differs in train.steps: stored 30, given 99'
  for item, arrays in run.items.items():
    count = sum(x.size for x in arrays.values())
    expected = f'{item} of checkpoints/30: {len(arrays)} arrays, {count:,} values of float32, '
    assert f'{expected}norm {norm(arrays):.6g}, all finite' in lines
  assert any(line.startswith('opt of checkpoints/30: ') for line in lines)
  for name, array in run.items['ema'].items():
    (row,) = [line.split() for line in lines if line.startswith(f'{name} ')]
    shape, size = 'x'.join(map(str, array.shape)), f'{array.size:,}'
    assert row[1:] == [shape, 'float32', size, f'{norm({name: array}):.4g}']
  checkpoint = run.workdir / 'checkpoints' / '30'
  assert inspect.run('', str(checkpoint), small_runs.make_config(train__steps=99)) == page
  assert inspect.run('', str(run.workdir), small_runs.make_config(train__steps=99)) == page


def test_a_file_is_fitted_to_a_config_and_bad_values_are_counted(run, tmp_path):
  arrays = dict(run.items['ema'])
  arrays['model/patch_embed/bias'] = np.full(16, np.nan, np.float32)
  convert.save(tmp_path / 'x.safetensors', arrays)
  page = inspect.run('', str(tmp_path / 'x.safetensors'), small_runs.make_config())
  assert '\n--config     fits\n' in page
  assert '\nfamily       diversedit_jax, as sit or sra\n' in page
  assert ' model.width=16 model.heads=? model.patch_size=? model.skip' in page
  assert page.endswith(', 16 NaN or infinite')
  page = inspect.run('', str(tmp_path / 'x.safetensors'), small_runs.make_config(model__width=32))
  assert '\n--config     does not fit: model/' in page


@pytest.mark.parametrize(
  ('family', 'told'),
  [
    ('rae', 'heads=? model.patch_size=? model.block=ddt'),
    (
      'ddt',
      'heads=? model.patch_size=? model.block=ddt model.head.depth=2 model.head.width=40 '
      'model.head.heads=?',
    ),
  ],
)
def test_our_weights_with_rotary_positions_do_not_tell_heads(family, told, tmp_path, golden):
  params = convert.to_ours(family_weights.of(family, golden), family)
  convert.save(tmp_path / 'x.safetensors', trees.named_leaves(params))
  page = inspect.run('', str(tmp_path / 'x.safetensors'))
  assert f'\nfamily       diversedit_jax, as {family}\n' in page
  assert f' model.{told}\n' in page


def test_all_networks_of_a_file_are_shown_where_none_is_the_one(tmp_path):
  part = torch_zip.tensors({'w': np.ones(3, np.float32)})
  torch_zip.write(tmp_path / 'two.pt', {'student': part, 'teacher': part})
  page = inspect.run('', str(tmp_path / 'two.pt'))
  assert 'all arrays of the file: ' in page and "has several networks: 'student'" in page
  assert '\nstudent.w ' in page and '\nteacher.w ' in page
  assert '\nfamily       unknown' in page


def test_scores_of_a_file_of_samples_have_no_sampler(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(small_runs.make_config().to_dict()))
  (tmp_path / 'eval').mkdir()
  content = {'scores': {'fid': 2.5}, 'protocol': {'samples': {'file': 'x.npz'}}}
  (tmp_path / 'eval' / 'x.json').write_text(json.dumps(content))
  assert 'scores       eval/x.json: fid 2.5' in inspect.run(str(tmp_path), None).splitlines()


def test_a_folder_of_another_library_is_no_run(tmp_path, golden):
  (tmp_path / 'transformer').mkdir()
  file = tmp_path / 'transformer' / 'diffusion_pytorch_model.safetensors'
  convert.save(file, family_weights.of('sit', golden))
  for folder in (tmp_path, tmp_path / 'transformer'):
    (folder / 'config.json').write_text('{"_class_name": "SiT"}')
    page = inspect.run('', str(folder))
    assert page.startswith(f'file         {file}, ') and '\nfamily       sit\n' in page


def shaped(shapes):
  """Arrays of no memory."""
  return {name: np.broadcast_to(np.float32(1), shape) for name, shape in shapes.items()}


@pytest.mark.parametrize('family', family_weights.FAMILIES)
def test_models_of_other_systems_are_recognised_and_others_are_not(family, golden):
  arrays = family_weights.of(family, golden)
  same = ('sit_original', 'dit')  # The same names and shapes.
  assert inspect.recognise(arrays) == (list(same) if family in same else [family])
  table = 'y_embedder.embedding_table.weight'  # 1000 rows may be 1000 classes or 999.
  if family == 'sit':
    width = arrays[table].shape[1]
    assert inspect.recognise(arrays | shaped({table: (1000, width)})) == ['sit']
  missing = next(name for name in arrays if name.endswith('bias'))
  assert inspect.recognise({name: x for name, x in arrays.items() if name != missing}) == []


def test_frozen_networks_are_recognised():
  autoencoder = vae_files.random(
    vae.VAEConfig(block_channels=(32, 32), layers_per_block=1, scale=1.0), 0
  )
  arrays = vae_files.to_arrays(autoencoder.params, autoencoder.config)
  assert inspect.recognise(arrays) == ['AutoencoderKL f2d4: 2x down, 4 latent channels']
  assert inspect.recognise(arrays, {'_class_name': 'SiT'}) == inspect.recognise(arrays)
  found = inspect.recognise(shaped(inception_files.file_shapes()))
  assert found == ['Inception of 2015-12-05, the network of FID']
  family = encoders.dinov2.FAMILY
  name = next(iter(family.configs))
  assert inspect.recognise(shaped(family.shapes(family.configs[name]))) == [f'encoder {name}']
  theirs = encoders.convnext.LAYOUT.shapes(
    encoders.convnext.flat_shapes(encoders.convnext.CONFIGS['convnextv2-t'])
  )
  assert inspect.recognise(shaped(theirs)) == ['encoder convnextv2-t']


def test_a_dcae_is_recognised_by_the_config_beside_it(tmp_path, golden):
  arrays = {k: x for k, x in golden('dcae_tiny').items() if k.startswith('lite/')}
  weights = {k.removeprefix('lite/sd/'): x for k, x in arrays.items() if '/sd/' in k}
  convert.save(tmp_path / vae_files.FILE, weights)
  family = lambda: inspect.run('', str(tmp_path)).partition('\nfamily ')[2].partition('\n')[0]
  assert "unknown (these look like diffusers' names of a DC-AE: give it, with its co" in family()
  (tmp_path / vae_files.SETTINGS).write_text(str(arrays['lite/config']))
  assert family().strip() == 'DC-AE f4d4: 4x down, 4 latent channels'


def test_what_holds_no_weights_is_refused(tmp_path):
  for origin, message in {
    '': 'give --workdir=DIR, or --checkpoint=FILE',
    str(tmp_path): 'neither a file of weights nor a folder checkpoints/STEP',
    str(tmp_path / 'absent'): 'there is no such file or folder',
  }.items():
    with pytest.raises(types.UserError, match=message):
      inspect.run(origin, None)


def test_a_run_without_a_checkpoint_is_described(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps(small_runs.make_config().to_dict()))
  # While a row is written it is half there.
  (tmp_path / 'metrics.jsonl').write_text('{"step": 5, "loss": 0.25}\n{"step": 10, "lo')
  page = inspect.run(str(tmp_path), None)
  assert 'checkpoints  none yet' in page and 'loss 0.25 at step 5' in page
