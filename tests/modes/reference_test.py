"""What `--mode=eval` compares with: statistics, folders, ADM's files, encoders; what it refuses."""

import dataclasses
import json
import pathlib

from helpers import picture_eval, small_runs
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import modes, types
from diversedit_jax.data import sources
from diversedit_jax.evaluation import reference, scorers
from diversedit_jax.frozen import encoders
from diversedit_jax.frozen.encoders import base
from diversedit_jax.sampling import generate

tiny_inception = picture_eval.tiny_inception
pytestmark = pytest.mark.usefixtures('compilation_cached')
open_inception = scorers.open_inception


def mean_colour(request):
  """An encoder of one token, whose summary is the mean colour times learnt weights."""

  def apply(params, x_NHWC):
    tokens = x_NHWC.mean(axis=(1, 2))[:, None] @ params['w']
    return encoders.Features(tokens=tokens, summary=tokens[:, 0])

  return encoders.Encoder(
    name='colour',
    params={'w': jax.ShapeDtypeStruct((3, 5), 'float32')},
    apply=apply,
    load=lambda: {'w': jnp.arange(15.0).reshape(3, 5) * float(pathlib.Path(request.weights).name)},
    image_shape=request.image_shape,
    flops=0.0,
    file=lambda: 'colour.npz',
  )


def mute(request):
  """The same without a summary."""
  whole = mean_colour(request)
  apply = lambda params, x_NHWC: whole.apply(params, x_NHWC)._replace(summary=None)
  return dataclasses.replace(whole, name='mute', apply=apply)


@pytest.fixture(autouse=True)
def tiny_encoders(monkeypatch):
  monkeypatch.setattr(base, '_ENCODERS', base._ENCODERS | {'colour': mean_colour, 'mute': mute})


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """pictures/, weights.safetensors, and ADM's kind of files of the pictures."""
  root = tmp_path_factory.mktemp('files')
  picture_eval.write_pictures(root / 'pictures')
  picture_eval.write_weights(picture_eval.make(root), root / 'weights.safetensors')
  source = sources.open_source(f'folder:{root}/pictures', size=16)
  images = source.gather(np.arange(len(source)))['images']
  network = picture_eval.network()
  features = {k: np.asarray(x) for k, x in network.features(network.params, images).items()}
  statistics = {
    'mu': features['pool'].mean(0),
    'sigma': np.cov(features['pool'], rowvar=False),
    'mu_s': features['spatial'].mean(0),
    'sigma_s': np.cov(features['spatial'], rowvar=False),
  }
  np.savez(root / 'images.npz', arr_0=images)
  np.savez(root / 'statistics.npz', **statistics)
  np.savez(root / 'both.npz', arr_0=images, **statistics)
  np.savez(root / 'larger.npz', arr_0=images.repeat(2, 1).repeat(2, 2))
  return root


def evaluate(files, workdir, **changes):
  """The result of an evaluation in a folder."""
  origin = str(files / 'weights.safetensors')
  experiment = picture_eval.make(files, eval__keep_samples=False, **changes)
  (written,) = modes.evaluate.run(experiment, str(workdir), origin)
  return json.loads(written.read_text())


@pytest.fixture(scope='module')
def of_folder(files, tmp_path_factory):
  """Scores against the folder itself."""
  return evaluate(files, tmp_path_factory.mktemp('folder'))


def test_statistics_are_written_reused_and_scored_against(files, tmp_path, of_folder, monkeypatch):
  (written,) = modes.stats.run(picture_eval.make(files), str(tmp_path))
  assert written.parent == tmp_path / 'statistics' and written.name.startswith(
    'folder-pictures-16-'
  )
  found = reference.read(written)
  assert found.n == picture_eval.COUNT and found.pool_ND.shape == (picture_eval.COUNT, 16)
  assert found.facts['source'] == 'folder/pictures' and found.facts['image_size'] == 16
  with np.load(files / 'statistics.npz') as expected:
    # Float32 features summed in float64.
    for name in ('mu', 'sigma', 'mu_s', 'sigma_s'):
      np.testing.assert_allclose(getattr(found, name), expected[name], rtol=1e-5, atol=1e-7)
  with monkeypatch.context() as patch:
    patch.setattr(sources.PictureSource, '_load', lambda *_: pytest.fail('looked again'))
    patch.setattr(
      sources.PictureSource, 'gather', lambda self, i: {'images': np.zeros((1, 16, 16, 3), 'u1')}
    )
    assert modes.stats.run(picture_eval.make(files), str(tmp_path)) == [written]
  result = evaluate(files, tmp_path, eval__reference=str(written))
  assert result['scores'] == of_folder['scores']
  known = of_folder['references']['inception']
  assert result['references']['inception'] == known


