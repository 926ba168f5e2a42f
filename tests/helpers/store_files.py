"""A small store for tests: six pictures in two shards, one of them bad; moments and pixels."""

import hashlib

import numpy as np

from diversedit_jax.data.pictures import base
from diversedit_jax.data.store import layout, writer

VERSIONS = {'jax': '1.2.3'}
SCALE, SHIFT = (0.5, 2.0), (0.25, -1.0)
PLAN = layout.Plan(
  source='folder/small',
  source_digest='d' * 64,
  examples=6,
  records_per_shard=4,
  columns={
    'moments': layout.ColumnFacts(dtype='float16', shape=(2, 2, 4), twins=True),
    'pixels': layout.ColumnFacts(dtype='uint8', shape=(4, 4, 3)),
  },
  label_names=('a', 'b', 'c'),
  size=4,
  crop='adm',
  orientation='exif',
  vae={'scale': list(SCALE), 'shift': list(SHIFT)},
)
LABELS = (0, 2, 2, 0, 0)
SKIPPED = base.Skipped('2.jpg', 'is no picture')
LISTED = (base.Skipped('README.txt', 'no picture'),)


def moments(i):
  """Moments of example i and its twin, [2, 2, 2, 4]; the last two channels are deviations."""
  drawn = np.random.default_rng(i).standard_normal((2, 2, 2, 4)).astype(np.float16)
  drawn[..., 2:] = np.abs(drawn[..., 2:])
  return drawn


def pixels(i):
  return np.random.default_rng(i).integers(0, 256, (1, 4, 4, 3), np.uint8)


def example(i):
  """Example i of five; its key leaves room for the bad picture."""
  return writer.Example(
    key=f'{i + (i >= 2)}',
    label=LABELS[i],
    sha256=hashlib.sha256(bytes([i])).hexdigest(),
    columns={'moments': moments(i), 'pixels': pixels(i)},
  )


def results(shard):
  """What became of the pictures of a shard."""
  return [example(0), example(1), SKIPPED, example(2)] if shard == 0 else [example(3), example(4)]


def write(root):
  """The finished store."""
  layout.write_json(root / 'plan.json', PLAN)
  for shard in range(PLAN.shards):
    writer.write_shard(root, PLAN, shard, results(shard))
  return writer.finish(root, PLAN, LISTED, VERSIONS)
