"""An RAE on real photographs: what goes in comes out, and all commands from pictures to scores.

The encoder is the principal components of patches and the decoder the linear map back, so that no
weights are needed, and a wrong order, scale or constant anywhere in between shows.
"""

import json
import types as python_types

from helpers import command_server, linear_rae, small_runs
import numpy as np
from PIL import Image
import pytest
import sklearn.datasets

from diversedit_jax import sharding
from diversedit_jax.evaluation import decoder as decoder_lib

SIDE, PATCH, COUNT = 16, 4, 24
KEYS = {
  'method': 'flow',
  'data.size': SIDE,
  'rae.encoder': 'pca',
  'rae.patch': PATCH,
  'model.patch_size': 1,
  'model.skip.enabled': False,
  'train.batch_size': 8,
}


def write_tiles(folder):
  """24 squares of each of scikit-learn's two photographs, a temple and a flower, as classes."""
  for name in ('china', 'flower'):
    picture = Image.fromarray(sklearn.datasets.load_sample_image(f'{name}.jpg')).resize((96, 64))
    (folder / name).mkdir(parents=True)
    for i in range(COUNT):
      row, col = SIDE * (i // 6), SIDE * (i % 6)
      picture.crop((col, row, col + SIDE, row + SIDE)).save(folder / name / f'{i:02d}.png')


@pytest.fixture(scope='module')
def made(tmp_path_factory):
  """The pictures, a decoder that is fitted to their tokens, and what it leaves out."""
  root = tmp_path_factory.mktemp('photographs')
  write_tiles(root / 'pictures')
  experiment = small_runs.make(**KEYS, **{'data.source': f'folder:{root}/pictures'})
  batch = experiment.source.gather(np.arange(2 * COUNT))
  found = experiment.objective.encode(experiment.objective.frozen(), batch)['latents']
  left = linear_rae.write(root / 'decoder', np.asarray(found), batch['pixels'] / 255)
  return python_types.SimpleNamespace(root=root, left=left)


def run(server, made, *argv, module='diversedit_jax.main'):
  """Runs a command to its end in the folder of the pictures."""
  done = server.run(module, list(argv), made.root, seconds=600)
  assert done['code'] == 0, done['err'][-3000:]
  return done['out']


@pytest.mark.slow  # A minute: six commands, one of which compiles Inception.
def test_photographs_to_scores_by_the_command_line(made):
  config = command_server.ROOT / 'configs' / 'cifar10.py'
  keys = KEYS | {
    'rae.decoder': 'decoder',
    'rae.statistics': 'stats/statistics/tokens-pca.npz',
    'model.dtype': 'float32',
    'model.depth': 1,
    'model.width': 16,
    'model.heads': 2,
    'log.every': 1,
    'log.tensorboard': False,
    'checkpoint.every': 3,
    'preview.every': 3,
    'preview.rows': 2,
    'preview.columns': 2,
    'sampler.kind': 'euler',
    'sampler.steps': 2,
    'sample.batch_size': 4,
    'eval.name': 'score',
    'eval.number': 4,
    'eval.reference': 'folder:pictures',
    'eval.precision_recall': 'none',
    'eval.kid_subsets': 0,
  }
  flags = [f'--config.{key}={value}' for key, value in keys.items()]
  mode = lambda name, data='folder:pictures', workdir='run': [
    f'--config={config}:method=flow,size=,steps=3,data={data}',
    *flags,
    f'--mode={name}',
    f'--workdir={workdir}',
  ]
  server = command_server.Server()
  run(server, made, *mode('stats', workdir='stats'), '--config.rae.statistics=')
  given = (
    f'--rae=pca --rae_patch={PATCH} --rae_statistics={keys["rae.statistics"]} '
    f'--source=pictures --size={SIDE} --store=both --twins --output=store'
  )
  run(server, made, *given.split(), module='diversedit_jax.prepare')
  run(server, made, *mode('train', 'store:store'))
  # The run learned from stored latents; sampled and scored beside the pictures themselves.
  run(server, made, *mode('sample'), '--config.sample.number=4')
  run(server, made, *mode('eval'), '--config.eval.inception=random:0')
  server.close()

  samples = made.root / 'run' / 'samples'
  card = json.loads((samples / 'samples.json').read_text())
  assert card['rae']['encoder'] == 'pca' and card['rae']['file'] == 'model.pt'
  assert card['rae']['statistics']['file'] == 'tokens-pca.npz'
  pictures = small_runs.arrays(samples / 'samples.npz')['images']
  assert pictures.shape == (4, SIDE, SIDE, 3)
  for name in ('grid.png', 'preview-00000003.png'):
    shown = np.asarray(Image.open(samples / name).convert('RGB'))
    assert min(shown.shape[:2]) > 2 * SIDE and shown.std() > 10, name
  score = json.loads((made.root / 'run' / 'eval' / 'score.json').read_text())
  assert np.isfinite(score['scores']['fid'])
  assert score['protocol']['rae'] == card['rae']


def test_a_photograph_that_is_encoded_and_decoded_is_that_photograph(made):
  """With statistics and without; pixels are off by what the decoder leaves out, and rounding."""
  assert made.left < 0.08  # In [0, 1].
  for statistics in (False, True):
    keys = KEYS | {
      'data.source': f'folder:{made.root}/pictures',
      'rae.decoder': f'{made.root}/decoder',
    }
    if statistics:
      rng = np.random.default_rng(0)
      shape = (16, SIDE // PATCH, SIDE // PATCH)
      path = made.root / 'stat.npz'
      np.savez(path, mean=rng.normal(size=shape), var=rng.uniform(0.5, 2, shape))
      keys['rae.statistics'] = str(path)
    experiment = small_runs.make(**keys)
    batch = experiment.source.gather(np.arange(2 * COUNT))
    z = experiment.objective.encode(experiment.objective.frozen(), batch)['latents']
    network = experiment.rae.open_decoder(experiment.source)
    decode = decoder_lib.Decoder(network, sharding.make_mesh(), 'round_half')
    error = np.asarray(decode(np.asarray(z)), np.float64) - batch['pixels']
    assert np.sqrt(np.mean(error**2)) < 255 * made.left + 1
