"""FDr6 and CMMD through the commands: statistics, scores, what they say and what they refuse."""

import json

from helpers import panel_weights, picture_eval, small_runs
import numpy as np
import pytest

from diversedit_jax import evaluation, modes, types
from diversedit_jax.evaluation import feature_network, panel, picture_metrics, scores
from diversedit_jax.frozen import inception_files

tiny_inception, files = picture_eval.tiny_inception, picture_eval.files
pytestmark = pytest.mark.usefixtures('compilation_cached')
OTHERS = [name for name in panel.PUBLISHED if name != 'inception']


@pytest.fixture(scope='module', autouse=True)
def tiny_networks():
  with pytest.MonkeyPatch.context() as patch:
    panel_weights.patch(patch, side=32)  # At 224 and 256 pixels they take three times as long.
    yield


@pytest.fixture(scope='module')
def weights(golden, tmp_path_factory):
  return panel_weights.write(tmp_path_factory.mktemp('weights'), golden('summaries_tiny'))


def options_of(weights, **changes):
  given = {'fdr': ('all',), 'fdr_weights': str(weights), 'cmmd': str(weights)}
  return {f'eval__{key}': value for key, value in (given | changes).items()}


def evaluate(files, workdir, **changes):
  experiment = picture_eval.make(files, **changes)
  origin = str(files / 'weights.safetensors')
  written = modes.evaluate.run(experiment, str(workdir), origin)
  return json.loads(written[0].read_text()), written


@pytest.fixture(scope='module')
def scored(files, weights, tmp_path_factory):
  """All six and CMMD against the pictures: the result, the samples, the keys that were read."""
  with small_runs.keys_read() as seen:
    result, written = evaluate(files, tmp_path_factory.mktemp('run'), **options_of(weights))
  return result, written[1], seen


def test_all_six_and_cmmd(scored, files):
  result, samples, seen = scored
  assert {f'eval.{key}' for key in ('fdr', 'fdr_weights', 'fdr_reference', 'fdr_real')} <= seen
  assert {'eval.cmmd', 'eval.cmmd_reference'} <= seen
  found = result['scores']
  for name, real in panel.PUBLISHED.items():
    key = 'fid' if name == 'inception' else f'{name}_fid'
    assert found[key] > 0 and found[f'fdr_{name}'] == pytest.approx(found[key] / real)
  assert found['fdr6'] == pytest.approx(np.mean([found[f'fdr_{k}'] for k in panel.PUBLISHED]))
  assert found['cmmd'] > 0 and 'fdr_partial' not in found
  # Networks of FDr6 give their distance alone.
  assert not any(key.startswith(tuple(OTHERS)) and not key.endswith('_fid') for key in found)
  told = ' '.join(result['warnings'])
  for text in (
    'at 256 pixels, and the pictures have 16',
    'has 30;',
    'CMMD is of 20 samples and 30',
  ):
    assert text in told
  networks = result['protocol']['networks']
  assert networks['fdr-mae']['file'] == 'mae_pretrain_vit_large.pth'
  assert networks['cmmd-clip-vit-l-336']['resize'] == 'bicubic to 336, as Pillow'
  assert result['protocol']['fdr']['real'] == panel.PUBLISHED
  assert set(result['references']) == set(networks)


def test_statistics_that_were_written_give_the_same(scored, files, weights, tmp_path):
  options = options_of(weights, fdr=('inception', 'mae'))
  made = modes.stats.run(picture_eval.make(files, **options), str(tmp_path))
  assert len(made) == 3
  again, _ = evaluate(
    files, tmp_path / 'run', **options | {'eval__fdr_reference': str(tmp_path / 'statistics')}
  )
  alike = {name: value for name, value in again['scores'].items() if name != 'fdr_partial'}
  assert {'fid', 'mae_fid', 'fdr_inception', 'fdr_mae', 'cmmd'} <= set(alike)
  assert alike == {name: scored[0]['scores'][name] for name in alike}


