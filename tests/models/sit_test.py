"""SiT by its own properties: counts, zeros at the start, scan and loop, remat, taps, refusals."""

import functools

from flax import nnx
from helpers import jaxprs, networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import trees, types
from diversedit_jax.interpolants import ddpm
from diversedit_jax.models import attention, config, embed, sit, sizes, stack, taps

# Parameters at 256 px (latents 32x32x4, 1000 classes), the fixed position table included.
COUNTS = {
  'S/2': 32_957_200,
  'S/4': 32_920_384,
  'S/8': 33_049_600,
  'B/2': 130_500_112,
  'B/4': 130_426_432,
  'B/8': 130_684_672,
  'L/2': 458_086_416,
  'L/4': 457_988_160,
  'L/8': 458_332_416,
  'XL/2': 675_111_184,
  'XL/4': 675_000_640,
  'XL/8': 675_387_904,
}
SKIPS = {'S': 1_780_992, 'B': 7_100_928, 'L': 25_227_264, 'XL': 37_239_552}


def small(**fields):
  defaults = dict(
    input_size=(4, 8), depth=4, width=16, heads=2, patch_size=2, channels=3, num_classes=5
  )
  return networks.parts(**(defaults | fields))


def build(parts, seed=0):
  return sit.SiT(*parts, rngs=nnx.Rngs(seed))


def randomised(parts):
  return networks.randomised(lambda rngs: sit.SiT(*parts, rngs=rngs), scale=0.2)


def inputs(architecture, n=3):
  x = jax.random.normal(jax.random.key(2), (n, *architecture.input_size, architecture.channels))
  return x, jnp.linspace(0.0, 1.0, n), jnp.arange(n) % (architecture.num_classes + 1)


@pytest.mark.parametrize('name', COUNTS)
def test_parameter_counts(name):
  def count(skip):
    architecture = sizes.architecture(name, input_size=(32, 32), skip=skip)
    model = nnx.eval_shape(lambda: sit.SiT(architecture, rngs=nnx.Rngs(0)))
    return trees.count(nnx.state(model)), architecture

  plain, architecture = count(networks.NO_SKIP)
  assert plain + architecture.tokens * architecture.width == COUNTS[name]
  assert count(networks.SKIP)[0] - plain == SKIPS[name.split('/')[0]]


@pytest.mark.parametrize('skip', [networks.NO_SKIP, networks.SKIP])
def test_output_is_zero_at_initialisation(skip):
  model = build(small(skip=skip))
  np.testing.assert_array_equal(model(*inputs(model.architecture)).pred, 0.0)


def test_blocks_are_the_identity_at_initialisation():
  model = build(small())
  x, t, y = inputs(model.architecture)
  tokens = model.tokens(x)
  features = model(x, t, y, tap=taps.every()).features
  np.testing.assert_array_equal(features, jnp.broadcast_to(tokens[None], features.shape))
  assert float(jnp.std(tokens)) > 0.1


def loop(model, x, t, y, **how):
  """The blocks by a plain Python loop over depth, from the paper's words."""
  architecture, blocks = model.architecture, model.blocks
  c, h = model.condition(t, y), model.tokens(x)
  outputs, pushed = [], []
  for i in range(architecture.depth):
    if not architecture.skip.enabled:
      h = stack.layer(blocks.layers, i)(h, c, **how)
    elif i < architecture.depth // 2:
      h = stack.layer(blocks.first, i)(h, c, **how)
      pushed.append(h)
    else:
      k = architecture.depth - 1 - i
      block, fuse = stack.layer(blocks.second, k), stack.layer(blocks.fuse, k)
      if architecture.skip.placement == 'after':
        h = fuse(block(h, c, **how), pushed.pop())
      else:
        h = block(fuse(h, pushed.pop()), c, **how)
    outputs.append(h)
  return jnp.stack(outputs)