def test_another_crop_has_statistics_of_its_own(files, tmp_path):
  (adm,) = modes.stats.run(picture_eval.make(files), str(tmp_path))
  (center,) = modes.stats.run(picture_eval.make(files, data__crop='center'), str(tmp_path))
  assert adm != center
  assert np.abs(reference.read(adm).mu - reference.read(center).mu).max() > 1e-4


@pytest.mark.parametrize(
  ('file', 'missing'),
  [('images', ()), ('both', ()), ('statistics', ('precision', 'recall', 'kid', 'kid_std'))],
)
def test_files_of_adm_give_the_scores_that_they_can(files, tmp_path, of_folder, file, missing):
  result = evaluate(files, tmp_path, eval__reference=str(files / f'{file}.npz'))
  expected = {k: v for k, v in of_folder['scores'].items() if k not in missing}
  # The kernel distance draws its subsets from pictures in another order.
  drawn = ('kid', 'kid_std')
  same = {k: v for k, v in expected.items() if k not in drawn}
  assert set(result['scores']) == set(expected)
  assert {k: result['scores'][k] for k in same} == pytest.approx(same, rel=1e-4)
  told = any('states neither network, resize nor size' in line for line in result['warnings'])
  assert told == (file == 'statistics')


def test_an_encoder_gives_distances_of_its_own(files, tmp_path, of_folder):
  options = {'eval__encoder': 'colour', 'eval__encoder_weights': '2'}
  experiment, origin = picture_eval.make(files, **options), str(files / 'weights.safetensors')
  with small_runs.keys_read() as seen:
    written = modes.evaluate.run(experiment, str(tmp_path / 'run'), origin)
  result = json.loads(written[0].read_text())
  assert {
    f'eval.{key}'
    for key in (
      'encoder',
      'encoder_weights',
      'encoder_reference',
      'inception',
      'quantiser',
      'batch_size',
      'precision_recall',
      'kid_subsets',
    )
  } <= seen
  inception = {k: v for k, v in result['scores'].items() if not k.startswith('encoder_')}
  assert inception == of_folder['scores']
  # The summary is linear in the mean colour c: d^2 = |w'(m1 - m2)|^2 + the covariances' part.
  colours = lambda x: x.mean(axis=(1, 2)).astype(np.float64) / 127.5 - 1
  with np.load(files / 'images.npz') as theirs:
    real = colours(theirs['arr_0'])
  made = colours(small_runs.arrays(written[1])['arr_0'])
  gap = (made.mean(0) - real.mean(0)) @ (2 * np.arange(15.0).reshape(3, 5))
  assert result['scores']['encoder_fid'] > gap @ gap > 0
  facts = result['protocol']['networks']['colour']
  assert (facts['file'], facts['verified']) == ('colour.npz', None)
  assert facts['sha256'] != result['protocol']['networks']['inception']['sha256']

  # Its own statistics as a file give the same; so do ADM's pictures.
  origin = tmp_path / 'statistics'
  made_here = modes.stats.run(picture_eval.make(files, **options), str(origin))
  assert [('colour' in path.name) for path in made_here] == [False, True]
  again = evaluate(files, tmp_path / 'file', **options, eval__encoder_reference=str(made_here[1]))
  assert again['scores'] == result['scores']
  adm = evaluate(files, tmp_path / 'adm', **options, eval__reference=str(files / 'both.npz'))
  assert adm['scores']['encoder_fid'] == pytest.approx(result['scores']['encoder_fid'], rel=1e-4)
  with pytest.raises(types.UserError, match='holds statistics of Inception and no images'):
    evaluate(files, tmp_path / 'x', **options, eval__reference=str(files / 'statistics.npz'))
  with pytest.raises(types.UserError, match=r'colour-.* does not fit the samples.*SHA-256'):
    options['eval__encoder_weights'] = '3'
    evaluate(files, tmp_path / 'x', **options, eval__encoder_reference=str(made_here[1]))


