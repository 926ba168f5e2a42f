"""The classifier of one's own pictures: trained, kept, opened, and what it is made to say."""

from flax import nnx
import jax
import numpy as np
import pytest

from diversedit_jax import types
from diversedit_jax.data import sources
from diversedit_jax.evaluation import classifier, scores
from diversedit_jax.weights import array_files

WIDTHS = (8, 16)
pytestmark = pytest.mark.usefixtures('compilation_cached')


def array_source(images, labels, classes=3):
  return sources.ArraySource(
    name='colours', space='pixels', num_classes=classes, data=images, labels=labels
  )


@pytest.fixture(scope='module')
def source():
  """30 pictures of three classes, each with the colour of its class."""
  rng = np.random.default_rng(0)
  labels = np.arange(30, dtype=np.int32) % 3
  colours = np.array([[200, 30, 30], [30, 200, 30], [30, 30, 200]])[labels]
  noise = rng.integers(0, 50, (30, 16, 16, 3))
  images = (colours[:, None, None] + noise).astype(np.uint8)
  return array_source(images, labels)


@pytest.fixture(scope='module')
def fitted(source):
  return classifier.fit(source, source, epochs=20, seed=0, widths=WIDTHS)


def test_it_tells_colours_apart_and_so_it_is_written_and_read(source, fitted, tmp_path):
  assert fitted.facts['test_accuracy'] == 1.0
  file = tmp_path / 'colours.safetensors'
  classifier.save(file, fitted)
  network = classifier.open_network(file, 3)
  assert network.labelled and network.measured == fitted.facts
  batch = source.gather(np.arange(30))
  found = network.features(network.params, batch['images'])
  assert found['pool'].shape == (30, classifier.POOL)
  np.testing.assert_array_equal(found['logits'].argmax(axis=1), batch['labels'])
  # The pool is what the logits are made of, by the weights of the file.
  head = network.params['head']
  made = np.asarray(found['pool'], np.float64) @ head['kernel'] + head['bias']
  np.testing.assert_allclose(found['logits'], made, rtol=0, atol=1e-4)


def test_its_floor_is_the_distance_between_the_splits(source, fitted):
  """That of a split to itself is 0 in exact arithmetic."""
  assert abs(fitted.facts['fid_floor']) < 1e-6
  other = array_source(source.data[:12], source.labels[:12])
  again = classifier.fit(source, other, epochs=20, seed=0, widths=WIDTHS)
  graphdef, _ = nnx.split(classifier.Classifier(3, WIDTHS, rngs=nnx.Rngs(0)))
  model = nnx.merge(graphdef, again.params)
  pool = lambda s: np.asarray(model(s.data / 127.5 - 1)['pool'])
  statistics = [scores.gaussian_statistics(pool(s).astype(np.float64)) for s in (source, other)]
  expected = scores.frechet_distance(*statistics[0], *statistics[1])
  assert expected > 0.01
  np.testing.assert_allclose(again.facts['fid_floor'], expected, rtol=1e-3)


def test_the_same_seed_gives_the_same_classifier(source):
  first, again, other = (
    classifier.fit(source, source, epochs=1, seed=s, widths=WIDTHS) for s in (1, 1, 2)
  )
  equal = jax.tree.map(np.array_equal, first.params, again.params)
  assert jax.tree.all(equal)
  assert not jax.tree.all(jax.tree.map(np.array_equal, first.params, other.params))


def test_a_file_of_other_classes_is_refused(fitted, tmp_path):
  file = tmp_path / 'colours.safetensors'
  classifier.save(file, fitted)
  with pytest.raises(types.UserError, match='a classifier of 3 classes, and the data have 4'):
    classifier.open_network(file, 4)


def test_a_file_of_something_else_is_refused(tmp_path):
  file = tmp_path / 'vae.safetensors'
  array_files.save(file, {'conv_in/kernel': np.zeros((3, 3, 3, 8), np.float32)})
  with pytest.raises(types.UserError, match='holds no classifier.*--mode=classifier'):
    classifier.open_network(file, 3)


def test_pictures_without_classes_are_refused():
  source = array_source(np.zeros((4, 16, 16, 3), np.uint8), np.zeros(4, np.int32), classes=0)
  with pytest.raises(types.UserError, match='colours has no classes'):
    classifier.fit(source, source, epochs=1, seed=0)
