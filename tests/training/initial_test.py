"""Networks that start from other networks: the same function where it can be, and what is said."""

from flax import nnx
from helpers import networks, tiny
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.methods import base
from diversedit_jax.models import config
from diversedit_jax.training import initial

ADDED = config.Skip(enabled=True, residual=True)
ADDED_BEFORE = config.Skip(enabled=True, residual=True, placement='before')
FOUR = {'depth': 4}


def network(terms=(), seed=1, **fields):
  """(graphdef, arrays by path) of a network without zeros."""
  graphdef, params = tiny.parameters(tiny.architecture(**fields), terms, seed=seed)
  return graphdef, {name: np.asarray(x) for name, x in trees.named_leaves(params).items()}


def fresh(terms=(), **fields):
  """(graphdef, arrays by path) of a network as it is initialised, with its zeros."""
  made = base.Network(tiny.architecture(**fields), tiny.EXECUTION, tuple(terms), rngs=nnx.Rngs(3))
  graphdef, state = nnx.split(made, nnx.Param)
  arrays = trees.named_leaves(nnx.to_pure_dict(state))
  return graphdef, {name: np.asarray(x) for name, x in arrays.items()}


def fit(found, expected, options=None, **more):
  shapes = {name: x.shape for name, x in expected.items()}
  return initial.fit(found, shapes, options or initial.Options(), channels=1, **more)


def started(start, arrays):
  """The arrays of a fresh network with those of a start in their place."""
  made = {name: np.array(x) for name, x in arrays.items()}
  for name, x in start.values.items():
    made[name][start.rows.get(name, ...)] = x
  return made


def predict(graphdef, arrays, labels=(0, 3, 4, 5), side=4, **inputs):
  """The model's prediction; classes are 0 to 4 and the null label 5."""
  tree = {}
  for name, x in arrays.items():
    *folders, last = name.split('/')
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[last] = jnp.asarray(x)
  generator = np.random.default_rng(0)
  n = len(labels)
  x, t = generator.normal(size=(n, side, side, 1)), generator.uniform(size=n)
  model = nnx.merge(graphdef, tree).model
  return np.asarray(
    model(
      jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32), jnp.array(labels), **inputs
    ).pred
  )


H = {'h_N': jnp.array([0.0, 0.3, 0.7, 1.0])}


@pytest.mark.parametrize(
  ('source', 'target', 'inputs'),
  [
    (FOUR, FOUR, {}),
    (FOUR, FOUR | {'skip': ADDED}, {}),
    (FOUR, FOUR | {'skip': ADDED_BEFORE}, {}),
    (FOUR, FOUR | {'learn_sigma': True}, {}),
    (FOUR | {'learn_sigma': True}, FOUR, {}),
    (FOUR, FOUR | {'interval': True}, H),
    (FOUR | {'skip': ADDED}, FOUR | {'skip': ADDED, 'learn_sigma': True, 'interval': True}, H),
    (FOUR, FOUR | {'terms': (tiny.SRA,)}, {}),
    (FOUR | {'terms': (tiny.SRA,)}, FOUR, {}),
    (FOUR, FOUR | {'base': 2, 'learn_sigma': True}, {}),
    (FOUR | {'base': 2}, FOUR, {}),
    (FOUR | {'base': 2}, FOUR | {'base': 3, 'learn_sigma': True}, {}),
  ],
)
def test_a_network_starts_as_the_other_one(source, target, inputs):
  theirs, found = network(**source)
  ours, random = fresh(**target)
  start = fit(found, random)
  wanted = predict(theirs, found)
  assert np.abs(wanted).max() > 0.1
  # The same operations in another program, in float32.
  np.testing.assert_allclose(
    predict(ours, started(start, random), **inputs), wanted, rtol=1e-5, atol=1e-5
  )
  assert {*start.kept, *start.fitted, *start.new} == random.keys()