# Changes of the config, and what the refusal holds; FOLDER is the folder of the files.
REFUSED = {
  'none': ({'eval__reference': ''}, ["eval.reference is ''", 'VIRTUAL_imagenet256_labeled.npz']),
  'size': ({'eval__reference': 'FOLDER/larger.npz'}, ['larger.npz', '(32, 32)', '(16, 16)']),
  'digits': ({'eval__reference': 'digits'}, ['eval.reference=digits', 'data.source=digits']),
  'grey': (
    {'data__source': 'digits', 'data__size': None, 'model__patch_size': 2},
    ['8x8x1', 'square pictures of 3 channels'],
  ),
  'no summary': (
    {'eval__encoder': 'mute', 'eval__encoder_weights': '1'},
    ["encoder 'mute' has no summary"],
  ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_compared_is_refused_before_sampling(files, tmp_path, monkeypatch, name):
  changes, fragments = REFUSED[name]
  changes = {k: str(v).replace('FOLDER', str(files)) if v else v for k, v in changes.items()}
  if 'model__patch_size' in changes:
    changes['model__patch_size'] = int(changes['model__patch_size'])
  monkeypatch.setattr(generate.Generator, '__call__', lambda *_, **__: pytest.fail('sampled'))
  weights = tmp_path / 'weights.npz'
  picture_eval.write_weights(picture_eval.make(files, **changes), weights)
  with pytest.raises(types.UserError) as error:
    modes.evaluate.run(picture_eval.make(files, **changes), str(tmp_path / 'out'), str(weights))
  assert all(fragment in str(error.value) for fragment in fragments), error.value
  assert not list((tmp_path / 'out').rglob('*.json'))


def test_without_inception_where_to_find_it_is_told(files, tmp_path, monkeypatch):
  monkeypatch.setattr(scorers, 'open_inception', open_inception)
  monkeypatch.chdir(tmp_path)
  with pytest.raises(types.UserError) as error:
    evaluate(files, tmp_path, eval__inception='absent')
  message = str(error.value)
  assert message.startswith("eval.inception='absent': Inception needs its weights")
  assert 'https://' in message
  with pytest.raises(types.UserError, match='Inception needs its weights'):
    modes.stats.run(picture_eval.make(files, eval__inception='absent'), str(tmp_path))


def test_too_few_samples_and_pictures_of_one_colour_are_flagged(files, tmp_path, monkeypatch):
  """Picture 3 is grey, picture 5 a copy of picture 4."""
  finish = scorers.PictureScorer.finish

  def spoilt(self, made):
    made = finish(self, made)
    made[3], made[5] = 128, made[4]
    return made

  monkeypatch.setattr(scorers.PictureScorer, 'finish', spoilt)
  result = evaluate(files, tmp_path, eval__number=8)
  told = ' '.join(result['warnings'])
  assert '8 samples cannot give a covariance of full rank in the 16 dimensions' in told
  assert '1 of 8 images are of one colour' in told
  assert '1 of 8 images are exact copies of an earlier one' in told
  assert 'FID-8 is not FID-50K' in told
  assert 'precision and recall are against 30 pictures instead of 10000' in told
  assert 'the Inception Score is of one part of 8 samples' in told


def test_samples_that_are_not_finite_are_refused(files, tmp_path, monkeypatch):
  call = generate.Generator.__call__

  def spoilt(self, *args, **options):
    made = call(self, *args, **options).copy()
    made[2, 0, 0, 0] = np.nan
    return made

  monkeypatch.setattr(generate.Generator, '__call__', spoilt)
  with pytest.raises(types.UserError, match='cannot quantise: 1 of 6144 values are not finite'):
    evaluate(files, tmp_path)
  assert not (tmp_path / 'eval' / 'fid.json').exists()
