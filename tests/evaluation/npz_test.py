"""`evaluate_npz` and its command line: scores of a file of samples, with the facts behind them."""

import hashlib
import json
import os
import pathlib
import subprocess
import sys

from absl import flags
from absl.testing import flagsaver
from helpers import picture_eval
import jax
import numpy as np
from PIL import Image
import pytest

from diversedit_jax import evaluate_npz, evaluation, sharding, types
from diversedit_jax.data import images
from diversedit_jax.evaluation import (
  card,
  feature_network,
  picture_metrics,
  reference,
  sample_files,
)
from diversedit_jax.frozen import inception, inception_files

pytestmark = pytest.mark.usefixtures('compilation_cached')
N = 24
OPTIONS = picture_metrics.MetricOptions(batch_size=8, kid_subsets=2)


def pictures(seed, side=16):
  return np.random.default_rng(seed).integers(0, 256, (N, side, side, 3), np.uint8)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  root = tmp_path_factory.mktemp('files')
  np.savez(root / 'samples.npz', arr_0=pictures(0), arr_1=np.arange(N) % 3)
  np.savez(root / 'reference.npz', arr_0=pictures(1))
  np.savez(root / 'large.npz', arr_0=pictures(1, 32))
  np.savez(root / 'oblong.npz', arr_0=pictures(0)[:, :8])
  return root


@pytest.fixture
def tiny(monkeypatch):
  """A narrow network in Inception's place; the file `weights` is there."""
  monkeypatch.setattr(inception_files, 'load', lambda path: {'weights': 'a network'}[path])
  monkeypatch.setattr(feature_network, 'of_inception', lambda network: picture_eval.network())


def test_scores_and_protocol(files, tiny):
  found = evaluation.evaluate_npz(
    files / 'samples.npz', files / 'reference.npz', 'weights', options=OPTIONS
  )
  metrics = picture_metrics.PictureMetrics(
    picture_eval.network(),
    reference.read(files / 'reference.npz'),
    image_size=16,
    options=OPTIONS,
    mesh=sharding.make_mesh(),
  )
  expected = picture_metrics.score({'': metrics}, [pictures(0)], N)
  assert found['scores'] == pytest.approx(expected['scores'], rel=1e-9)
  assert found['reference'] == expected['references']['inception']
  assert len(found['scores']) == 8 and found['reference']['images'] == N
  assert found['protocol'] == {
    'samples': {
      'name': 'samples.npz',
      'images': N,
      'side': 16,
      'sha256': hashlib.sha256(pictures(0).tobytes()).hexdigest(),
    },
    'network': picture_eval.network().facts(),
    'precision_recall': 'float32',
    'kid_subsets': 2,
    'batch_size': 8,
    'device': card.devices(),
    'versions': card.versions(),
  }
  json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
  ('name', 'against', 'message'),
  [
    ('samples.npz', 'large.npz', r'arr_0 is \(32, 32\), expected \(16, 16\)'),
    ('oblong.npz', 'reference.npz', 'holds 8x16 pictures, expected square ones'),
  ],
)
def test_what_does_not_fit_is_refused_before_samples_are_read(
  files, tiny, monkeypatch, name, against, message
):
  monkeypatch.setattr(sample_files.SampleFile, 'batches', lambda *_: pytest.fail('read'))
  with pytest.raises(types.UserError, match=message):
    evaluation.evaluate_npz(files / name, files / against, 'weights', options=OPTIONS)


def run(**values):
  flags.FLAGS.mark_as_parsed()
  with flagsaver.flagsaver(**values):
    evaluate_npz.main(['evaluate_npz'])


def test_the_command_prints_and_writes_the_scores(files, tiny, tmp_path, capsys, monkeypatch):
  monkeypatch.setattr(evaluate_npz.cli, 'keep_programs', lambda: None)
  values = {
    'samples': [str(files / 'samples.npz')],
    'reference': str(files / 'reference.npz'),
    'inception': 'weights',
    'output': str(tmp_path / 'scores.json'),
    'batch_size': 5,
    'precision_recall': 'float16',
    'kid_subsets': 0,
  }
  run(**values)
  found = json.loads((tmp_path / 'scores.json').read_text())
  assert json.loads(capsys.readouterr().out) == found
  protocol = found['protocol']
  assert (protocol['batch_size'], protocol['kid_subsets']) == (5, 0)
  assert protocol['precision_recall'] == 'float16' and 'kid' not in found['scores']
  with pytest.raises(types.UserError, match='exists already; nothing is overwritten'):
    run(**values)
  assert json.loads((tmp_path / 'scores.json').read_text()) == found