def test_the_parts_of_a_method_are_new_and_zero_where_that_keeps_the_function():
  _, found = network(**FOUR)
  _, random = network(seed=2, **FOUR, skip=ADDED, interval=True, class_token=3, terms=(tiny.SRA,))
  start = fit(found, random)
  parts = {name.rpartition('/')[0]: how for name, how in start.new.items()}
  assert {part.split('/')[1] for part in parts} == {
    'sra',
    'blocks',
    'class_token_embed',
    'final',
    'interval_embed',
  }
  assert start.new['model/blocks/fuse/update/kernel'] == 'long skips, as the identity on x'
  assert not start.values['model/interval_embed/fc2/kernel'].any()
  assert random['model/interval_embed/fc2/kernel'].any()


def test_the_class_token_is_new_in_a_wide_head_too():
  fields = FOUR | {'head': config.Head(depth=1, width=24)}
  _, found = network(**fields)
  _, random = network(seed=2, **fields, class_token=3)
  start = fit(found, random)
  assert start.new.keys() == random.keys() - found.keys() and sorted(start.kept) == sorted(found)
  assert {name.split('/class')[0] for name in start.new} == {
    'model',
    'model/decoder',
    'model/final',
  }


def test_a_new_variance_starts_at_zero():
  _, found = network(**FOUR)
  _, random = network(seed=2, **FOUR, learn_sigma=True)
  start = fit(found, random)
  for name in ('model/final/linear/kernel', 'model/final/linear/bias'):
    assert not start.values[name][..., 1::2].any()  # Each follows the prediction of its pixel.
    np.testing.assert_array_equal(start.values[name][..., ::2], found[name])


def test_a_larger_picture_needs_nothing():
  """Positions are computed, so no array depends on the number of tokens."""
  _, found = network()
  ours, random = network(seed=2, input_size=(8, 8))
  start = fit(found, random)
  assert len(start.kept) == len(found) == len(random)
  wanted = predict(ours, found, side=8)
  np.testing.assert_array_equal(predict(ours, started(start, random), side=8), wanted)


def test_blocks_return_from_skips_to_one_stack():
  _, found = network(**FOUR, skip=ADDED)
  _, random = network(seed=2, **FOUR)
  start = fit(found, random, initial.Options(leave_out='blocks/fuse'))
  first, second = (found[f'model/blocks/{half}/mlp/fc1/kernel'] for half in ('first', 'second'))
  wanted = [first[0], first[1], second[1], second[0]]
  np.testing.assert_array_equal(start.values['model/blocks/layers/mlp/fc1/kernel'], wanted)
  assert len(start.left_out) == 4 and not start.new


AB, ABC = ('a', 'b', 'c', 'd', 'e'), ('c', 'x', 'a')


@pytest.mark.parametrize(
  ('classes', 'names', 'found_names', 'how', 'kept'),
  [
    (5, (), (), 'auto', {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}),
    (5, AB, (), 'auto', {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}),  # As ImageNet's from a file.
    (7, (), (), 'auto', {0: 0, 1: 1, 2: 2, 3: 3, 4: 4}),
    (3, (), (), 'auto', {0: 0, 1: 1, 2: 2}),
    (3, ABC, (), 'auto', {}),
    (3, ABC, (), 'number', {0: 0, 1: 1, 2: 2}),
    (3, ABC, AB, 'auto', {0: 2, 2: 0}),
    (5, AB[::-1], AB, 'auto', {0: 4, 1: 3, 2: 2, 3: 1, 4: 0}),
    (3, ABC, AB, 'new', {}),
    (5, (), (), 'new', {}),
    (0, (), (), 'auto', {}),
  ],
)
def test_rows_of_the_label_table_follow_their_classes(classes, names, found_names, how, kept):
  name = 'model/label_embed/embedding'
  _, found = network()
  _, random = network(seed=2, num_classes=classes)
  start = fit(found, random, initial.Options(classes=how), names=names, found_names=found_names)
  table = started(start, random)[name]
  for label in range(classes):
    row = found[name][kept[label]] if label in kept else random[name][label]
    np.testing.assert_array_equal(table[label], row, err_msg=str(label))
  np.testing.assert_array_equal(table[classes], found[name][5])  # The null label.
  if classes == 5 and kept == {k: k for k in range(5)}:
    assert not start.fitted and name in start.kept
  else:
    assert f'rows of {len(kept)} kept (' in start.fitted[name]
    assert f'{classes - len(kept)} new; that of the null label kept' in start.fitted[name]


