"""`--mode=classifier`, and an evaluation by what it writes, end to end on pictures."""

import json

from helpers import picture_eval
import pytest

from diversedit_jax import modes, sharding, types
from diversedit_jax.evaluation import classifier as classifier_lib
from diversedit_jax.modes import classifier, opening

pytestmark = pytest.mark.usefixtures('compilation_cached')


def make(folder, **changes):
  spec = f'folder:{folder}/{{split}}'
  given = {'data__source': spec, 'eval__reference': spec.replace('{split}', 'test')}
  return picture_eval.make(folder, **given | changes)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """A folder with train/, test/, and weights.safetensors of a model of such pictures."""
  root = tmp_path_factory.mktemp('files')
  for seed, split in enumerate(('train', 'test')):
    picture_eval.write_pictures(root / split, seed)
  picture_eval.write_weights(make(root), root / 'weights.safetensors')
  return root


@pytest.fixture(scope='module')
def trained(files):
  """The file, and what was said of it."""
  file = files / 'sub' / 'own.safetensors'
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(classifier_lib, 'fit', small_fit(classifier_lib.fit))
    told = classifier.run(make(files, eval__classifier_epochs=2), str(file))
  return file, told


def small_fit(fit):
  return lambda *sources, **how: fit(*sources, **how, widths=(4, 8))


def test_samples_are_scored_by_it_alone(files, trained, tmp_path):
  file, told = trained
  assert told.startswith(f'{file}\n') and 'of 30 held-out pictures are recognised' in told
  experiment = make(
    files,
    eval__classifier=str(file),
    eval__inception='',
    eval__best='classifier_fid',
    sweep__score='classifier_fid',
  )
  result, _ = modes.evaluate.run(experiment, str(tmp_path), str(files / 'weights.safetensors'))
  found = json.loads(result.read_text())
  assert {'classifier_fid', 'classifier_consistency', 'classifier_kid'} < found['scores'].keys()
  assert not any(name in found['scores'] for name in ('fid', 'sfid', 'inception_score'))
  assert 0 <= found['scores']['classifier_consistency'] <= 1
  assert found['classifier_test_accuracy'] <= 1 and found['classifier_fid_floor'] >= 0
  networks = found['protocol']['networks']
  assert networks['classifier']['file'] == 'own.safetensors'  # And no machine's folder.


@pytest.mark.parametrize('labels', ['random', 'null'])
def test_samples_of_no_class_have_no_class_to_be_taken_for(labels, files, trained, tmp_path):
  given = {'eval__classifier': str(trained[0]), 'eval__inception': '', 'eval__labels': labels}
  experiment = make(files, **given)
  networks = opening.open_networks(experiment, None)
  scorer = opening.open_scorer(experiment, sharding.make_mesh(), tmp_path, None, networks)
  assert 'classifier_fid' in scorer.names
  assert ('classifier_consistency' in scorer.names) == (labels == 'random')


def test_a_place_that_cannot_be_written_is_told_before_training(files, monkeypatch):
  monkeypatch.setattr(classifier_lib, 'fit', lambda *_, **__: pytest.fail('trained'))
  with pytest.raises(types.UserError, match='--output=.*own.safetensors cannot be written'):
    classifier.run(make(files), str(files / 'weights.safetensors' / 'own.safetensors'))


def test_a_file_is_not_replaced(files, trained):
  with pytest.raises(types.UserError, match=r'own.safetensors is there already; remove it'):
    classifier.run(make(files), str(trained[0]))


@pytest.mark.parametrize('output', [None, 'own.pt'])
def test_a_file_must_be_named(files, output):
  with pytest.raises(types.UserError, match=r'needs --output=FILE.safetensors'):
    classifier.run(make(files), output)
