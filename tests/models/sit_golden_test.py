"""SiT against the reference implementations: every stored intermediate and output.

Tolerance 2e-5 absolute: the reference's own float32 pass differs from its float64 pass by less than
1e-5.
"""

import json

from flax import nnx
from helpers import networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversedit_jax import convert
from diversedit_jax.models import config, embed, heads, sit, stack, taps

TOLERANCE = 2e-5
FILES = ('sit_plain', 'sit_qknorm', 'sit_skip')


def load_params(arrays):
  state_dict = {k.removeprefix('params/'): v for k, v in arrays.items() if k.startswith('params/')}
  return convert.to_ours(state_dict, 'sit')


def make_architecture(arrays):
  skip = config.Skip(enabled='skip_norms.0.weight' in ''.join(arrays))
  return networks.of_golden(arrays, skip=skip)


def merge(architecture, params, **execution):
  how = config.Execution(**execution)
  graphdef, _ = nnx.split(nnx.eval_shape(lambda: sit.SiT(architecture, how, rngs=nnx.Rngs(0))))
  return nnx.merge(graphdef, params['model'])


def inputs(arrays):
  return arrays['x'].transpose(0, 2, 3, 1), arrays['t'], arrays['y'].astype(np.int32)


@pytest.fixture(scope='module', params=FILES)
def case(request, golden):
  arrays = golden(request.param)
  params = load_params(arrays)
  return arrays, params, merge(make_architecture(arrays), params)


def test_every_stored_value_agrees(case):
  arrays, params, model = case
  spec = json.loads(str(arrays['config']))
  x, t, y = inputs(arrays)
  close = lambda got, want: np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE)

  close(
    model.patch_embed(embed.patchify(jnp.asarray(x), spec['patch_size'])), arrays['patch_tokens']
  )
  close(model.time_embed(jnp.asarray(t)), arrays['t_emb'])
  close(model.label_embed(jnp.asarray(y)), arrays['y_emb'])
  output = jax.jit(lambda m: m(x, t, y, tap=taps.every()))(model)
  close(output.features, arrays['block_feats' if 'block_feats' in arrays else 'blocks'])
  close(output.pred.transpose(0, 3, 1, 2), arrays['x_out'])
  final_NTP, _ = model.final(output.features[-1], model.condition(t, y))
  close(final_NTP, arrays['final_tokens'])

  projector = nnx.eval_shape(
    lambda: heads.Projector(
      spec['hidden_size'], spec['projector_dim'], spec['z_dims'][0], rngs=nnx.Rngs(0)
    )
  )
  projector = nnx.merge(nnx.split(projector)[0], params['heads']['repa']['0'])
  close(projector(output.features[spec['encoder_depth'] - 1]), arrays['zs_0'])


def test_raw_block_outputs_of_the_skip_model(golden):
  """`blocks` holds the outputs before fusion; a Python loop over the blocks gives them."""
  arrays = golden('sit_skip')
  model = merge(make_architecture(arrays), load_params(arrays))
  x, t, y = inputs(arrays)
  c, h = model.condition(t, y), model.tokens(jnp.asarray(x))
  half, outputs = model.architecture.depth // 2, []
  for i in range(half):
    h = stack.layer(model.blocks.first, i)(h, c)
    outputs.append(h)
  for k in reversed(range(half)):
    raw = stack.layer(model.blocks.second, k)(h, c)
    h = stack.layer(model.blocks.fuse, k)(raw, outputs[k])
    outputs.append(raw)
  np.testing.assert_allclose(jnp.stack(outputs), arrays['blocks'], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize('name', FILES)
def test_float64_output_agrees(name, golden):
  """In float64 only the float32 sinusoids differ: 1e-6, as the note of the files says."""
  arrays = golden(name)
  with jax.enable_x64(True):
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), load_params(arrays))
    model = merge(make_architecture(arrays), params)
    x, t, y = inputs(arrays)
    pred = jax.jit(lambda m, x: m(x, t, y).pred)(model, jnp.asarray(x, jnp.float64))
    assert pred.dtype == jnp.float64
    np.testing.assert_allclose(pred.transpose(0, 3, 1, 2), arrays['x_out_f64'], rtol=0, atol=1e-6)


def test_bfloat16_stays_near_float32(case):
  """bfloat16 has 8 bits of mantissa: relative rms error of a few 2^-8 after some blocks."""
  arrays, params, model = case
  x, t, y = inputs(arrays)
  exact = jax.jit(lambda m: m(x, t, y).pred)(model)
  half = jax.jit(lambda m: m(x, t, y).pred)(
    merge(make_architecture(arrays), params, dtype='bfloat16')
  )
  assert half.dtype == jnp.float32
  error = float(jnp.sqrt(jnp.mean((half - exact) ** 2) / jnp.mean(exact**2)))
  assert 1e-5 < error < 4 * 2**-8
