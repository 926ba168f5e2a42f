"""The optimizer against numpy, schedules at their corners, the average against the reference."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diversedit_jax import types
from diversedit_jax.training import average, optim


def adamw_numpy(config, grads, x):
  """AdamW as its paper writes it (arXiv 1711.05101), after clipping by the norm."""
  m, v = np.zeros_like(x), np.zeros_like(x)
  for i, g in enumerate(grads, start=1):
    g = g * min(1.0, config.clip_norm / np.linalg.norm(g)) if config.clip_norm else g
    m = config.b1 * m + (1 - config.b1) * g
    v = config.b2 * v + (1 - config.b2) * g**2
    update = m / (1 - config.b1**i) / (np.sqrt(v / (1 - config.b2**i)) + config.eps)
    x = x - config.learning_rate * (update + config.weight_decay * x)
  return x


@pytest.mark.parametrize('fields', [{}, dict(clip_norm=0.0), dict(weight_decay=0.1, b2=0.95)])
def test_updates_are_adamw_with_clipping(fields):
  config = optim.OptimizerConfig(learning_rate=1e-2, **fields)
  generator = np.random.default_rng(0)
  x = generator.standard_normal(7)
  grads = generator.standard_normal((4, 7)) * np.array([0.1, 5.0, 1.0, 0.01])[:, None]
  with jax.enable_x64(True):
    tx, params = optim.make(config, steps=10), jnp.asarray(x)
    state = tx.init(params)
    for g in grads:
      updates, state = tx.update(jnp.asarray(g), state, params)
      params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, adamw_numpy(config, grads, x), rtol=1e-10)


@pytest.mark.parametrize('size', [1e-3, 1.0, 1e3])
def test_clipping_is_that_of_optax_to_one_rounding(size):
  generator = np.random.default_rng(1)
  grads = {k: jnp.asarray(size * generator.normal(size=5), jnp.float32) for k in 'ab'}
  ours, theirs = optim.clip_by_global_norm(1.0), optax.clip_by_global_norm(1.0)
  clipped, state = ours.update(grads, ours.init(grads))
  wanted, other = theirs.update(grads, theirs.init(grads))
  assert jax.tree.structure(state) == jax.tree.structure(other)  # Checkpoints stay readable.
  for name in grads:
    # g (1 / n) is rounded twice, g / n once.
    np.testing.assert_allclose(clipped[name], wanted[name], rtol=2e-7)
    if size == 1e-3:
      np.testing.assert_array_equal(clipped[name], grads[name])


def test_weight_decay_is_off_by_default():
  assert optim.OptimizerConfig().weight_decay == 0.0


def test_schedules():
  warm = optim.schedule(optim.OptimizerConfig(learning_rate=2.0, warmup_steps=4), 10)
  np.testing.assert_allclose([warm(i) for i in (0, 1, 4, 9)], [0.0, 0.5, 2.0, 2.0])
  cosine = optim.schedule(
    optim.OptimizerConfig(learning_rate=2.0, warmup_steps=2, schedule='cosine'), 10
  )
  np.testing.assert_allclose([cosine(i) for i in (1, 2, 6, 10)], [1.0, 2.0, 1.0, 0.0], atol=1e-7)
  # RAE's shape: constant, then down to a tenth, where it stays; Muon's runs in proportion.
  options = {'schedule': 'linear', 'decay_start': 4, 'decay_to': 0.1, 'warmup_steps': 2}
  linear = optim.schedule(optim.OptimizerConfig(learning_rate=2.0, decay_end=8, **options), 100)
  np.testing.assert_allclose(
    [linear(i) for i in (1, 2, 4, 6, 8, 50)], [1.0, 2.0, 2.0, 1.1, 0.2, 0.2], rtol=1e-6
  )
  to_the_end = optim.schedule(optim.OptimizerConfig(learning_rate=2.0, **options), 8)
  assert to_the_end(6) == linear(6)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'decay_to': 0.1}, "decay_to=0.1 is of optimizer.schedule='linear', got 'constant'"),
    (
      {'schedule': 'linear', 'decay_start': 10},
      'decay_start=10 must be .* less than train.steps=10',
    ),
    ({'schedule': 'linear', 'warmup_steps': 2}, 'at least optimizer.warmup_steps=2'),
    ({'schedule': 'linear', 'decay_start': 3, 'decay_end': 3}, 'less than optimizer.decay_end=3'),
  ],
)
def test_a_fall_that_cannot_be_is_refused(options, message):
  with pytest.raises(types.UserError, match=message):
    optim.schedule(optim.OptimizerConfig(**options), 10)


def test_warmup_longer_than_the_run_is_refused():
  with pytest.raises(types.UserError, match='warmup_steps=10 must be less than train.steps=10'):
    optim.schedule(optim.OptimizerConfig(warmup_steps=10), 10)


@pytest.mark.parametrize('decay', [0.9999, 0.99])
def test_ema_agrees_with_the_reference(decay, golden):
  arrays = golden('ema')
  names = [k.removeprefix('init/') for k in arrays if k.startswith('init/')]
  ema = {name: jnp.asarray(arrays[f'init/{name}']) for name in names}
  for i in range(5):
    params = {name: jnp.asarray(arrays[f'params/{name}'][i]) for name in names}
    ema = average.decayed(ema, params, decay)
    for name in names:
      # Two roundings of float32 an update.
      np.testing.assert_allclose(ema[name], arrays[f'ema_{decay}/{name}'][i], rtol=3e-7, atol=1e-7)


def test_a_state_may_begin_or_cease_to_be_of_a_clipped_optimizer():
  params = {'w': jnp.ones(3)}
  clipped, free = (
    optim.make(optim.OptimizerConfig(clip_norm=norm), 10).init(params) for norm in (1.0, 0.0)
  )
  for one, other in ((clipped, free), (free, clipped)):
    assert jax.tree.structure(optim.other_form(one)) == jax.tree.structure(other)