def test_published_statistics_are_taken_by_their_names(scored, files, weights, tmp_path):
  """A file of mu and sigma by the published name stands for one network alone."""
  rng, name = np.random.default_rng(0), 'vit_large_patch16_224_mae_in256_t224_stats.npz'
  x_ND = rng.normal(size=(100, 24))
  mu, sigma = scores.gaussian_statistics(x_ND)
  np.savez(tmp_path / name, mu=mu, sigma=sigma, avg_mu=mu, avg_sigma=sigma)
  options = options_of(weights, fdr=('mae',), cmmd='', inception='', fdr_reference=str(tmp_path))
  result, _ = evaluate(files, tmp_path / 'run', **options)
  assert list(result['scores']) == ['mae_fid', 'fdr_mae', 'fdr_partial']
  told = ' '.join(result['warnings'])
  assert 'fdr_partial is the mean over mae; FDr6 is over all six' in told
  assert result['references']['fdr-mae']['name'] == name
  with pytest.raises(
    types.UserError, match=r'holds neither convnext_in256_t224_stats\.npz.*FD-Loss'
  ):
    evaluate(files, tmp_path / 'x', **options | {'eval__fdr': ('convnext',)})


def test_real_pictures_give_the_denominators(scored, files, weights, tmp_path, monkeypatch):
  """Samples as good as the real ones have the ratio one."""
  monkeypatch.setattr(inception_files, 'load', lambda path: path)
  monkeypatch.setattr(feature_network, 'of_inception', lambda network: picture_eval.network())
  _, samples, _ = scored
  score = lambda **more: evaluation.evaluate_npz(
    samples,
    str(files / 'pictures'),
    'weights',
    options=picture_metrics.MetricOptions(batch_size=8, kid_subsets=0),
    others=panel.PanelOptions(fdr=('mae', 'inception'), fdr_weights=str(weights), **more),
  )
  first = score()
  assert first['scores']['mae_fid'] == pytest.approx(scored[0]['scores']['mae_fid'], rel=1e-6)
  real = tmp_path / 'real.json'
  real.write_text(json.dumps(first))
  second = score(fdr_real=str(real))
  assert second['scores']['fdr_partial'] == pytest.approx(1)
  assert second['protocol']['fdr']['of'] == 'real.json'
  assert not any('FDr divides' in line for line in second['warnings'])
  first['references']['fdr-mae']['sha256'] = '0' * 64
  real.write_text(json.dumps(first))
  with pytest.raises(types.UserError, match=r'mae_fid to a reference with SHA-256 0000'):
    score(fdr_real=str(real))
  real.write_text(json.dumps({'scores': {}, 'references': {}}))
  with pytest.raises(
    types.UserError, match=r'needs fid, a number above 0.*evaluate_npz with --fdr'
  ):
    score(fdr_real=str(real))


def test_cmmd_needs_points(files, weights, tmp_path):
  np.savez(tmp_path / 'x.npz', mu=np.zeros(16), sigma=np.eye(16))
  options = options_of(weights, fdr=(), fdr_weights='', reference=str(tmp_path / 'x.npz'))
  with pytest.raises(
    types.UserError, match='no images: give eval.cmmd_reference, made .*eval.cmmd'
  ):
    evaluate(files, tmp_path, **options)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'fdr': ('mea',)}, "unknown eval.fdr 'mea'; did you mean 'mae'"),
    ({'fdr': ('mae', 'mae')}, 'names a network twice'),
    ({'fdr': ('mae',), 'fdr_weights': ''}, 'needs eval.fdr_weights=FOLDER'),
    ({'fdr': ()}, "eval.fdr_weights='w' is for eval.fdr"),
    ({'fdr': ('inception',)}, "fdr_weights='w' is for eval.fdr with another network"),
    ({'fdr': (), 'fdr_weights': '', 'fdr_real': 'r'}, "eval.fdr_real='r' is for eval.fdr"),
    ({'cmmd_reference': 'x'}, "eval.cmmd_reference='x' is for eval.cmmd"),
  ],
)
def test_options_that_cannot_be_are_refused(changes, message):
  with pytest.raises(types.UserError, match=message):
    panel.PanelOptions(**{'fdr': ('mae',), 'fdr_weights': 'w'} | changes)
