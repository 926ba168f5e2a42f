"""Small things to evaluate: pictures, weights, and a narrow network in Inception's place."""

from helpers import small_runs
import jax
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import convert, sharding, trees
from diversedit_jax.evaluation import feature_network, scorers
from diversedit_jax.training import state

SIDE, CLASSES, COUNT = 16, 3, 30
WIDTHS = {'pool': 16, 'spatial': 8, 'logits': 10}
SMALL = {
  'method': 'flow',
  'data__size': SIDE,
  'model__skip__enabled': False,
  'model__patch_size': 4,
  'train__batch_size': 8,
  'optimizer__warmup_steps': 0,
  'optimizer__schedule': 'constant',
  'log__every': 2,
  'log__telemetry_every': 0,
  'log__tensorboard': False,
  'preview__every': 0,
  'sampler__kind': 'euler',
  'sampler__steps': 2,
  'sampler__guidance_scale': 1.5,
  'sample__batch_size': 8,
  'eval__name': 'fid',
  'eval__labels': 'random',
  'eval__number': 20,
  'eval__inception': 'tiny',
  'eval__batch_size': 8,
  'eval__kid_subsets': 2,
  'eval__best': 'fid',
  'sweep__score': 'fid',
  'sweep__number': 18,
}


class Interrupted(Exception):
  """A kill."""


def write_pictures(folder, seed=0):
  """30 noisy gradients of colour in three class folders, of more than twice SIDE, not square."""
  rng = np.random.default_rng(seed)
  for i in range(COUNT):
    path = folder / 'abc'[i % CLASSES] / f'{i:02d}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0, 150, 36)[:, None, None] * rng.random(3) + 100 * rng.random((36, 44, 3))
    Image.fromarray(ramp.astype(np.uint8)).save(path)
  return folder


def network(seed=0, name='inception', widths=None):
  """Random projections of the pixels, with the three kinds of features that Inception has."""
  rng = np.random.default_rng(seed)
  params = {
    kind: rng.normal(size=(SIDE * SIDE * 3, width)).astype(np.float32) / SIDE
    for kind, width in (widths or WIDTHS).items()
  }

  def features(params, x_NHWC):
    x_ND = x_NHWC.reshape(len(x_NHWC), -1).astype(np.float32) / 255
    product = lambda w: jax.numpy.matmul(x_ND, w, precision='highest')
    return {kind: product(w) for kind, w in params.items()}

  return feature_network.FeatureNetwork(
    name=name,
    file=f'tiny-{seed}',
    sha256=f'{seed + 1:064x}',
    random=False,
    resize='none',
    params=params,
    features=features,
    verified=True,
  )


def make(folder, **changes):
  """An experiment on `folder`/pictures, scored against them."""
  pictures = f'folder:{folder}/pictures'
  given = {'data__source': pictures, 'eval__reference': pictures}
  return small_runs.make(**SMALL | given | changes)


def write_weights(experiment, file, seed=0):
  """Random weights of an experiment, none of them neutral, in a file that --checkpoint takes."""
  trainable = state.Trainable(experiment.network, experiment.transformation(), sharding.make_mesh())
  rng = np.random.default_rng(seed)
  convert.save(
    file,
    {
      name: (0.2 * rng.normal(size=x.shape)).astype(np.float32)
      for name, x in trees.named_leaves(trainable.params).items()
    },
  )
  return file


@pytest.fixture(scope='module', autouse=True)
def tiny_inception():
  """The narrow network in Inception's place, whatever weights the config names."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(scorers, 'open_inception', lambda weights: network())
    yield


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """A folder with pictures/, and weights.safetensors that fit a model of them."""
  root = tmp_path_factory.mktemp('files')
  write_pictures(root / 'pictures')
  write_weights(make(root), root / 'weights.safetensors')
  return root
