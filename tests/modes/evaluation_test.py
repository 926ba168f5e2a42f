"""`--mode=eval` end to end with a narrow network in Inception's place: files, cards, resuming."""

import json

from helpers import picture_eval, small, small_runs
import numpy as np
import pytest

from diversedit_jax import modes, types
from diversedit_jax.data import images
from diversedit_jax.evaluation import card, multihost, picture_metrics, reference
from diversedit_jax.frozen import vae_files
from diversedit_jax.modes import evaluate, identity, opening, restoring, run_context
from diversedit_jax.sampling import generate

tiny_inception, files = picture_eval.tiny_inception, picture_eval.files
pytestmark = pytest.mark.usefixtures('compilation_cached')
N = picture_eval.SMALL['eval__number']


def scored(files, workdir, **changes):
  """Evaluates in a folder; the result and, if it was written, the arrays of the archive."""
  origin = str(files / 'weights.safetensors')
  written = modes.evaluate.run(picture_eval.make(files, **changes), str(workdir), origin)
  result = json.loads(written[0].read_text())
  return result, small_runs.arrays(written[1]) if len(written) > 1 else None


@pytest.fixture(scope='module')
def whole(files, tmp_path_factory):
  """An evaluation that nothing disturbed: folder, result, arrays."""
  workdir, origin = tmp_path_factory.mktemp('whole'), str(files / 'weights.safetensors')
  result, archive = modes.evaluate.run(picture_eval.make(files), str(workdir), origin)
  return workdir, json.loads(result.read_text()), small_runs.arrays(archive)


def test_it_writes_the_scores_the_archive_and_the_statistics_and_nothing_else(whole):
  workdir, result, _ = whole
  found = {p.relative_to(workdir).as_posix() for p in workdir.rglob('*') if p.is_file()}
  (statistics,) = [name for name in found if name.startswith('eval/references/')]
  assert found == {'eval/fid.json', 'eval/fid.npz', statistics}
  assert not list((workdir / 'eval').glob('*.parts'))
  assert set(result['scores']) == {
    'fid',
    'sfid',
    'inception_score',
    'inception_score_std',
    'precision',
    'recall',
    'kid',
    'kid_std',
  }
  assert all(np.isfinite(list(result['scores'].values())))
  assert result['scores']['fid'] > 1e-3 and 1 <= result['scores']['inception_score'] <= 10


def test_the_archive_holds_the_samples_shuffled_with_their_labels(whole, files):
  """Each picture is the sample of its index, made alone, with the label that stands beside it."""
  _, result, found = whole
  assert set(found) == {'arr_0', 'arr_1'}
  assert found['arr_0'].shape == (N, 16, 16, 3) and found['arr_0'].dtype == np.uint8
  experiment = picture_eval.make(files)
  _, weights = restoring.open_weights(experiment, str(files), str(files / 'weights.safetensors'))
  labels = generate.make_labels('random', np.arange(N), 3, experiment.sample.seed)
  generator = run_context.make_generator(experiment, weights.graphdef, weights.mesh, N)
  with run_context.sampling(experiment, weights.mesh):
    made = images.to_uint8(generator(weights.params, labels), 'truncate')
  places = [int(np.flatnonzero((made == x).all(axis=(1, 2, 3)))[0]) for x in found['arr_0']]
  assert sorted(places) == list(range(N)) and places != sorted(places)
  np.testing.assert_array_equal(found['arr_1'], labels[places])
  assert len(set(labels)) == 3


def test_scores_are_those_of_the_archive(whole, files):
  """The file that was written has the same scores."""
  workdir, result, found = whole
  (statistics,) = (workdir / 'eval' / 'references').iterdir()
  metrics = picture_metrics.PictureMetrics(
    picture_eval.network(),
    reference.read(statistics),
    image_size=16,
    options=picture_metrics.MetricOptions(batch_size=8, kid_subsets=2),
    mesh=run_context.make_mesh(picture_eval.make(files)),
  )
  again = picture_metrics.score({'': metrics}, [found['arr_0']], N)
  assert again['scores'] == pytest.approx(result['scores'], rel=1e-12)
  assert again['warnings'] == result['warnings']