def without(name):
  return lambda found: {n: x for n, x in found.items() if n != name}


BIAS = 'model/final/linear/bias'


@pytest.mark.parametrize(
  ('source', 'target', 'change', 'words'),
  [
    ({}, {}, without(BIAS), [f'missing: {BIAS}', "init.new='final/linear/bias' starts"]),
    (
      {},
      {},
      lambda f: f | {'model/extra': f[BIAS]},
      ['not expected: model/extra', "leave_out='extra' leaves"],
    ),
    ({}, {'depth': 4}, None, ['adaln/bias has shape (2, 96) instead of (4, 96)', 'size']),
    (
      {},
      {'width': 32},
      None,
      ['adaln/bias has shape (2, 96) instead of (2, 192)', 'of another size'],
    ),
    ({}, {'patch_size': 1}, None, ['patch_embed/kernel has shape (4, 16) instead of (1, 16)']),
    ({}, {'channels': 2}, None, ['model/final/linear/bias has shape (4) instead of (8)']),
    (
      {},
      {'qk_norm': True},
      None,
      ['attn/k_norm', "init.new='blocks/layers/attn/k_norm,blocks/layers/attn/q_norm'"],
    ),
    ({}, {'skip': networks.SKIP}, None, ['missing: model/blocks/fuse/', 'skip.residual=True adds']),
    ({'skip': networks.SKIP}, {}, None, ["leave_out='blocks/fuse' leaves out"]),
    ({'skip': networks.SKIP}, {'skip': ADDED}, None, ['not expected: model/blocks/fuse/linear']),
    ({'skip': ADDED}, {'skip': networks.SKIP}, None, ['not expected: model/blocks/fuse/update']),
    ({'interval': True}, {}, None, ["leave_out='interval_embed' leaves out"]),
    ({'class_token': 3}, {}, None, ["leave_out='class_token_embed,final/class_linear'"]),
    ({}, {}, lambda f: f | {BIAS: f[BIAS] * np.nan}, [f'{BIAS} holds values that are not finite']),
    ({}, {}, lambda f: f | {BIAS: np.ones(4, int)}, [f'{BIAS} has dtype int64']),
  ],
)
def test_what_does_not_fit_is_refused_with_what_was_found_and_the_way_on(
  source, target, change, words
):
  _, found = network(**source)
  _, random = network(seed=2, **target)
  with pytest.raises(types.UserError) as error:
    fit((change or (lambda f: f))(found), random, origin='init_from=a.npz')
  message = str(error.value)
  assert message.startswith('init_from=a.npz does not fit the config: ')
  for word in words:
    assert word in message


def test_a_file_by_the_names_of_another_system_is_sent_to_convert():
  _, found = network()
  theirs = {f'x.{i}': x for i, x in enumerate(found.values())}
  with pytest.raises(
    types.UserError, match=r"other system's names, as x\.0, .*_jax.convert --input"
  ):
    fit(theirs, found)


def test_what_is_asked_for_starts_anew_or_is_left_out():
  _, found = network(interval=True, learn_sigma=True)
  _, random = network(seed=2, qk_norm=True)
  options = initial.Options(new='*/?_norm,final/linear', leave_out='interval_embed')
  start = fit(found, random, options)
  new = {name for name in random if '_norm/' in name or 'final/linear' in name}
  assert start.new == dict.fromkeys(sorted(new), 'init.new') and new.isdisjoint(start.values)
  assert start.left_out == sorted(n for n in found if 'interval' in n)
  for key in ('new', 'leave_out'):
    with pytest.raises(types.UserError, match=f"init.{key}: 'finall' matches no .* mean 'final'"):
      fit(found, random, initial.Options(**{key: 'finall'}))
