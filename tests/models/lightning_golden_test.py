"""LightningDiT's block and its parts against the reference: values on the way, outputs, gradients.

Its clock has data at t = 1: the importer turns it round, so its times are 1 - t here, and its
velocity has the other sign.
"""

import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import convert
from diversedit_jax.models import (
  block,
  config,
  cost,
  groups,
  norms,
  rotary,
  sit,
  sizes,
  stack,
  taps,
)
from diversedit_jax.sampling import guidance

TOLERANCE = 2e-5
CASES = ('released', 'all_on', 'layernorm_qk')


@pytest.fixture(scope='module')
def arrays(golden):
  return golden('lightningdit')


def part(arrays, name):
  return {k.removeprefix(f'{name}/'): x for k, x in arrays.items() if k.startswith(f'{name}/')}


def architecture_of(arrays, name):
  spec = next(c for c in json.loads(str(arrays['config']))['cases'] if c['name'] == name)
  options = spec['options']
  side = spec['input_size']
  return config.Architecture(
    input_size=(side, side),
    depth=spec['depth'],
    width=spec['D'],
    heads=spec['heads'],
    patch_size=spec['patch_size'],
    channels=spec['channels'],
    num_classes=spec['num_classes'],
    mlp_ratio=spec['mlp_ratio'],
    norm='rms' if options['use_rmsnorm'] else 'layer',
    mlp='swiglu' if options['use_swiglu'] else 'gelu',
    rope=options['use_rope'],
    shift=not options['wo_shift'],
    qk_norm=options['use_qknorm'],
  )


def build(arrays, name, dtype=np.float32, **execution):
  """(model, x_NHWC, t, y) of a case, in our clock."""
  case, architecture = part(arrays, name), architecture_of(arrays, name)
  params = convert.to_ours(part(case, 'params'), 'lightning')['model']
  how = config.Execution(**execution)
  graphdef = nnx.split(nnx.eval_shape(lambda: sit.SiT(architecture, how, rngs=nnx.Rngs(0))))[0]
  model = nnx.merge(graphdef, jax.tree.map(lambda x: jnp.asarray(x, dtype), params))
  x = jnp.asarray(case['x'].transpose(0, 2, 3, 1), dtype)
  return model, x, jnp.asarray(1 - case['t'].astype(dtype)), case['y'].astype(np.int32)


def close(found, expected, tolerance=TOLERANCE):
  scale = max(1, np.abs(expected).max())  # Relative to the largest entry, as the file's note says.
  np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize('remat', ['none', 'names'])
@pytest.mark.parametrize('name', CASES)
def test_blocks_and_output_agree(arrays, name, remat):
  model, x, t, y = build(arrays, name, remat=remat)
  output = jax.jit(lambda m: m(x, t, y, tap=taps.every()))(model)
  close(output.features, arrays[f'{name}/blocks'])
  close(-output.pred.transpose(0, 3, 1, 2), arrays[f'{name}/out_f64'])


@pytest.mark.parametrize('name', CASES)
def test_output_agrees_in_float64(arrays, name):
  """The file's own float32 tables and sinusoids leave 2e-7."""
  with jax.enable_x64(True):
    model, x, t, y = build(arrays, name, np.float64)
    pred = jax.jit(lambda m: m(x, t, y).pred)(model)
    close(-pred.transpose(0, 3, 1, 2), arrays[f'{name}/out_f64'], 1e-6)


def test_gradients_agree(arrays):
  """The gradients of mean(out^2), in which the sign of the velocity does not show."""
  model, x, t, y = build(arrays, 'released')
  loss = lambda m, x: jnp.mean(jnp.square(m(x, t, y).pred))
  of_params, of_x = jax.jit(jax.grad(loss, (0, 1)))(model, x)
  close(of_x.transpose(0, 3, 1, 2), arrays['released/grad_x_f64'])
  architecture = model.architecture
  found = convert.to_torch(
    {'model': jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.split(of_params)[1]))},
    'lightning',
    patch_size=architecture.patch_size,
    grid=architecture.grid,
    heads=architecture.heads,
  )
  expected = part(arrays, 'released/grad')
  assert len(expected) == 5
  for name, gradient in expected.items():
    close(found[name], gradient)