def test_the_card_holds_the_whole_protocol(whole):
  _, result, _ = whole
  protocol = result['protocol']
  expected = {
    'sampler': 'euler',
    'steps': 2,
    'nfe': 4,
    'label_policy': 'random',
    'quantiser': 'truncate',
    'guidance': {
      'scale': 1.5,
      'interval': [0.0, 1.0],
      'channels': 'all',
      'formula': 'v_null + scale (v_class - v_null)',
    },
    'weights': 'file',
    'seed': 0,
    'num_samples': N,
    'checkpoint': 'weights.safetensors',
    'step': None,
    'precision': {'model': 'float32', 'residual': 'float32', 'float32_products': 'highest'},
    'versions': card.versions(),
    'device': {'kind': 'cpu', 'count': 1},
    'samples_made_before': 0,
    'precision_recall': 'float32',
    'kid_subsets': 2,
  }
  assert {name: protocol[name] for name in expected} == expected
  assert protocol['seconds'] > 0 and protocol['seconds_of_scoring'] > 0
  assert protocol['networks'] == {'inception': picture_eval.network().facts()}
  assert protocol['reference']['inception'] == result['references']['inception']['sha256']
  assert len(protocol['parameters']) == 16 and len(protocol['labels_sha256']) == 64
  assert result['references']['inception']['images'] == picture_eval.COUNT
  assert f'FID-{N} is not FID-50K' in ' '.join(result['warnings'])


def test_another_batch_size_makes_the_same_samples(whole, files, tmp_path):
  """To the rounding of float32 sums, which may move a value over the border of a level."""
  result, found = scored(files, tmp_path, sample__batch_size=7, eval__batch_size=5)
  np.testing.assert_array_equal(found['arr_1'], whole[2]['arr_1'])
  gap = np.abs(found['arr_0'].astype(int) - whole[2]['arr_0'])
  assert gap.max() <= 1 and (gap > 0).mean() < 1e-3
  assert result['scores']['fid'] == pytest.approx(whole[1]['scores']['fid'], rel=1e-3)


@pytest.mark.parametrize('batch_size', [8, 5])
def test_an_interrupted_evaluation_goes_on(whole, files, tmp_path, monkeypatch, batch_size):
  call, asked = generate.Generator.__call__, []

  def once(self, params, labels, indices):
    asked.append(list(indices))
    if len(asked) == 3:
      raise picture_eval.Interrupted
    return call(self, params, labels, indices)

  monkeypatch.setattr(generate.Generator, '__call__', once)
  with pytest.raises(picture_eval.Interrupted):
    scored(files, tmp_path)
  kept = {p.name for p in (tmp_path / 'eval' / 'fid.parts').iterdir()}
  assert kept == {'identity.json', '00000000.npy', '00000008.npy'}
  assert not (tmp_path / 'eval' / 'fid.json').exists()
  result, found = scored(files, tmp_path, sample__batch_size=batch_size)
  shuffled = evaluate.file_order(picture_eval.make(files), N).tolist()
  assert asked == [shuffled[:8], shuffled[8:16], shuffled[16:], shuffled[16:]]
  assert result['protocol']['samples_made_before'] == 16
  # The last four come in a batch of another size.
  gap = np.abs(found['arr_0'].astype(int) - whole[2]['arr_0'])
  assert gap.max() <= (batch_size != 8) and (gap > 0).mean() < 1e-3
  np.testing.assert_array_equal(found['arr_1'], whole[2]['arr_1'])
  assert result['identity'] == whole[1]['identity']
  assert not (tmp_path / 'eval' / 'fid.parts').exists()


def test_samples_that_another_process_does_not_see_are_refused(files, tmp_path, monkeypatch):
  monkeypatch.setattr(multihost, '_PATIENCE_SECONDS', 0)
  monkeypatch.setattr(generate.Generator, '__call__', lambda *_: pytest.fail('sampled'))
  monkeypatch.setattr(multihost, 'from_first', lambda number: 8)  # The first process sees a batch.
  parts = tmp_path / 'eval' / 'fid.parts'
  card.write_json(parts / 'identity.json', {})
  monkeypatch.setattr(identity, 'is_of', lambda path, *_: path.name == 'identity.json')
  with pytest.raises(types.UserError, match='the workdir must be one that all see'):
    scored(files, tmp_path)


