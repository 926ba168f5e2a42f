"""Facts about the data of a run: the order of its examples, their labels and their values."""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import hashlib
import time
from typing import Any

import numpy as np

from diversedit_jax.data import pipeline

# Scaled latents of natural images have a standard deviation of 0.7 to 1 in each channel. A value
# outside this range means that the scale does not belong to the autoencoder.
USUAL_STD = (0.4, 2.0)


@dataclasses.dataclass(frozen=True)
class _Indices:
  """A source whose examples are their indices."""

  n: int
  name = 'indices'
  can_mirror = True

  def __len__(self) -> int:
    return self.n

  def gather(self, indices, flips=None):
    return {'index': indices, 'flip': np.zeros(len(indices), bool) if flips is None else flips}


def order_facts(
  n: int, *, seed: int, batch_size: int, flip: bool, epochs: int, processes: Sequence[int]
) -> dict[str, Any]:
  """Reads the order of whole epochs through the pipeline's own code, as several processes would.

  Args:
    n: number of examples.
    seed: seed of the data order.
    batch_size: examples of all processes together.
    flip: whether examples are mirrored.
    epochs: number of epochs to read, from the first.
    processes: numbers of processes to simulate; each divides batch_size.

  Returns:
    'epochs': for each epoch the 'sha256' of the little-endian int64 indices (and of the flips), how
    often examples occur ('seen': [least, most]) and the share of 'mirrored' ones.
    'processes': for each number of processes, whether their batches joined are the global ones.
    'faults': what is wrong, in words.
  """
  last = -(-epochs * n // batch_size)
  seen, flips = _read(n, seed, batch_size, flip, last, [None])
  agree = {}
  for count in processes:
    rows = np.arange(batch_size).reshape(count, -1)
    joined, joined_flips = _read(n, seed, batch_size, flip, last, rows)
    agree[count] = bool(np.array_equal(joined, seen) and np.array_equal(joined_flips, flips))
  facts, faults = [], [f'{p} processes see another order' for p, same in agree.items() if not same]
  for epoch in range(epochs):
    part = slice(epoch * n, (epoch + 1) * n)
    counts = np.bincount(seen[part], minlength=n)
    hashed = hashlib.sha256(seen[part].astype('<i8').tobytes())
    hashed.update(np.packbits(flips[part]).tobytes() if flip else b'')
    facts.append(
      {
        'epoch': epoch,
        'sha256': hashed.hexdigest(),
        'seen': [int(counts.min()), int(counts.max())],
        'mirrored': float(flips[part].mean()),
      }
    )
    if facts[-1]['seen'] != [1, 1]:
      faults.append(f'epoch {epoch} shows examples {facts[-1]["seen"]} times, expected once')
  if len({fact['sha256'] for fact in facts}) < epochs:
    faults.append('two epochs have the same order')
  return {'examples': n, 'epochs': facts, 'processes': agree, 'faults': faults}


def label_facts(labels: np.ndarray, num_classes: int) -> dict[str, Any]:
  """Examples per class: the least, the most, and the classes that have none."""
  counts = np.bincount(labels, minlength=num_classes)
  empty = np.flatnonzero(counts == 0)
  return {
    'classes': num_classes,
    'least': int(counts.min()),
    'most': int(counts.max()),
    'empty': empty.tolist(),
    'sha256': hashlib.sha256(labels.astype('<i4').tobytes()).hexdigest(),
  }


def value_facts(
  batches: Iterable[dict[str, np.ndarray]], values: Callable[[dict[str, np.ndarray]], np.ndarray]
) -> dict[str, Any]:
  """Reads batches and describes `values(batch)`, an array [n, ..., C], by channel.

  Returns:
    'examples', 'per_second' (reading alone), 'nonfinite' (positions with a value that is not
    finite), and over the other positions 'mean' and 'std' by channel, 'min' and 'max'. Without any
    finite position these are [] and None.
  """
  count, total, squares, low, high, nonfinite, examples = 0, 0.0, 0.0, np.inf, -np.inf, 0, 0
  started = time.perf_counter()
  read = 0.0
  for batch in batches:
    read += time.perf_counter() - started
    x = values(batch)
    x_NC = x.astype(np.float64).reshape(-1, x.shape[-1])
    finite = np.isfinite(x_NC).all(axis=1)
    nonfinite += int(len(x_NC) - finite.sum())
    x_NC = x_NC[finite]
    count, examples = count + len(x_NC), examples + len(x)
    total, squares = total + x_NC.sum(axis=0), squares + (x_NC**2).sum(axis=0)
    low = min(low, float(x_NC.min(initial=np.inf)))
    high = max(high, float(x_NC.max(initial=-np.inf)))
    started = time.perf_counter()
  speed = examples / read if examples else None
  facts = {'examples': examples, 'per_second': speed, 'nonfinite': nonfinite}
  if not count:
    return {**facts, 'mean': [], 'std': [], 'min': None, 'max': None}
  mean = total / count
  std = np.sqrt(np.maximum(squares / count - mean**2, 0))
  return {**facts, 'mean': mean.tolist(), 'std': std.tolist(), 'min': low, 'max': high}


def _read(n, seed, batch_size, flip, last, parts):
  """Indices and flips of all batches, each batch joined from the rows that the processes hold."""
  source = _Indices(n)
  readers = [
    pipeline.Steps(source=source, seed=seed, batch_size=batch_size, rows=rows, flip=flip)
    for rows in parts
  ]
  batches = [[reader(step) for reader in readers] for step in range(last)]
  join = lambda name: np.concatenate([part[name] for batch in batches for part in batch])
  return join('index'), join('flip')