@pytest.mark.parametrize('unroll', [1, 4])
@pytest.mark.parametrize('skip', [networks.NO_SKIP, networks.SKIP, networks.SKIP_BEFORE])
def test_scan_equals_loop(skip, unroll):
  model = randomised(small(skip=skip, qk_norm=True, unroll=unroll))
  x, t, y = inputs(model.architecture)
  scanned = jax.jit(lambda m: m(x, t, y, tap=taps.every()).features)(model)
  # Same operations in another compilation: float32 rounding only.
  np.testing.assert_allclose(scanned, loop(model, x, t, y), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize('skip', [networks.NO_SKIP, networks.SKIP, networks.SKIP_BEFORE])
def test_the_first_blocks_alone_put_out_what_they_do_in_the_whole(skip):
  model = randomised(small(depth=6, skip=skip))
  x, t, y = inputs(model.architecture)
  whole = jax.jit(lambda: model(x, t, y, tap=taps.every()))()
  assert min(np.abs(np.diff(whole.features, axis=0)).max(axis=(1, 2, 3))) > 0.1
  for blocks in (2, 3, 5):  # In the first half, the whole of it, in the second.
    tap = taps.joined({'all': taps.every(), 'last': taps.chosen([blocks - 1])})
    output = jax.jit(lambda n=blocks, tap=tap: model(x, t, y, tap=tap, blocks=n))()
    assert output.pred is None and output.features['all'].shape[0] == blocks
    np.testing.assert_allclose(output.features['all'], whole.features[:blocks], atol=1e-5)
    np.testing.assert_array_equal(output.features['last'][0], output.features['all'][-1])
  output = jax.jit(lambda: model(x, t, y, blocks=6))()
  np.testing.assert_allclose(output.pred, whole.pred, atol=1e-6)


def test_a_step_of_the_scan_fewer_for_each_block_left_out():
  """What is left out is not computed and thrown away."""
  model = build(small(depth=6, skip=networks.SKIP))
  x, t, y = inputs(model.architecture)
  for blocks, lengths in ((2, [2]), (3, [3]), (5, [3, 2]), (6, [3, 3])):
    jaxpr = jax.make_jaxpr(lambda n=blocks: model(x, t, y, tap=taps.every(), blocks=n)[1])()
    scans = [e.params['length'] for e in jaxpr.eqns if e.primitive.name == 'scan']
    assert scans == lengths


def test_skip_placements_differ():
  after, before = (randomised(small(skip=skip)) for skip in (networks.SKIP, networks.SKIP_BEFORE))
  x, t, y = inputs(after.architecture)
  assert float(jnp.max(jnp.abs(after(x, t, y).pred - before(x, t, y).pred))) > 1e-2


@functools.cache
def loss_and_gradient(skip, **execution):
  """(loss, gradients, number of matrix products in the program)."""
  model = randomised(small(skip=skip, **execution))
  graphdef, state = nnx.split(model)
  batch = inputs(model.architecture)

  def objective(state):
    tap = taps.joined({'mean': taps.token_mean(), 'attention': taps.attention([3, 1])})
    out = nnx.merge(graphdef, state)(*batch, tap=tap)
    queries, keys = out.features['attention']
    return jnp.sum(out.pred**2) + jnp.sum(out.features['mean'] ** 2) + jnp.sum(queries * keys)

  traced = jax.jit(jax.value_and_grad(objective)).trace(state)
  products = [e for e in jaxprs.equations(traced.jaxpr.jaxpr) if e.primitive.name == 'dot_general']
  return *traced.lower().compile()(state), len(products)


@pytest.mark.parametrize('skip', [networks.NO_SKIP, networks.SKIP])
@pytest.mark.parametrize('policy', ['full', 'dots', 'names'])
def test_remat_changes_nothing_but_memory(skip, policy):
  loss, grads, plain = loss_and_gradient(skip)
  other_loss, other_grads, remat = loss_and_gradient(skip, remat=policy)
  assert remat > plain  # Those of the attention, or all.
  np.testing.assert_allclose(other_loss, loss, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), other_grads, grads
  )


def test_taps_agree_with_all_features():
  model = randomised(small(skip=networks.SKIP))
  x, t, y = inputs(model.architecture)
  tap = taps.joined({'all': taps.every(), 'some': taps.chosen([3, 0]), 'mean': taps.token_mean()})
  features = jax.jit(lambda m: m(x, t, y, tap=tap).features)(model)
  np.testing.assert_array_equal(features['some'], features['all'][jnp.array([3, 0])])
  np.testing.assert_allclose(features['mean'], features['all'].mean(axis=2), rtol=1e-5, atol=1e-6)
  assert model(x, t, y).features is None


@pytest.mark.parametrize('skip', [networks.NO_SKIP, networks.SKIP, networks.SKIP_BEFORE])
def test_a_tap_is_shown_the_queries_and_keys_that_attention_takes(skip):
  model, seen = randomised(small(skip=skip, qk_norm=True)), []
  x, t, y = inputs(model.architecture)

  def attend(q, k, v, implementation):
    seen.append((q, k))
    return attention.attend(q, k, v, implementation)

  loop(model, x, t, y, attend=attend)
  for blocks, chosen in ((None, [3, 0]), (2, [1]), (3, [2, 1])):
    tap = taps.joined({'qk': taps.attention(chosen), 'last': taps.chosen([chosen[0]])})
    features = jax.jit(lambda m, tap=tap, n=blocks: m(x, t, y, tap=tap, blocks=n).features)(model)
    for i, found in enumerate(features['qk']):
      assert found.shape == (len(chosen), 3, 8, 2, 8)  # [k, N, T, H, d]
      wanted = np.stack([seen[block][i] for block in chosen])
      np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=2e-5)


