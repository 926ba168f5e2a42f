"""Pictures of sources for networks of evaluation."""

import threading

from helpers import picture_eval
import numpy as np
import pytest

from diversedit_jax.data import sources
from diversedit_jax.evaluation import pictures
from diversedit_jax.types import UserError


def array_source(data, space='pixels'):
  labels = np.zeros(len(data), np.int32)
  return sources.ArraySource(name='arrays/x', space=space, num_classes=1, data=data, labels=labels)


@pytest.fixture
def colours():
  return np.random.default_rng(0).integers(0, 256, (11, 4, 4, 3), np.uint8)


@pytest.mark.parametrize('size', [1, 4, 11, 20])
def test_all_pictures_come_in_order(colours, size):
  found = list(pictures.batches(array_source(colours), size))
  assert [len(x) for x in found[:-1]] == [size] * (len(found) - 1)
  np.testing.assert_array_equal(np.concatenate(found), colours)


def test_a_source_is_fetched_before_all_of_it_is_read(colours):
  source, calls = array_source(colours), []
  object.__setattr__(source, 'fetch', lambda: calls.append('fetched'))
  next(pictures.batches(source, 2))
  assert calls == ['fetched']


def test_a_reader_that_stops_leaves_no_thread(colours):
  before = threading.active_count()
  batches = pictures.batches(array_source(colours), 2)
  next(batches)
  batches.close()
  assert threading.active_count() == before


@pytest.mark.parametrize(
  ('source', 'message'),
  [
    (lambda x: array_source(x[..., :1]), r'pixels \(4, 4, 1\), expected square ones of 3'),
    (lambda x: array_source(x[:, :2]), r'pixels \(2, 4, 3\)'),
    (lambda x: array_source(x.astype(np.float32)), 'of type float32, expected uint8'),
    (lambda x: array_source(x.astype(np.float32), 'latents'), 'has no pixels'),
  ],
)
def test_other_sources_are_refused(colours, source, message):
  pictures.check_source(array_source(colours))
  with pytest.raises(UserError, match=message):
    pictures.check_source(source(colours))


def test_the_digest_of_a_folder_tells_crops_apart(tmp_path):
  picture_eval.write_pictures(tmp_path / 'p')
  opened = lambda **more: sources.open_source(f'folder:{tmp_path}/p', **{'size': 16} | more)
  digests = {
    opened(**more).pixels_digest()
    for more in ({}, {'crop': 'center'}, {'orientation': 'stored'}, {'crop': 'adm'})
  }
  assert len(digests) == 3
  assert opened().digest() == opened(crop='center').digest()  # It covers the files alone.
