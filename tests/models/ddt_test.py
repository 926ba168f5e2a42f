"""Wide heads and their encoders beside the references: what goes through, and what is refused."""

from flax import nnx
from helpers import networks as helpers
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diversedit_jax import sharding, types
from diversedit_jax.models import attention, config, groups, networks, sit, taps
from diversedit_jax.training import state

HEAD = config.Head(depth=2, width=24, heads=2)
FIELDS = dict(
  input_size=(4, 8), depth=4, width=16, heads=2, patch_size=2, channels=3, num_classes=5, head=HEAD
)
KINDS = {
  'ddt': dict(block='ddt'),
  'raev2': dict(block='raev2', qk_norm=True),
  'a head on SiT': dict(block='sit'),
}
X = np.random.default_rng(0).standard_normal((2, 4, 8, 3)).astype(np.float32)
T, Y = np.array([0.2, 0.7], np.float32), np.array([1, 5])


def build(*, scale=0.3, **fields):
  architecture = config.Architecture(**(FIELDS | fields))
  make = lambda rngs: networks.make(architecture, rngs=rngs)
  return helpers.randomised(make, scale=scale) if scale else make(nnx.Rngs(0))


@pytest.mark.parametrize('kind', KINDS)
def test_output_is_zero_at_first(kind):
  model = build(scale=0, **KINDS[kind])
  assert not np.any(model(X, T, Y).pred)