def test_who_does_not_ask_for_attention_keeps_nothing_of_it():
  """The loop over blocks puts out what it did: the residual stream, and what the tap wants."""
  model = build(small())
  x, t, y = inputs(model.architecture)
  outputs = {}
  for name, tap in (('none', taps.nothing()), ('qk', taps.attention([1]))):
    jaxpr = jax.make_jaxpr(lambda tap=tap: model(x, t, y, tap=tap)[:2])()
    (scan,) = (e for e in jaxpr.eqns if e.primitive.name == 'scan')
    outputs[name] = [out.aval.shape for out in scan.outvars]
  assert outputs == {'none': [(3, 8, 16)], 'qk': [(3, 8, 16), *[(2, 3, 8, 2, 8)] * 2]}


def test_examples_do_not_see_each_other():
  model = randomised(small())
  x, t, y = inputs(model.architecture)
  grads = jax.grad(lambda x: jnp.sum(model(x, t, y).pred[0]))(x)
  assert float(jnp.max(jnp.abs(grads[0]))) > 0
  np.testing.assert_array_equal(grads[1:], 0.0)


def test_label_rows_receive_gradient_only_when_used():
  model = randomised(small())
  x, t, _ = inputs(model.architecture)
  graphdef, state = nnx.split(model)
  objective = lambda s: jnp.sum(nnx.merge(graphdef, s)(x, t, jnp.array([1, 1, 4])).pred)
  rows = np.abs(jax.grad(objective)(state)['label_embed']['embedding'][...]).sum(axis=1)
  assert (rows > 0).tolist() == [False, True, False, False, True, False]


def test_rectangular_grid_keeps_rows_and_columns_apart():
  x = jnp.arange(2 * 4 * 8 * 3, dtype=jnp.float32).reshape(2, 4, 8, 3)
  tokens = embed.patchify(x, 2)
  assert tokens.shape == (2, 8, 12)
  np.testing.assert_array_equal(tokens[0, 1].reshape(2, 2, 3), x[0, 0:2, 2:4])
  np.testing.assert_array_equal(embed.unpatchify(tokens, 2, 4, 8), x)
  table = embed.position_table(2, 4, 16)
  np.testing.assert_array_equal(table[0, :8], table[4, :8])  # Same column.
  np.testing.assert_array_equal(table[0, 8:], table[3, 8:])  # Same row.


def test_unconditional_model_has_one_row_and_no_null_label():
  model = randomised(small(num_classes=0))
  x, t, _ = inputs(model.architecture)
  assert model.architecture.null_label is None
  assert model.label_embed.embedding.shape == (1, 16)
  assert model(x, t, jnp.zeros(3, jnp.int32)).pred.shape == x.shape


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    (dict(input_size=(5, 8)), 'input size 5x8 is not divisible by model.patch_size=2'),
    (dict(heads=3), 'model.heads=3 does not divide model.width=16'),
    (dict(width=6, heads=1), 'model.width=6 is not divisible by 4'),
    (dict(depth=5, skip=networks.SKIP), 'even depth, got model.depth=5'),
    (dict(skip=config.Skip(residual=True)), 'residual=True .* model.skip.enabled=False'),
    (dict(depth=0), 'model.depth is 0; set it, or model.size'),
    (dict(remat='ful'), "did you mean 'full'"),
    (dict(residual_dtype='bfloat16'), 'model.residual_dtype=bfloat16 needs model.dtype=bfloat16'),
    (dict(class_token=-1), 'class_token must be at least 0, got -1'),
  ],
)
def test_impossible_configs_are_refused_by_name(fields, words):
  with pytest.raises(types.UserError, match=words):
    small(**fields)


def test_wrong_input_shape_is_named():
  model = build(small())
  _, t, y = inputs(model.architecture)
  with pytest.raises(
    ValueError, match=r'x has shape \(3, 8, 4, 3\), expected \(N, H=4, W=8, C=3\)'
  ):
    model(jnp.zeros((3, 8, 4, 3)), t, y)


# An interval, a class token, a second half of the head, steps of a diffusion.

Z = 6


def extra_inputs(**given):
  """h_N and class tokens for three examples, those that are asked for."""
  token_NZ = jnp.asarray(np.random.default_rng(3).normal(size=(3, Z)), jnp.float32)
  values = {'h_N': jnp.asarray([0.0, 0.2, 0.9]), 'class_token_NZ': token_NZ}
  return {name: value for name, value in values.items() if given.get(name)}


