"""A step taken apart: its numbers one by one, and where what is not finite begins."""

import dataclasses
import types as python_types

from flax import nnx
from helpers import tiny
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diversedit_jax import rng, sharding, trees
from diversedit_jax.methods import base
from diversedit_jax.methods import objective as objective_lib
from diversedit_jax.models import config, taps
from diversedit_jax.training import diagnosis
from diversedit_jax.training import state as state_lib

DEPTH, N, KEY = 4, 6, jax.random.key(3)
ARCHITECTURE = tiny.architecture(depth=DEPTH, skip=config.Skip(enabled=True))
NAMES = [f'{100 + i}' for i in range(N)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Root(base.Term):
  """0 times what its block puts out, as a root: finite, but for its gradient in one step."""

  def tap(self, key, depth):
    return taps.chosen([2])

  def loss(self, features, context):
    zero = 0.0 * jnp.sum(features) + jnp.where(context.step == 7, 0.0, 1.0)
    value = jnp.sqrt(zero) - jnp.where(context.step == 7, 0.0, 1.0)
    return value, {'loss': value}


Root.name = 'root'


@pytest.fixture(scope='module')
def parts():
  """The compiled diagnosis in two microbatches, a finite state and a batch."""
  objective = objective_lib.Objective(flow=tiny.interpolant(), terms=(Root(),))
  trainable = state_lib.Trainable(
    lambda rngs: base.Network(ARCHITECTURE, tiny.EXECUTION, rngs=rngs),
    optax.sgd(0.1),
    sharding.make_mesh(),
  )
  _, params = tiny.parameters(ARCHITECTURE)
  state = state_lib.TrainState(step=jnp.int32(2), params=params, ema=params, opt_state=())
  batch = {k: v for k, v in tiny.batch(N).items() if '/' not in k}
  diagnose = diagnosis.make(objective, trainable, key=KEY, depth=DEPTH, accumulate=2)
  run = lambda state, batch: jax.device_get(diagnose(state, batch, {}))
  return python_types.SimpleNamespace(
    objective=objective, trainable=trainable, state=state, batch=batch, run=run
  )


def findings(parts, state=None, batch=None):
  return diagnosis.findings(parts.run(state or parts.state, batch or parts.batch), NAMES)


def with_leaf(state, name, change):
  changed = lambda path, x: change(x) if trees.path_name(path) == name else x
  return state.replace(params=jax.tree_util.tree_map_with_path(changed, state.params))


def test_numbers_are_those_of_the_step_one_by_one(parts):
  found = parts.run(parts.state, parts.batch)
  assert diagnosis.findings(found, NAMES) == []
  draw = parts.objective.draw(parts.batch, rng.stream(KEY, 'step', 2))

  @jax.jit
  def direct(params):
    model = nnx.merge(parts.trainable.graphdef, params).model
    output = model(draw.x_t, draw.t, draw.y, tap=taps.every())
    return jnp.mean(jnp.square(output.pred - draw.target), axis=(1, 2, 3)), output.features

  loss_N, f_LNTD = direct(parts.state.params)
  np.testing.assert_allclose(found['loss'], loss_N, rtol=1e-5)
  np.testing.assert_array_equal(found['t'], draw.t)
  np.testing.assert_array_equal(found['label'], draw.y)
  squares = np.square(np.asarray(f_LNTD, np.float64))
  np.testing.assert_allclose(found['rms'], np.sqrt(squares.mean(axis=(2, 3))).T, rtol=1e-5)
  assert found['metrics']['loss'] == pytest.approx(float(jnp.mean(loss_N)), rel=1e-5)
  whole = np.sqrt(sum(np.sum(np.square(x)) for x in jax.tree.leaves(parts.state.params)))
  assert 0 < np.linalg.norm(found['parameter_norm']) < whole
  assert (found['gradient_norm'] > 0).all()


def test_a_bad_example_is_named_and_others_are_not(parts):
  images = parts.batch['images'].at[4, 1, 2, 0].set(jnp.nan)
  found = parts.run(parts.state, {**parts.batch, 'images': images})
  lines = diagnosis.findings(found, NAMES)
  assert lines[:2] == [
    'images: example 104 is not finite',
    'output of block 1, the first such: example 104 is not finite',
  ]
  assert lines[2].startswith('metrics: ') and 'loss is nan' in lines[2]
  assert lines[3].startswith('gradients, not finite, of blocks up to 4: ') and len(lines) == 4
  np.testing.assert_array_equal(np.isfinite(found['loss']), np.arange(N) != 4)


@pytest.mark.parametrize(
  ('part', 'k', 'block'), [('first', 1, 2), ('second', 1, 3), ('fuse', 0, 4)]
)
def test_a_bad_parameter_is_named_with_its_block(parts, part, k, block):
  """The second half is stored mirrored."""
  names = trees.named_leaves(parts.state.params)
  name = next(n for n in names if n.startswith(f'model/blocks/{part}/') and n.endswith('kernel'))
  state = with_leaf(parts.state, name, lambda x: x.at[k, 0].set(jnp.inf))
  lines = findings(parts, state)
  assert lines[0] == f'parameter {name} of block {block}: not finite before the step'
  assert lines[1] == f'output of block {block}, the first such: all 6 examples are not finite'


def test_parameters_that_overflow_a_block_name_the_block(parts):
  huge = with_leaf(
    parts.state, 'model/blocks/second/mlp/fc2/kernel', lambda x: x.at[1].multiply(1e38)
  )
  huge = with_leaf(huge, 'model/blocks/second/mlp/fc1/bias', lambda x: x.at[1].set(1e3))
  lines = findings(parts, huge)
  assert lines[0].startswith('output of block 3, the first such: all 6 examples are not')


def test_a_last_layer_and_a_gradient_are_told_from_blocks(parts):
  name = 'model/final/linear/kernel'
  lines = findings(parts, with_leaf(parts.state, name, lambda x: x.at[0].set(jnp.nan)))
  assert lines[0] == f'parameter {name}: not finite before the step'
  assert lines[1] == 'prediction: all 6 examples are not finite'
  # The term reads block 3: backwards that is where it begins.
  lines = findings(parts, parts.state.replace(step=jnp.int32(7)))
  assert lines[0] == 'metrics: grad_norm is nan'
  assert lines[1].startswith('gradients, not finite, of blocks up to 3: ') and len(lines) == 2


def test_a_loss_that_overflows_is_no_bad_prediction():
  fine = np.ones((3, 2), bool)
  found = {
    'parameters': {},
    'parameter_norm': np.ones(2),
    'gradients': {},
    'inputs': {},
    'blocks': fine,
    'prediction': fine[:, 0],
    'loss': np.array([1, np.inf, np.inf]),
    'metrics': {'loss': np.inf, 'grad_norm': 2.0},
  }
  assert diagnosis.findings(found, ['7', '8', '9']) == [
    'loss: examples 8, 9 are not finite',
    'metrics: loss is inf',
  ]
