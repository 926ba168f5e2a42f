"""The audit finds what is wrong with an order, labels or values, and nothing where all is well."""

import hashlib

import numpy as np
import pytest

from diversedit_jax.data import audit, order, pipeline


@pytest.mark.parametrize('flip', [False, True])
@pytest.mark.parametrize(('n', 'batch_size'), [(100, 20), (103, 24)])
def test_the_order_of_a_run_is_sound(n, batch_size, flip):
  facts = audit.order_facts(
    n, seed=5, batch_size=batch_size, flip=flip, epochs=3, processes=[1, 2, 4]
  )
  assert facts['faults'] == [] and facts['processes'] == {1: True, 2: True, 4: True}
  assert [e['seen'] for e in facts['epochs']] == [[1, 1]] * 3
  assert len({e['sha256'] for e in facts['epochs']}) == 3
  assert all((0.2 < e['mirrored'] < 0.8) == flip for e in facts['epochs'])


def test_the_digest_is_that_of_the_permutation():
  """Whoever wants to compare two systems can compute it with one line of NumPy."""
  facts = audit.order_facts(50, seed=1, batch_size=7, flip=False, epochs=1, processes=[])
  expected = hashlib.sha256(order.permutation(1, 0, 50).astype('<i8').tobytes()).hexdigest()
  assert facts['epochs'][0]['sha256'] == expected


def test_an_order_that_repeats_or_drops_is_found(monkeypatch):
  broken = lambda seed, step, batch_size, n: np.arange(batch_size) % n
  monkeypatch.setattr(order, 'batch_indices', broken)
  facts = audit.order_facts(40, seed=0, batch_size=8, flip=False, epochs=2, processes=[2])
  assert 'epoch 0 shows examples [0, 5] times, expected once' in facts['faults']
  assert 'two epochs have the same order' in facts['faults']


def test_an_order_that_depends_on_the_process_is_found(monkeypatch):
  def shifted(self, step):
    rows = np.arange(self.batch_size) if self.rows is None else self.rows
    indices = (rows + step * self.batch_size + (self.rows is not None)) % len(self.source)
    return self.source.gather(indices)

  monkeypatch.setattr(pipeline.Steps, '__call__', shifted)
  facts = audit.order_facts(40, seed=0, batch_size=8, flip=False, epochs=1, processes=[2])
  assert facts['processes'] == {2: False}
  assert '2 processes see another order' in facts['faults']


def test_values_are_described_by_channel():
  x = np.random.default_rng(0).normal([1.0, -2.0], [0.5, 3.0], (6, 10, 10, 2))
  facts = audit.value_facts([{'v': x[:2]}, {'v': x[2:]}], lambda batch: batch['v'])
  np.testing.assert_allclose(facts['mean'], x.mean(axis=(0, 1, 2)), rtol=1e-12)
  np.testing.assert_allclose(facts['std'], x.std(axis=(0, 1, 2)), rtol=1e-12)
  assert (facts['examples'], facts['nonfinite']) == (6, 0) and facts['per_second'] > 0
  assert (facts['min'], facts['max']) == (x.min(), x.max())
  x[3, 4, 5, 0] = np.nan
  assert audit.value_facts([{'v': x}], lambda batch: batch['v'])['nonfinite'] == 1