@pytest.mark.parametrize('interval', [False, True])
@pytest.mark.parametrize('class_token', [0, Z])
def test_missing_and_surplus_inputs_are_refused(interval, class_token):
  model = build(small(interval=interval, class_token=class_token))
  x, t, y = inputs(model.architecture)
  wanted = {'h_N': interval, 'class_token_NZ': class_token > 0}
  trace = lambda **given: jax.eval_shape(lambda: model(x, t, y, **extra_inputs(**given)))
  token = trace(**wanted).class_token
  assert token is None if not class_token else token.shape == (3, Z)
  for name, is_input in wanted.items():
    words = f'{name} is missing' if is_input else f'{name} is not an input of this model'
    with pytest.raises(ValueError, match=words):
      trace(**(wanted | {name: not is_input}))


def test_interval_adds_its_own_embedding_of_time():
  model = randomised(small(interval=True))
  _, t, y = inputs(model.architecture)
  h = extra_inputs(h_N=True)['h_N']
  wanted = model.time_embed(t) + model.label_embed(y) + model.interval_embed(h)
  np.testing.assert_array_equal(model.condition(t, y, h), wanted)
  assert np.abs(model.interval_embed(h) - model.time_embed(h)).max() > 0.1
  plain = trees.count(nnx.state(build(small())))
  assert trees.count(nnx.state(model)) - plain == 256 * 16 + 16 + 16 * 16 + 16


def test_class_token_comes_first_and_has_no_position():
  model = randomised(small(class_token=Z))
  architecture, token_NZ = model.architecture, extra_inputs(class_token_NZ=True)['class_token_NZ']
  x, _, _ = inputs(architecture)
  tokens = model.tokens(x, token_NZ)
  assert (architecture.tokens, architecture.sequence, tokens.shape) == (8, 9, (3, 9, 16))
  np.testing.assert_array_equal(tokens[:, 0], model.class_token_embed(token_NZ))  # Nothing added.
  np.testing.assert_array_equal(tokens[:, 1:], model.tokens(x))
  table = embed.position_table(*architecture.grid, architecture.width)
  patches = model.patch_embed(embed.patchify(x, architecture.patch_size))
  np.testing.assert_allclose(tokens[:, 1:], patches + table[None], rtol=1e-6, atol=1e-6)


def test_class_token_is_read_from_the_first_place_and_patches_from_the_others():
  """With the head of one set to zero the other is unchanged, and both see both."""
  model = randomised(small(class_token=Z))
  x, t, y = inputs(model.architecture)
  token_NZ = extra_inputs(class_token_NZ=True)['class_token_NZ']
  graphdef, state = nnx.split(model)

  @jax.jit
  def run(x, token_NZ):
    return nnx.merge(graphdef, state)(x, t, y, class_token_NZ=token_NZ, tap=taps.every())

  output = run(x, token_NZ)
  assert output.pred.shape == x.shape and output.class_token.shape == (3, Z)
  last, c_ND = output.features[-1], model.condition(t, y)
  shift, scale = jnp.split(model.final.adaln(jax.nn.silu(c_ND)), 2, axis=-1)
  first = last[:, 0] - last[:, 0].mean(-1, keepdims=True)
  first = first / np.sqrt(np.square(first).mean(-1, keepdims=True) + 1e-6)
  wanted = model.final.class_linear(first * (1 + scale) + shift)
  np.testing.assert_allclose(output.class_token, wanted, rtol=2e-4, atol=2e-4)
  for other in (run(x + 1, token_NZ), run(x, token_NZ[:, ::-1])):
    assert np.abs(other.pred - output.pred).max() > 1e-3
    assert np.abs(other.class_token - output.class_token).max() > 1e-3


def test_learn_sigma_predicts_with_the_first_half_of_its_head():
  model = randomised(small(learn_sigma=True))
  x, t, y = inputs(model.architecture)
  graphdef, state = nnx.split(model)
  objective = lambda s: jnp.sum(jnp.square(nnx.merge(graphdef, s)(x, t, y).pred))
  grads = jax.jit(jax.grad(objective))(state)
  assert model(x, t, y).pred.shape == x.shape
  kernel = grads['final']['linear']['kernel'][...].reshape(16, 2, 2, 6)  # Channels are fastest.
  assert (np.abs(kernel[..., :3]).max(axis=(0, 1, 2)) > 0).all()
  np.testing.assert_array_equal(kernel[..., 3:], 0)


def test_time_input_is_what_the_sinusoids_see():
  unit, steps = (randomised(small(time_input=kind)) for kind in ('unit', 'ddpm'))
  _, t, y = inputs(unit.architecture)
  np.testing.assert_array_equal(unit.condition(t, y), unit.time_embed(t) + unit.label_embed(y))
  wanted = steps.time_embed(ddpm.index(t)) + steps.label_embed(y)
  np.testing.assert_array_equal(steps.condition(t, y), wanted)
  assert np.abs(steps.condition(t, y) - unit.condition(t, y)).max() > 0.1