@pytest.mark.parametrize('skip', [helpers.NO_SKIP, helpers.SKIP])
@pytest.mark.parametrize('kind', KINDS)
def test_taps_show_the_tokens_of_the_encoders_blocks(kind, skip):
  model = build(**KINDS[kind], skip=skip)
  output = model(X, T, Y, tap=taps.joined({'all': taps.every(), 'qk': taps.attention([1])}))
  assert output.features['all'].shape == (4, 2, 8, 16)
  assert output.features['qk'][0].shape == (1, 2, 8, 2, 8)
  first = model(X, T, Y, tap=taps.every(), blocks=2)
  np.testing.assert_allclose(first.features[:2], output.features['all'][:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('kind', KINDS)
def test_time_label_interval_and_class_token_are_seen(kind):
  model = build(**KINDS[kind], interval=True, class_token=6)
  h, z = np.array([0.1, 0.3], np.float32), np.ones((2, 6), np.float32)
  say = lambda t=T, y=Y, h=h, z=z: model(X, t, y, h_N=h, class_token_NZ=z)
  output = say()
  assert output.class_token.shape == (2, 6)
  for other in (say(t=T + 0.1), say(y=Y[::-1]), say(h=h + 0.1), say(z=2 * z)):
    assert np.abs(other.pred - output.pred).max() > 1e-4
    assert np.abs(other.class_token - output.class_token).max() > 1e-4


@pytest.mark.parametrize('kind', ['ddt', 'a head on SiT'])
def test_groups_with_one_time_are_as_no_groups(kind):
  model = build(**KINDS[kind], base=2)
  order = jnp.asarray([np.random.default_rng(i).permutation(8) for i in range(2)])
  tokens = groups.grouped(order, (3, 5))
  whole, parted = model(X, T, Y), model(X, np.stack([T, T], axis=1), Y, tokens=tokens)
  for found, expected in ((parted.pred, whole.pred), (parted.base, whole.base)):
    rounding = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=rounding)
  other = model(X, np.stack([T, T + 0.2], axis=1), Y, tokens=tokens)
  assert np.abs(other.pred - whole.pred).max() > 1e-3


def test_the_base_prediction_is_of_its_block_alone():
  model = build(block='raev2', base=2)
  output = model(X, T, Y)
  model.blocks.layers = jax.tree.map(lambda x: x.at[2:].multiply(2.0), model.blocks.layers)
  changed = model(X, T, Y)
  np.testing.assert_array_equal(changed.base, output.base)
  assert np.abs(changed.pred - output.pred).max() > 1e-4


@pytest.mark.parametrize('remat', ['full', 'dots', 'names'])
@pytest.mark.parametrize('kind', KINDS)
def test_in_bfloat16_and_computed_again(kind, remat):
  fields = FIELDS | KINDS[kind]
  how = config.Execution(dtype='bfloat16', residual_dtype='bfloat16', remat=remat)
  make = lambda how: lambda rngs: networks.make(config.Architecture(**fields), how, rngs=rngs)
  narrow, wide = (helpers.randomised(make(one), scale=0.1) for one in (how, config.PLAIN))
  loss = lambda model: jnp.mean(model(X, T, Y).pred ** 2)
  found, expected = (jax.jit(jax.grad(loss))(model) for model in (narrow, wide))
  for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    assert one.dtype == other.dtype == jnp.float32
    np.testing.assert_allclose(one, other, rtol=0, atol=0.1 * np.abs(other).max() + 1e-6)


@pytest.mark.parametrize('name', [name for name in config.ATTENTIONS if name != 'auto'])
def test_attention_of_narrow_heads_is_fitted_to_the_decoders(name):
  fields = FIELDS | {'width': 72, 'heads': 1, 'head': config.Head(depth=1, width=128, heads=1)}
  how = config.Execution(attention=name, platform='gpu', dtype='bfloat16')
  decoder = config.Architecture(**fields).decoder
  found = attention.fitting(decoder, how)
  attention.check(decoder, found)
  expected = {'cudnn@80': 'cudnn', 'cudnn@96': 'cudnn', 'flash': 'xla'}
  assert found.attention == expected.get(name, name)


def test_a_mesh_must_fit_the_decoder_too():
  mesh = jax.sharding.AbstractMesh((1, 1, 2), ('data', 'fsdp', 'tensor'))
  decoder = config.Architecture(**(FIELDS | {'head': config.Head(depth=1, width=20, heads=1)})).last
  with pytest.raises(types.UserError, match='mesh.tensor=2 does not divide the 1 heads'):
    sharding.check_tensor(mesh, decoder.heads, decoder.hidden)


def test_fixed_frequencies_are_not_trained():
  architecture = config.Architecture(**(FIELDS | KINDS['ddt']))
  make = lambda rngs: networks.make(architecture, rngs=rngs)
  trainable = state.Trainable(make, optax.adamw(1e-3, weight_decay=0.1), sharding.make_mesh())
  assert trainable.fixed == {'time_embed/frequencies'}
  assert 'frequencies' not in trainable.trained(trainable.params)['time_embed']


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    (dict(head=config.Head(), block='raev2'), 'model.conditioning=tokens.*set model.head.depth'),
    (dict(head=config.Head(width=24)), 'model.head.width=24 is for a decoder.*which is 0'),
    (dict(head=config.Head(depth=1, width=24, heads=5)), 'model.head.heads=5 does not divide'),
    (dict(head=config.Head(depth=1, width=24, heads=4), block='ddt'), 'is not divisible by 4'),
    (dict(time_input='ddpm', block='ddt'), 'tells steps up to 999'),
    (dict(base=5), 'a base prediction of block 5, but model.depth=4'),
  ],
)
def test_what_does_not_fit_is_refused(fields, message):
  with pytest.raises(types.UserError, match=message):
    config.Architecture(**(FIELDS | fields))


def test_a_plain_sit_is_not_made_of_it():
  with pytest.raises(ValueError, match='by networks.make'):
    sit.SiT(config.Architecture(**FIELDS), rngs=nnx.Rngs(0))


def test_groups_have_no_place_in_a_context():
  model = build(**KINDS['raev2'])
  tokens = groups.grouped(jnp.tile(jnp.arange(8), (2, 1)), (4, 4))
  with pytest.raises(ValueError, match='a context tells one time'):
    model(X, np.stack([T, T], axis=1), Y, tokens=tokens)
