"""Sources in memory give what the source itself gives, on the host and on the devices."""

import numpy as np
import pytest

from diversedit_jax import sharding
from diversedit_jax.data import latents, pipeline, sources
from diversedit_jax.data.sources import base, resident
from diversedit_jax.types import UserError


class Moments:
  """Moments with twins and pixels beside, like a store, counting what is read."""

  name, space, shape, num_classes = 'moments', 'latents', (2, 2, 1), 3
  pixel_shape, scaling, can_mirror = (4, 4, 3), latents.Scaling(), True
  label_names = ('a', 'b', 'c')

  def __init__(self, n=10):
    generator = np.random.default_rng(0)
    self.table = generator.normal(size=(n, 2, 2, 2, 2)).astype(np.float16)
    self.pixels = generator.integers(0, 256, (n, 4, 4, 3), np.uint8)
    self.labels = (np.arange(n) % 3).astype(np.int32)
    self.reads = 0

  def __len__(self):
    return len(self.table)

  def gather(self, indices, flips=None):
    self.reads += len(indices)
    twin = np.zeros(len(indices), int) if flips is None else flips.astype(int)
    pixels = base.mirrored(self.pixels[indices], flips)
    labels = self.labels[indices]
    return {'moments': self.table[indices, twin], 'pixels': pixels, 'labels': labels}

  def mirrored_latents(self, indices):
    return {'moments': self.table[indices, 1]}


@pytest.fixture(params=['moments', 'digits'])
def source(request):
  return Moments() if request.param == 'moments' else sources.digits('test')


@pytest.mark.parametrize('flip', [False, True])
def test_in_memory_is_the_same_source(source, flip):
  held = sources.in_memory(source, flip=flip)
  mesh = sharding.make_mesh()
  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  device = sources.DeviceSource(held, whole=whole, batch=split)
  for facts in ('name', 'space', 'shape', 'num_classes', 'pixel_shape', 'scaling', 'can_mirror'):
    assert getattr(held, facts) == getattr(device, facts) == getattr(source, facts)
  steps = [
    pipeline.Steps(source=s, seed=0, batch_size=7, flip=flip) for s in (source, held, device)
  ]
  for step in range(4):
    plain, host, named = (make(step) for make in steps)
    assert {'index', 'labels'} <= set(named) <= {'index', 'labels', 'flip'}
    found = device.look_up(sharding.put_batch(named, mesh, 7))
    assert set(plain) == set(host) == set(found)
    for name, array in plain.items():
      np.testing.assert_array_equal(host[name], array, err_msg=name)
      np.testing.assert_array_equal(found[name], array, err_msg=name)
      assert host[name].dtype == found[name].dtype == array.dtype


@pytest.mark.parametrize('flip', [False, True])
def test_every_example_is_read_once(flip):
  source = Moments(n=25)
  held = sources.in_memory(source, flip=flip)
  assert held.num_bytes == 25 * (2 * 2 * 2 * 2 * (1 + flip) + 4 * 4 * 3)  # No twins of pixels.
  assert source.reads == 25 + 1  # One more tells the shapes.
  held.gather(np.arange(25))
  assert source.reads == 26
  for index in (-1, 25):
    with pytest.raises(IndexError, match='25 examples'):
      held.gather(np.array([index]))


def test_more_than_the_memory_is_refused_before_it_is_taken(monkeypatch):
  class Huge(Moments):
    def __len__(self):
      return 10**12

  with pytest.raises(UserError, match=r'moments needs \d+\.\d GiB of memory, and .* GiB are'):
    resident.in_memory(Huge(), flip=False)


class Device:
  """One that says how much memory it has."""

  def __init__(self, limit):
    self.limit = limit

  def memory_stats(self):
    return {'bytes_limit': self.limit, 'bytes_in_use': 100}


def test_what_does_not_fit_the_devices_is_refused_before_it_is_put_there():
  sharding_of_one = type('Sharding', (), {'addressable_devices': [Device(740)]})
  resident._check_devices('moments', 640, sharding_of_one)
  with pytest.raises(UserError, match='data.resident=device: moments needs .* every device'):
    resident._check_devices('moments', 641, sharding_of_one)


def test_mirroring_leaves_what_is_held_as_it_was(source):
  held, flips = sources.in_memory(source, flip=True), np.ones(4, bool)
  before = held.gather(np.arange(4))
  held.gather(np.arange(4), flips)
  source.gather(np.arange(4), flips)
  for one in (held, source):
    for name, array in one.gather(np.arange(4)).items():
      np.testing.assert_array_equal(array, before[name])