def test_mistakes_at_the_command_line_are_one_line(files, tmp_path):
  root = pathlib.Path(__file__).parents[2]
  done = subprocess.run(
    [
      sys.executable,
      '-m',
      'diversedit_jax.evaluate_npz',
      f'--samples={files}/samples.npz',
      f'--reference={files}/reference.npz',
      '--inception=absent',
    ],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': str(root), 'JAX_COMPILATION_CACHE_DIR': str(tmp_path / 'xla')},
  )
  assert done.returncode == 2 and done.stdout == '' and 'Traceback' not in done.stderr
  line = done.stderr.strip().splitlines()[-1]
  assert line.startswith('error: Inception needs its weights') and 'there is no absent' in line


@pytest.mark.slow
def test_inception_itself(tmp_path):
  """Half a minute, most of it for covariances of 2048 dimensions. Random weights, which is told."""
  x = np.random.default_rng(2).integers(0, 256, (4, 32, 32, 3), np.uint8)
  np.savez(tmp_path / 'samples.npz', arr_0=x)
  network = inception_files.random(0)
  features = jax.jit(inception.features)(network.params, x)
  pool, spatial = (np.asarray(getattr(features, k), np.float64) for k in ('pool', 'spatial'))
  np.savez(
    tmp_path / 'reference.npz',
    mu=pool.mean(0),
    sigma=np.cov(pool, rowvar=False),
    mu_s=spatial.mean(0),
    sigma_s=np.cov(spatial, rowvar=False),
  )
  options = picture_metrics.MetricOptions(batch_size=4, precision_recall='none', kid_subsets=0)
  found = evaluation.evaluate_npz(
    tmp_path / 'samples.npz', tmp_path / 'reference.npz', network, options=options
  )
  assert found['scores']['fid'] < 1e-6 and found['scores']['sfid'] < 1e-6
  assert found['protocol']['network']['random_weights']
  told = ' '.join(found['warnings'])
  assert 'the weights of inception are random' in told
  assert '4 samples cannot give a covariance of full rank in the 2048 dimensions' in told


def test_what_mode_sample_wrote_and_folders_are_scored_alike(files, tiny, tmp_path):
  """One set of pictures: as ADM keeps it, as floats in two files, and as a folder of PNG."""
  x = images.from_uint8(pictures(0))
  np.savez(tmp_path / 'a.npz', images=x[:10], labels=np.arange(10))
  np.savez(tmp_path / 'b.npz', images=x[10:], labels=np.arange(N - 10))
  for i, one in enumerate(pictures(0)):
    (tmp_path / 'flat').mkdir(exist_ok=True)
    Image.fromarray(one).save(tmp_path / 'flat' / f'{i:06d}.png')
  score = lambda given, against: evaluation.evaluate_npz(
    given, files / against, 'weights', options=OPTIONS, quantiser='round_half'
  )
  expected = score(files / 'samples.npz', 'reference.npz')
  for given in ([tmp_path / 'a.npz', tmp_path / 'b.npz'], tmp_path / 'flat'):
    found = score(given, 'reference.npz')
    assert found['scores'] == pytest.approx(expected['scores'], rel=1e-9)
    of, known = found['protocol']['samples'], expected['protocol']['samples']
    assert (of['sha256'], of['images']) == (known['sha256'], N)
  # A folder is compared with itself: no distance.
  nothing = evaluation.evaluate_npz(
    files / 'samples.npz', tmp_path / 'flat', 'weights', options=OPTIONS
  )
  assert nothing['scores']['fid'] == pytest.approx(0, abs=1e-6)
  assert nothing['reference']['images'] == N


def test_samples_sorted_by_label_are_flagged(files, tiny, tmp_path):
  np.savez(tmp_path / 'sorted.npz', arr_0=pictures(0), arr_1=np.sort(np.arange(N) % 3))
  score = lambda file: evaluation.evaluate_npz(
    file, files / 'reference.npz', 'weights', options=OPTIONS
  )['warnings']
  sentence = 'the samples are sorted by label'
  assert any(sentence in line for line in score(tmp_path / 'sorted.npz'))
  assert not any(sentence in line for line in score(files / 'samples.npz'))
