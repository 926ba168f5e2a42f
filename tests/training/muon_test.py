"""Muon against NumPy in float64 and optax on single matrices; whose parameters are whose."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import digits
from diversedit_jax import experiment as experiment_lib
from diversedit_jax import sharding, trees, types
from diversedit_jax.modes import run_context
from diversedit_jax.training import muon, optim

SHAPES = {
  'model/blocks/attn/qkv/kernel': (2, 4, 3, 4),  # [layers, in, parts, out]
  'model/blocks/attn/qkv/bias': (2, 3, 4),
  'model/blocks/mlp/fc1/kernel': (2, 4, 10),
  'model/blocks/mlp/fc2/kernel': (2, 10, 4),
  'model/time_embed/fc1/kernel': (6, 4),
  'model/label_embed/embedding': (5, 4),
  'model/patch_embed/kernel': (3, 4),
  'model/final/linear/kernel': (4, 3),
  'heads/repa/0/fc1/kernel': (4, 7),
}
MATRICES = {
  name: [(layer, slice(None), *([part] if len(shape) == 4 else []), slice(None))
    for layer in range(2) for part in (range(3) if len(shape) == 4 else [0])]
  for name, shape in SHAPES.items() if 'blocks' in name and 'kernel' in name
}  # fmt: skip


def nested(flat):
  made = {}
  for name, x in flat.items():
    *above, last = name.split('/')
    node = made
    for part in above:
      node = node.setdefault(part, {})
    node[last] = x
  return made


def draw(seed):
  generator = np.random.default_rng(seed)
  return {name: generator.standard_normal(shape) for name, shape in SHAPES.items()}


def orthogonal(x, iterations=5):
  """(3) as its author writes it, on one matrix."""
  a, b, c = 3.4445, -4.7750, 2.0315
  x = x / (np.linalg.norm(x) + 1e-8)
  turned = x.shape[0] > x.shape[1]
  x = x.T if turned else x
  for _ in range(iterations):
    gram = x @ x.T
    x = a * x + (b * gram + c * gram @ gram) @ x
  return x.T if turned else x


def muon_numpy(config, rate, grads, x):
  m, mu = np.zeros_like(x), config.momentum
  for t, g in enumerate(grads, start=1):
    m = mu * m + (1 - mu) * g
    nesterov = mu * m / (1 - mu ** (t + 1)) + (1 - mu) * g / (1 - mu**t)
    sides = x.shape
    scale = np.sqrt(max(1, sides[1] / sides[0]))
    if config.rms is not None:
      scale = config.rms * np.sqrt(max(sides))
    x = x - rate * (scale * orthogonal(nesterov, config.iterations) + config.weight_decay * x)
  return x


def updated(config, params, grads):
  tx = optim.make(config, steps=10)
  state = tx.init(params)
  for g in grads:
    updates, state = tx.update(g, state, params)
    params = optax.apply_updates(params, updates)
  return params


@pytest.mark.parametrize(
  'fields',
  [{}, dict(learning_rate=0.02, rms=None, iterations=3), dict(momentum=0.9, weight_decay=0.1)],
)
def test_each_layers_each_matrix_moves_by_its_own_gradient_alone(fields):
  config = optim.OptimizerConfig(
    name='muon', learning_rate=1e-3, clip_norm=0.0, muon=muon.MuonOptions(**fields)
  )
  x, grads = draw(0), [draw(seed) for seed in (1, 2, 3, 4)]
  with jax.enable_x64(True):
    as_arrays = lambda flat: nested({name: jnp.asarray(x) for name, x in flat.items()})
    found = trees.named_leaves(updated(config, as_arrays(x), [as_arrays(g) for g in grads]))
    plain = dataclasses.replace(config, name='adamw')
    adamw = trees.named_leaves(updated(plain, as_arrays(x), [as_arrays(g) for g in grads]))
  rate = fields.get('learning_rate', 1e-3)
  for name in SHAPES:
    if name not in MATRICES:
      np.testing.assert_array_equal(found[name], adamw[name], err_msg=name)
    for at in MATRICES.get(name, ()):
      wanted = muon_numpy(config.muon, rate, [g[name][at] for g in grads], x[name][at])
      np.testing.assert_allclose(found[name][at], wanted, rtol=1e-10, atol=1e-10, err_msg=name)


def test_each_matrix_is_that_of_optax_by_itself():
  config = optim.OptimizerConfig(name='muon', learning_rate=1e-3, clip_norm=0.0)
  x, grads = draw(0), [draw(seed) for seed in (1, 2, 3)]
  tx = optax.contrib.muon(1e-3, consistent_rms=config.muon.rms)
  with jax.enable_x64(True):
    found = trees.named_leaves(updated(config, nested(x), [nested(g) for g in grads]))
    for name, places in MATRICES.items():
      for at in places:
        one = {'w': jnp.asarray(x[name][at])}
        state = tx.init(one)
        for g in grads:
          updates, state = tx.update({'w': jnp.asarray(g[name][at])}, state, one)
          one = optax.apply_updates(one, updates)
        np.testing.assert_allclose(found[name][at], one['w'], rtol=1e-10, atol=1e-10)


def test_clipping_and_schedule_act_before_and_after():
  """One factor for all gradients, which (3) forgets; half the rate is half the way."""
  config = optim.OptimizerConfig(name='muon', learning_rate=1e-3)
  with jax.enable_x64(True):
    x, g = (jax.tree.map(jnp.asarray, nested(draw(seed))) for seed in (0, 1))
    step = lambda config, g: jax.tree.map(lambda a, b: a - b, updated(config, x, [g]), x)
    clipped, larger = step(config, g), step(config, jax.tree.map(lambda x: 7.0 * x, g))
    half = step(dataclasses.replace(config, learning_rate=5e-4), g)
  for name in MATRICES:
    one, other, slow = (np.asarray(trees.named_leaves(t)[name]) for t in (clipped, larger, half))
    np.testing.assert_allclose(one, other, rtol=1e-6)
    np.testing.assert_allclose(one, 2 * slow, rtol=1e-8)


NETWORKS = {
  **{method: {'method': method} for method in ('flow+diverse', 'repa', 'reg', 'meanflow')},
  'lightning': {'model.block': 'lightning'},
  'raev2': {
    'method': 'internal',
    'model.block': 'raev2',
    'model.qk_norm': True,
    'model.head.depth': 1,
    'model.head.width': 32,
    'model.head.heads': 2,
  },
}


@pytest.mark.parametrize('name', NETWORKS)
@pytest.mark.parametrize('rule', ['hidden', 'matrices'])
def test_muon_has_the_matrices_of_blocks_or_all_but_the_first(name, rule):
  given = NETWORKS[name]
  config = digits.get_config(f'method={given["method"]}' if 'method' in given else '')
  config.update_from_flattened_dict(given)
  network = experiment_lib.build(config).network
  variables = nnx.state(nnx.eval_shape(lambda: network(nnx.Rngs(0))), nnx.Param)
  config = muon.MuonOptions(parameters=rule)
  is_leaf = lambda x: isinstance(x, nnx.Variable)
  for path, variable in jax.tree_util.tree_leaves_with_path(variables, is_leaf=is_leaf):
    name, layers = trees.path_name(path), variable.get_metadata()['out_sharding'][:1] == ('layers',)
    rank = len(variable.shape) - layers - any(part in name for part in ('qkv', 'fc12'))
    hidden = layers or 'project' in name
    wanted = rank == 2 and (hidden if rule == 'hidden' else 'patch_embed' not in name)
    assert muon.owner(config, name) == ('muon' if wanted else 'adamw'), name
    if wanted:
      assert muon.axes(name, len(variable.shape)) == (int(layers), len(variable.shape) - 1)


def trainable(**changes):
  config = digits.get_config('method=flow+diverse')
  config.update_from_flattened_dict({'optimizer.name': 'muon', **changes})
  experiment = run_context.unprobed(experiment_lib.build(config))
  return experiment, run_context.make_trainable(experiment, sharding.make_mesh())


def test_muons_matrices_have_one_moment_where_the_rest_has_two_and_frozen_ones_none():
  experiment, made = trainable(**{'optimizer.freeze': 'blocks/first/*,label_embed'})
  parts = muon.division(experiment.optimizer.muon, made.trained(made.params))
  counts = {who: trees.count(part) for who, part in parts.items()}
  scalars = 4  # Counts of updates.
  assert trees.count(made.opt_state) == counts['muon'] + 2 * counts['adamw'] + scalars
  assert jax.tree.structure(made.shardings.opt_state) == jax.tree.structure(made.opt_state)
  told = optim.division(experiment.optimizer, made.trained(made.params))
  matrices = 3 * (1 + 1 + 3 + 1 + 2)  # A block's: fusion, adaLN, qkv, proj, fc1 and fc2.
  assert told.startswith(f'optimizer.name=muon: {matrices} matrices, {counts["muon"]:,} parameters')
  assert 'blocks/second/attn/qkv/kernel' in told and 'blocks/first' not in told


def test_muon_with_nothing_to_train_is_refused():
  with pytest.raises(types.UserError, match=r"no matrix to train with optimizer.freeze='blocks'"):
    trainable(**{'optimizer.freeze': 'blocks'})


def test_clipping_may_begin_and_end():
  x = nested(draw(0))
  clipped, free = (
    optim.make(optim.OptimizerConfig(name='muon', clip_norm=norm), 10).init(x)
    for norm in (1.0, 0.0)
  )
  for one, other in ((clipped, free), (free, clipped)):
    assert jax.tree.structure(optim.other_form(one)) == jax.tree.structure(other)


def test_flops_are_those_of_the_products_of_each_matrix():
  shapes = nested({n: np.zeros(s) for n, s in SHAPES.items()})
  found, shared = (muon.flops(muon.MuonOptions(), shapes, devices) for devices in (1, 6))
  of = lambda m, n: 5 * (2 * m * n * m + 2 * m * m * m + 2 * m * m * n)  # X X', A A, B X.
  assert found == 2 * (3 * of(4, 4) + of(4, 10) + of(4, 10))
  assert shared == of(4, 4) + of(4, 10) + of(4, 10)