def test_values_within_a_block_agree(arrays):
  model, x, t, y = build(arrays, 'released')
  probe, features = 1, arrays['released/blocks']
  inside = stack.layer(model.blocks.layers, probe)
  before = jnp.asarray(features[probe - 1])
  close(inside.norm1(before), arrays['released/probe/norm1_f64'])
  vectors = block.modulation(inside.adaln, model.condition(t, y), 6, jnp.float32, groups.WHOLE)
  shift1, scale1, gate1, shift2, scale2, _ = vectors
  h = block.modulate(inside.norm1(before), shift1, scale1)
  seen = {}

  def attend(q, k, v, how):
    seen['q'] = q
    return block.attention.attend(q, k, v, how)

  after = block.add_gated(before, gate1, inside.attn(h, attend))
  close(seen['q'].swapaxes(1, 2), arrays['released/probe/q_rope_f64'])
  mlp = inside.mlp(block.modulate(inside.norm2(after), shift2, scale2))
  close(mlp, arrays['released/probe/mlp_f64'])
  close(model.final.norm(jnp.asarray(features[-1])), arrays['released/final_norm_f64'])


@pytest.mark.parametrize('place', [0, 1, 2])
def test_guidance_acts_on_three_channels_and_within_its_interval(arrays, place):
  """At t = 0.2 of its clock, before `start`, there is none."""
  spec = json.loads(str(arrays['config']))['cases'][0]['cfg']
  model, x, _, y = build(arrays, 'released')
  t = jnp.full(len(x), 1 - spec['t'][place], jnp.float32)
  null = jnp.full_like(y, model.architecture.num_classes)
  with_class, without = model(x, t, y).pred, model(x, t, null).pred
  within = spec['t'][place] >= spec['start']
  combine = guidance.Guidance(scale=spec['scale'] if within else 1.0, channels=3).combine
  found = combine(with_class, without).transpose(0, 3, 1, 2)
  close(-found, arrays[f'released/cfg/out_{place}'][: len(x)])


def test_pieces_agree(arrays):
  x = jnp.asarray(arrays['pieces/x'])
  norm = norms.RmsNorm(x.shape[-1], rngs=nnx.Rngs(0))
  norm.scale[...] = jnp.asarray(arrays['pieces/rmsnorm_weight'])
  close(norm(x), arrays['pieces/rmsnorm_f64'])
  for rows, width in ((4, 12), (3, 8)):
    of = part(arrays, f'pieces/rope_{rows}_{width}')
    # Angles of float32 in the reference: up to `rows` radians, rounded.
    for table, name in zip(rotary.tables(rows, rows, width), ('cos', 'sin'), strict=True):
      np.testing.assert_allclose(table, of[name], rtol=0, atol=rows * 2**-23)
    found = rotary.turned(jnp.asarray(of['in'])[:, :, None], (rows, rows))[:, :, 0]
    close(found, of['out'])


def test_a_token_before_the_grid_does_not_turn_and_products_depend_on_distance():
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 8)), jnp.float32) for _ in range(2))
  everywhere = lambda x: rotary.turned(jnp.tile(x, (1, 13, 1, 1)), (3, 4))
  turned_q, turned_k = everywhere(q), everywhere(k)
  np.testing.assert_array_equal(turned_q[:, 0], q[:, 0])
  products = jnp.einsum('nqhd,nkhd->qk', turned_q[:, 1:], turned_k[:, 1:]).reshape(3, 4, 3, 4)
  np.testing.assert_allclose(products[0, 0, 1, 2], products[1, 1, 2, 3], rtol=1e-5)
  np.testing.assert_allclose(products[1, 3, 0, 0], products[2, 3, 1, 0], rtol=1e-5)
  assert abs(float(products[0, 0, 1, 2] - products[0, 0, 2, 1])) > 1e-3


def test_tokens_in_another_order_keep_their_places():
  """Sorted before the blocks, as Self-Flow's groups are, they turn as in the order of the grid."""
  rng = np.random.default_rng(0)
  order = jnp.asarray(np.stack([rng.permutation(12) for _ in range(2)]))
  x = jnp.asarray(rng.standard_normal((2, 12, 3, 8)), jnp.float32)
  tokens = groups.grouped(order, (3, 9))
  flat = x.reshape(2, 12, -1)
  found = rotary.turned(tokens.sorted(flat).reshape(x.shape), (3, 4), tokens)
  wanted = rotary.turned(x, (3, 4)).reshape(flat.shape)
  np.testing.assert_array_equal(tokens.restored(found.reshape(flat.shape)), wanted)


def test_parameters_are_as_many_as_published():
  """LightningDiT-XL/1 on latents of 16 x 16 x 32: 675M (its paper)."""
  architecture = sizes.architecture('XL/1', input_size=(16, 16), channels=32, block='lightning')
  assert architecture.hidden == 3072
  assert round(cost.cost(architecture, config.PLAIN).parameters / 1e6) == 675