def test_a_failure_of_the_scores_costs_no_sample(whole, files, tmp_path, monkeypatch):
  with monkeypatch.context() as patch:
    patch.setattr(picture_metrics.PictureMetrics, 'scores', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      scored(files, tmp_path)
  monkeypatch.setattr(generate.Generator, '__call__', lambda *_, **__: pytest.fail('sampled'))
  result, found = scored(files, tmp_path)
  assert result['scores'] == whole[1]['scores']
  np.testing.assert_array_equal(found['arr_0'], whole[2]['arr_0'])


def test_the_same_protocol_is_not_repeated(whole, files, monkeypatch):
  monkeypatch.setattr(generate.Generator, '__call__', lambda *_, **__: pytest.fail('sampled'))
  before = (whole[0] / 'eval' / 'fid.json').read_text()
  assert scored(files, whole[0])[0] == whole[1]
  assert (whole[0] / 'eval' / 'fid.json').read_text() == before


def test_a_key_of_the_network_that_came_later_is_no_other_protocol(whole, files, tmp_path):
  """It meant its default before it was there."""
  stored = json.loads((whole[0] / 'eval' / 'fid.json').read_text())
  network = stored['identity']['samples']['network']
  assert network.pop('interpolant.path') == 'linear'
  (tmp_path / 'eval').mkdir()
  (tmp_path / 'eval' / 'fid.json').write_text(json.dumps(stored))
  assert scored(files, tmp_path)[0] == stored
  assert network.pop('model.patch_size') == 4  # Which is not the default.
  (tmp_path / 'eval' / 'fid.json').write_text(json.dumps(stored))
  with pytest.raises(types.UserError, match=r'model.patch_size: there 0, now 4'):
    scored(files, tmp_path)


# Changes of the config, and what the refusal says of them.
OTHER = {
  'guidance': ({'sampler__guidance_scale': 2.0}, ['guidance_scale: there 1.5, now 2.0']),
  'number': ({'eval__number': 24}, ['samples.number: there 20, now 24']),
  'scores': ({'eval__kid_subsets': 3}, ['compared.kid_subsets: there 2, now 3']),
  'heads': ({'model__heads': 4}, ['network.model.heads: there 2, now 4']),
}


@pytest.mark.parametrize('name', OTHER)
def test_another_protocol_under_the_same_name_is_refused(whole, files, name):
  changes, fragments = OTHER[name]
  with pytest.raises(types.UserError) as error:
    scored(files, whole[0], **changes)
  message = str(error.value)
  assert 'eval/fid.json has scores of another protocol' in message
  assert 'Choose another eval.name' in message
  assert all(fragment in message for fragment in fragments), message
  assert json.loads((whole[0] / 'eval' / 'fid.json').read_text()) == whole[1]


def test_a_file_holds_one_set_of_weights(whole, files, tmp_path):
  """Nobody knows whether these weights are averages, so the card does not say."""
  assert whole[1]['identity']['samples']['weights'] == 'file'
  for mode in (modes.evaluate.run, modes.sample.run):
    with pytest.raises(types.UserError, match='sample.weights=params .* weights.safetensors is a'):
      experiment = picture_eval.make(files, sample__weights='params')
      mode(experiment, str(tmp_path / 'out'), str(files / 'weights.safetensors'))


def test_samples_of_another_protocol_are_never_mixed(files, tmp_path, monkeypatch):
  call = generate.Generator.__call__
  calls = iter([call, lambda *_: 1 / 0])
  stop = lambda *values: next(calls)(*values)
  with monkeypatch.context() as patch:
    patch.setattr(generate.Generator, '__call__', stop)
    with pytest.raises(ZeroDivisionError):
      scored(files, tmp_path)
  with pytest.raises(types.UserError, match=r'fid\.parts has samples of another protocol'):
    scored(files, tmp_path, sampler__steps=3)
  known = tmp_path / 'eval' / 'fid.parts' / 'identity.json'
  text = known.read_text()
  by_index = {k: v for k, v in json.loads(text).items() if k != 'order'}
  known.write_text(json.dumps(by_index))  # Samples were once kept by index.
  with pytest.raises(types.UserError, match="order: there '.absent.', now 'file'"):
    scored(files, tmp_path)
  known.unlink()
  with pytest.raises(types.UserError, match=r'fid\.parts holds 8 samples but no identity\.json'):
    scored(files, tmp_path)
  known.write_text(text)
  # How they are scored is no part of what they are.
  assert scored(files, tmp_path, eval__kid_subsets=0)[0]['protocol']['samples_made_before'] == 8


def test_samples_left_by_a_kill_after_the_scores_are_removed(whole, files):
  left = whole[0] / 'eval' / 'fid.parts'
  left.mkdir()
  (left / '00000000.npy').touch()
  scored(files, whole[0])
  assert not left.exists()


def test_a_damaged_result_is_named(files, tmp_path):
  (tmp_path / 'eval').mkdir()
  (tmp_path / 'eval' / 'fid.json').write_text('{"scores":')
  with pytest.raises(types.UserError, match=r'eval/fid\.json is damaged'):
    scored(files, tmp_path)


def test_given_labels_are_those_of_the_samples(whole, files, tmp_path):
  given = np.arange(30)[::-1] % 2
  np.save(tmp_path / 'given.npy', given)
  options = {'eval__labels': f'file:{tmp_path}/given.npy', 'eval__keep_samples': False}
  result, archive = scored(files, tmp_path, **options)
  assert archive is None and not (tmp_path / 'eval' / 'fid.npz').exists()
  assert result['protocol']['label_policy'] == 'file:given.npy'
  np.testing.assert_array_equal(
    evaluate.make_labels(picture_eval.make(files, **options), N), given[:N]
  )
  np.save(tmp_path / 'given.npy', 1 - given)  # Other labels by the same name.
  with pytest.raises(types.UserError, match='labels_sha256: there'):
    scored(files, tmp_path, **options)


@pytest.mark.parametrize(
  ('labels', 'message'),
  [
    (np.zeros(19, int), r'holds int64 \(19,\), expected at least 20 integers'),
    (np.full(20, 3), 'labels from 3 to 3, expected 0 to 2'),
    (None, 'cannot be read'),
  ],
)
def test_labels_that_do_not_fit_are_refused_before_anything_is_opened(
  files, tmp_path, monkeypatch, labels, message
):
  monkeypatch.setattr(opening, 'open_all', lambda *_: pytest.fail('opened'))
  (tmp_path / 'given.npy').write_bytes(b'PK')
  if labels is not None:
    np.save(tmp_path / 'given.npy', labels)
  with pytest.raises(types.UserError, match=message):
    scored(files, tmp_path / 'out', eval__labels=f'file:{tmp_path}/given.npy')


def test_latents_are_scored_as_pictures_of_the_vae(tmp_path):
  vae = small.write_vae(tmp_path / 'vae')
  latents = np.random.default_rng(0).normal(size=(20, 4, 4, 2)).astype(np.float32)
  np.savez(tmp_path / 'latents.npz', latents=latents, labels=np.arange(20) % 3)
  picture_eval.write_pictures(tmp_path / 'pictures')
  options = {
    'data__source': f'arrays:{tmp_path}/latents.npz',
    'data__size': None,
    'model__patch_size': 2,
    'vae__weights': str(vae),
    'eval__name': 'fid-{step}',
    'eval__number': 10,
  }
  weights = picture_eval.write_weights(picture_eval.make(tmp_path, **options), tmp_path / 'w.npz')
  experiment = picture_eval.make(tmp_path, **options)
  written = modes.evaluate.run(experiment, str(tmp_path / 'out'), str(weights))
  assert [path.name for path in written] == ['fid-w.npz.json', 'fid-w.npz.npz']
  found, facts = small_runs.arrays(written[1]), json.loads(written[0].read_text())['protocol']
  assert found['arr_0'].shape == (10, 16, 16, 3) and found['arr_0'].std() > 1
  assert facts['vae']['decoder_sha256'] == vae_files.load(vae).decoder_sha256
  assert (facts['vae']['scale'], facts['vae']['shift']) == (small.CONFIG.scale, small.CONFIG.shift)
  with pytest.raises(types.UserError, match='samples.vae.scale: there 0.5, now 0.4'):
    other = picture_eval.make(tmp_path, **options, vae__scale=0.4)
    modes.evaluate.run(other, str(tmp_path / 'out'), str(weights))
  with pytest.raises(types.UserError, match='arrays/latents.* are latents.*give vae.weights=FILE'):
    modes.evaluate.run(
      picture_eval.make(tmp_path, **options | {'vae__weights': ''}), str(tmp_path), str(weights)
    )
